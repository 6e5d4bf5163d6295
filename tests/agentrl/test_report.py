"""The report: what it says is what the run logged, model text stays text, and a browser shows it."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from agentrl.analysis.sampling import ProblemSamples, bootstrap_interval, mean_at_k
from agentrl.command.guard import main_guard
from agentrl.common.intervals import wilson_interval
from agentrl.errors import CheckpointError
from agentrl.report.__main__ import main
from agentrl.report.charts import Chart, Series, draw, format_value, gate_timeline
from agentrl.report.page import as_data, render_page
from agentrl.report.view import (
    UNFINISHED,
    describe_differences,
    load_runs,
    pick_episodes,
    rate_factors,
    success_interval,
)
from agentrl.runs.folder import read_metrics
from agentrl.watch import terminal_view
from tests.agentrl.toy_runs import HOSTILE, add_hostile_episode, toy_run
from tests.browser import open_browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy_run(tmp_path_factory.mktemp("report") / "gated")
    add_hostile_episode(folder)
    return folder


def test_report_when_written_then_one_file_with_everything_inside_and_no_address(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main([str(run), "--out", str(out)]) == 0
    page = out.read_text()
    for heading in ("Curves", "Gate", "Categories", "Episodes", "Settings", "<svg"):
        assert heading in page
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:|//)""", page)
    assert "default-src 'none'" in page


def test_report_when_read_then_numbers_are_the_logged_ones(run: Path) -> None:
    page = render_page(load_runs([run]), num_episodes=4)
    records = read_metrics(run)
    evals = [record for record in records if record["kind"] == "eval"]
    batches = [record for record in records if record["kind"] == "train"]
    assert f"<b>{100 * evals[-1]['eval/success']:.1f} %</b>" in page
    assert f"{batches[-1]['cost/episodes']:,}" in page
    drawn = re.findall(r'<rect class="(applied|discarded)"', page)
    updates = [update for batch in batches for update in batch["updates"]]
    assert drawn.count("discarded") > 0
    assert drawn.count("discarded") == sum(not update["applied"] for update in updates)
    assert drawn.count("applied") == sum(update["applied"] for update in updates)


def test_interval_when_tasks_were_played_several_times_then_it_is_the_records_bootstrap_over_tasks() -> None:
    # 4 tasks, 8 episodes each, two tasks always won and two never: over tasks that tells next to nothing.
    samples = [ProblemSamples((i < 2,) * 8, (None,) * 8, {}) for i in range(4)]
    estimate = bootstrap_interval([mean_at_k(problem.correct) for problem in samples])
    bounds = {"all": [estimate.low, estimate.high]}
    record = {"eval/samples": 8, "eval/counts": {"all": [16, 32]}, "eval/bounds": bounds}
    assert success_interval(record) == (0.5, 0.0, 1.0, 4)
    assert success_interval({"eval/counts": {"all": [16, 32]}}) == (0.5, *wilson_interval(16, 32), 32)


def test_report_when_tasks_were_played_several_times_then_page_shows_the_records_interval(
    run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    records = read_metrics(folder)
    for record in records:
        if record["kind"] == "eval":
            record |= {"eval/samples": 2, "eval/bounds": {name: [0.0625, 0.9375] for name in record["eval/counts"]}}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = render_page(load_runs([folder]), num_episodes=1)
    tasks = records[0]["eval/counts"]["all"][1] // 2
    assert f"6.2 % to 93.8 %, {tasks} tasks" in page
    assert page.count('<rect class="range" x="12.5"') == len(records[0]["eval/counts"])


def test_report_of_a_gate_that_sets_the_rate_when_written_then_rate_kl_and_masks_are_drawn(tmp_path: Path) -> None:
    changes = {"gate__kind": "kl_rate", "gate__threshold": 0.02, "loss__sequence_mask": "max"}
    view = load_runs([toy_run(tmp_path / "rate", **changes)])[0]
    page = render_page([view], num_episodes=1)
    for text in (
        "Learning rate",
        "Tokens that a mask leaves out",
        "KL of every reuse step",
        "target = 0.01",
        "stop = 0.02",
    ):
        assert text in page
    steps, factors = rate_factors(view)
    assert len(factors) == len(steps) > 0
    assert min(factors) < 1
    assert f"<dt>rate</dt><dd>{factors[-1]:.3g}</dd>" in page
    assert "KL stop with a rate that follows the KL, target 0.01, K = 4" in page
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal_view(view))
    assert f"{factors[-1]:.3g} of the given one" in console.export_text()


def test_rate_of_a_run_when_its_gate_sets_none_then_it_is_not_shown(run: Path) -> None:
    view = load_runs([run])[0]
    assert rate_factors(view) == ([], [])
    assert "Learning rate" not in render_page([view], num_episodes=1)


def test_report_when_model_writes_html_then_it_stays_text(run: Path) -> None:
    page = render_page(load_runs([run]), num_episodes=1000)
    assert page.count("<script") == 2  # ours, and the episodes' data
    assert "<img" not in page
    data = re.search(r'<script type="application/json">(.*?)</script>', page, re.S)
    assert data is not None
    assert any(episode["first"] == HOSTILE for episode in json.loads(data[1]))


def test_as_data_when_text_closes_the_script_then_it_does_not() -> None:
    text = as_data({"x": "</script><!--&"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"x": "</script><!--&"}


def test_pick_episodes_when_limited_then_categories_and_outcomes_take_turns(run: Path) -> None:
    view = load_runs([run])[0]
    episodes = pick_episodes(view, limit=16)
    assert len(episodes) == 16
    assert len({episode["source"] for episode in episodes}) == 4
    row = episodes[0]["rows"][0]
    assert len(row["pieces"]) == len(row["trained"]) == len(row["logprobs"])
    assert all((flag == "1") >= (value != 0) for flag, value in zip(row["trained"], row["logprobs"], strict=True))


def test_pieces_when_joined_then_they_are_the_row_but_for_torn_characters(run: Path) -> None:
    stored = json.loads(sorted((run / "trajectories").glob("eval-*.jsonl"))[0].read_text().splitlines()[0])
    episode = next(e for e in pick_episodes(load_runs([run])[0], limit=10_000) if e["name"] == stored["task"]["name"])
    pieces = episode["rows"][0]["pieces"]
    assert all(pieces)
    assert "".join(pieces).replace(UNFINISHED, "") == stored["rows"][0]["text"].replace(UNFINISHED, "")


def test_run_of_another_version_when_loaded_then_unknown_keys_stay_and_new_ones_get_defaults(
    run: Path, tmp_path: Path
) -> None:
    tree = json.loads((run / "config.json").read_text())
    tree["rollout"]["forgotten"] = 1
    del tree["gate"]["tau"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    (tmp_path / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    config = load_runs([tmp_path])[0].config
    assert (config["rollout"]["forgotten"], config["gate"]["tau"], config["gate"]["window"]) == (1, 0.1, 2)
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    with pytest.raises(CheckpointError, match="no run folder"):
        load_runs([tmp_path])


def test_runs_when_compared_then_labels_name_what_differs() -> None:
    arms = (("none", 4, 0.1), ("dgg", 8, 0.2), ("fixed", 4, 0.1), ("random", 4, 0.1))
    configs = [
        {"gate": {"kind": kind, "tau": 0.1, "k": 1, "stop_prob": 0.2}, "learner": {"max_reuse": k, "lr": lr}}
        for kind, k, lr in arms
    ]
    assert describe_differences(configs) == [
        "naive reuse, K = 4, lr 0.1",
        "DGG, tau 0.1, K = 8, lr 0.2",
        "single use, lr 0.1",
        "random stop, p = 0.2, K = 4, lr 0.1",
    ]


def test_bad_input_when_given_then_one_line_and_code_two(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_guard(lambda: main([str(tmp_path)])) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main_guard(lambda: main([str(run), "--out", str(tmp_path / "no" / "x.html")])) == 2
    assert "no folder" in capsys.readouterr().err


def test_chart_when_drawn_then_marks_lie_on_their_axes() -> None:
    svg = draw(Chart("t", [Series("s", [0, 10], [0.0, 1.0], style="dots")], format="percent"))
    places = [(float(x), float(y)) for x, y in re.findall(r'class="dot" cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert places == [(52.0, 214.0), (546.0, 12.0)]
    assert "100 %" in svg


def test_chart_when_values_are_missing_or_not_finite_then_they_are_left_out() -> None:
    assert "nothing measured" in draw(Chart("t", [Series("s", [], [])]))
    svg = draw(Chart("t", [Series("s", [1, 2, 3], [1.0, float("nan"), 0.0], style="dots")], format="log"))
    assert svg.count('class="dot"') == 1


def test_long_curve_when_drawn_then_it_is_thinned_to_means() -> None:
    svg = draw(Chart("t", [Series("s", list(range(4000)), [1.0] * 4000)]))
    assert svg.count("<circle") == 400


def test_long_timeline_when_merged_then_a_discarded_gradient_shows() -> None:
    batches = [[("applied", "a")]] * 1000
    batches[501] = [("discarded", "d")]
    svg = gate_timeline(batches, 1)
    assert svg.count("<rect") <= 480
    assert svg.count('class="discarded"') == 1


@pytest.mark.parametrize(
    ("value", "format_", "text"), [(0.5, "percent", "50 %"), (1e-6, "log", "1e-06"), (1234, "number", "1,234")]
)
def test_format_value_when_given_then_short(value: float, format_: str, text: str) -> None:
    assert format_value(value, format_) == text


def test_browser_when_it_opens_the_report_then_episodes_are_played_out_and_nothing_overflows(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    main([str(run), "--out", str(out), "--episodes", "100"])
    with open_browser() as browser:
        browser.command("POST", "window/rect", {"width": 420, "height": 900})
        browser.open(out.as_uri())
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        assert len(browser.find_all(".token.s0, .token.s1, .token.s2, .token.s3, .token.s4, .token.s5")) > 6
        assert "trained tokens" in browser.find(".says.model").text()
        browser.run(
            "const all = [...document.querySelectorAll('.list button')];"
            "all.find((b) => b.title.includes('<script>')).click();"
        )
        assert browser.find(".says.env").text().startswith("<script>")
        browser.run("document.querySelector('.meta button').click()")
        token = browser.find(".exact .token")
        token.click()
        assert "context, not trained on" in browser.find(".shades output").text()
        assert browser.title().startswith("tests.toy:ColourEnv")
        assert browser.run("return document.querySelectorAll('img').length") == 0
        printed = browser.command("POST", "print", {})
        assert len(printed) > 10_000  # a PDF, in base64
