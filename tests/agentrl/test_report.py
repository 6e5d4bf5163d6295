"""The report: what it says is what the run logged, model text stays text, and a browser shows it."""

import base64
import gzip
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from agentrl.analysis.sampling import ProblemSamples, bootstrap_interval, mean_at_k
from agentrl.command.guard import main_guard
from agentrl.common.intervals import wilson_interval
from agentrl.errors import CheckpointError
from agentrl.learner import advantage
from agentrl.report import page
from agentrl.report.__main__ import main
from agentrl.report.archive import UNFINISHED, group_advantages, title_of
from agentrl.report.charts import Chart, Series, Timeline, format_value
from agentrl.report.page import render_page
from agentrl.report.sections import gate_timeline, run_charts
from agentrl.report.view import describe_differences, load_runs, rate_factors, success_interval
from agentrl.runs.folder import read_metrics
from agentrl.watch import terminal_view
from tests.agentrl.toy_runs import HOSTILE, add_hostile_episode, toy_evaluation, toy_run
from tests.browser import Browser, open_browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy_run(tmp_path_factory.mktemp("report") / "gated")
    add_hostile_episode(folder)
    return folder


@pytest.fixture(scope="module")
def evaluation(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_evaluation(run, tmp_path_factory.mktemp("report") / "evaluation")


def html(*folders: Path) -> str:
    return render_page(load_runs(folders)).html


def without_scripts(text: str) -> str:
    return re.sub(r"<script>.*?</script>", "", text, flags=re.S)


def unpack(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def index_of(text: str) -> list[dict[str, Any]]:
    (packed,) = re.findall(r"<script[^>]*data-index>([^<]*)</script>", text)
    return list(unpack(packed))


def pieces_of(text: str) -> dict[str, Any]:
    return {name: unpack(packed) for name, packed in re.findall(r'data-piece="0/([^"]+)">([^<]*)<', text)}


def charts_of(text: str) -> dict[str, dict[str, Any]]:
    found = re.findall(r'data-chart="([^"]*)".*?<script type="application/json">(.*?)</script>', text, re.S)
    return {title: json.loads(spec) for title, spec in found}


def test_report_when_written_then_one_file_with_everything_inside_and_no_address(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main([str(run), "--out", str(out)]) == 0
    text = out.read_text()
    for heading in ("Curves", "Gate", "Categories", "Episodes", "Settings"):
        assert f"<h2>{heading}</h2>" in text
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:|//)""", without_scripts(text))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src &#39;none&#39;")
    assert "unsafe-eval" not in policy
    assert "self" not in policy
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_report_when_read_then_numbers_are_the_logged_ones(run: Path) -> None:
    text = html(run)
    records = read_metrics(run)
    evals = [record for record in records if record["kind"] == "eval"]
    batches = [record for record in records if record["kind"] == "train"]
    assert f"<b>{100 * evals[-1]['eval/success']:.1f} %</b>" in text
    assert f"{batches[-1]['cost/episodes']:,}" in text
    charts = charts_of(text)
    kinds = [square["kind"] for square in charts["gate timeline"]["datasets"]["verdicts"]]
    updates = [update for batch in batches for update in batch["updates"]]
    assert kinds.count("discarded") == sum(not update["applied"] for update in updates) > 0
    assert kinds.count("applied") == sum(update["applied"] for update in updates)
    # What the crosshair tells at the last batch.
    told = charts["Mean reward"]["datasets"]["values"][-1]
    assert told["rollout batches"] == evals[-1]["step"] == batches[-1]["step"]
    assert told["training batch"] == format_value(batches[-1]["rollout/reward"], "number")
    assert told["held out"] == format_value(evals[-1]["eval/reward"], "number")
    low, high = (format_value(evals[-1][f"eval/success_{end}"], "percent") for end in ("low", "high"))
    assert charts["Success"]["datasets"]["values"][-1]["held out, with 95 % interval"].endswith(f"[{low}, {high}]")


def test_interval_when_tasks_were_played_several_times_then_it_is_the_records_bootstrap_over_tasks() -> None:
    # 4 tasks, 8 episodes each, two tasks always won and two never: over tasks that tells next to nothing.
    samples = [ProblemSamples((i < 2,) * 8, (None,) * 8, {}) for i in range(4)]
    estimate = bootstrap_interval([mean_at_k(problem.correct) for problem in samples])
    bounds = {"all": [estimate.low, estimate.high]}
    record = {"eval/samples": 8, "eval/counts": {"all": [16, 32]}, "eval/bounds": bounds}
    assert success_interval(record) == (0.5, 0.0, 1.0, 4)
    assert success_interval({"eval/counts": {"all": [16, 32]}}) == (0.5, *wilson_interval(16, 32), 32)
    unbounded = {"eval/samples": 8, "eval/counts": {"all": [16, 32]}}
    assert success_interval(unbounded) == (0.5, *wilson_interval(2, 4), 4)  # tasks, not episodes


def test_report_when_tasks_were_played_several_times_then_page_shows_the_records_interval(
    run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    records = read_metrics(folder)
    for record in records:
        if record["kind"] == "eval":
            record |= {"eval/samples": 2, "eval/bounds": {name: [0.0625, 0.9375] for name in record["eval/counts"]}}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = html(folder)
    tasks = records[0]["eval/counts"]["all"][1] // 2
    assert f"6.2 % to 93.8 %, {tasks} tasks" in text
    assert text.count('<rect class="range" x="12.5"') == len(records[0]["eval/counts"])


def test_report_of_a_gate_that_sets_the_rate_when_written_then_rate_kl_and_masks_are_drawn(tmp_path: Path) -> None:
    changes = {"gate__kind": "kl_rate", "gate__threshold": 0.02, "loss__sequence_mask": "max"}
    view = load_runs([toy_run(tmp_path / "rate", **changes)])[0]
    page_text = render_page([view]).html
    for text in (
        "Learning rate", "Tokens that a mask leaves out", "KL of every reuse step", "target = 0.01", "stop = 0.02",
    ):  # fmt: skip
        assert text in page_text
    steps, factors = rate_factors(view)
    assert len(factors) == len(steps) > 0
    assert min(factors) < 1
    assert f"<dt>rate</dt><dd>{factors[-1]:.3g}</dd>" in page_text
    assert "KL stop with a rate that follows the KL, target 0.01, K = 4" in page_text
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal_view(view))
    assert f"{factors[-1]:.3g} of the given one" in console.export_text()


def test_rate_of_a_run_when_its_gate_sets_none_then_it_is_not_shown(run: Path) -> None:
    view = load_runs([run])[0]
    assert rate_factors(view) == ([], [])
    assert "Learning rate" not in [chart.title for chart in run_charts(view)]


def test_report_when_model_writes_html_then_it_stays_text(run: Path) -> None:
    text = html(run)
    entry = next(entry for entry in index_of(text) if entry["title"] == HOSTILE)
    assert pieces_of(text)[entry["piece"]][entry["place"]]["first"] == HOSTILE
    assert "<img" not in without_scripts(text)


def test_index_when_the_run_stored_episodes_then_every_one_is_in_it_once(run: Path) -> None:
    text = html(run)
    stored = [
        (path.stem, json.loads(line))
        for path in (run / "trajectories").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    entries, pieces = index_of(text), pieces_of(text)
    assert len(entries) == len(stored) == sum(map(len, pieces.values()))
    assert {(e["source"], e["title"], e["member"], e["group"], e["reward"]) for e in entries} == {
        (source, r["task"]["name"], r["member"], r["task"]["position"], r["reward"]) for source, r in stored
    }
    row = pieces[entries[0]["piece"]][entries[0]["place"]]["rows"][0]
    assert len(row["pieces"]) == len(row["trained"]) == len(row["logprobs"])
    assert all((flag == "1") >= (value != 0) for flag, value in zip(row["trained"], row["logprobs"], strict=True))


def test_advantages_when_shown_then_they_are_those_of_the_learner(run: Path) -> None:
    settings = {"estimator": "grpo", "ddof": 1}
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for entry in index_of(html(run)):
        groups.setdefault((entry["source"], entry["group"]), []).append(entry)
    for (source, _), members in groups.items():
        rewards = np.array([entry["reward"] for entry in members])
        found = [entry["advantage"] for entry in members]
        if source.startswith("step-"):
            assert found == pytest.approx(advantage.grpo(rewards), abs=1e-4)
        else:
            assert found == [None] * len(members)
    rewards = np.array([0.0, 1.0, 0.0, 0.5])
    for estimator, expected in (
        ("grpo", advantage.grpo(rewards, ddof=0)),
        ("dr_grpo", advantage.dr_grpo(rewards)),
        ("rloo", advantage.rloo(rewards)),
    ):
        found = group_advantages(rewards.tolist(), {"estimator": estimator, "ddof": 0})
        assert found == pytest.approx(expected, abs=1e-4)
    assert group_advantages([1.0, 1.0], settings) == [0.0, 0.0]
    assert group_advantages([1.0], settings) is None
    assert group_advantages([1.0, 0.0], {"estimator": "reinforce_pp"}) is None  # other groups decide too


@pytest.mark.parametrize(
    ("name", "first", "title"),
    [("valid/7", "x", "valid/7"), ("", "\n  What is 2 + 2?\nSay.", "What is 2 + 2?"), ("", "", "task 3")],
)
def test_title_when_the_environment_names_no_task_then_it_is_the_first_line(name: str, first: str, title: str) -> None:
    assert title_of({"task": {"name": name, "index": 3}, "first_observation": first}) == title


def test_pieces_when_joined_then_they_are_the_row_but_for_torn_characters(run: Path) -> None:
    stored = json.loads(sorted((run / "trajectories").glob("eval-*.jsonl"))[0].read_text().splitlines()[0])
    archive = load_runs([run])[0].archive
    pieces = archive.describe(stored)["rows"][0]["pieces"]
    assert all(pieces)
    assert "".join(pieces).replace(UNFINISHED, "") == stored["rows"][0]["text"].replace(UNFINISHED, "")


def test_evaluation_when_reported_then_its_result_and_all_its_samples_are_shown(
    evaluation: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    assert main([str(evaluation), "--out", str(out)]) == 0
    text = out.read_text()
    result = json.loads((evaluation / "result.json").read_text())
    assert f"is <b>{100 * result['eval/success']:.1f} %</b>" in re.sub(r"\s+", " ", text)
    assert "pass@2" in text
    assert "<h2>Gate</h2>" not in text
    samples = [json.loads(line) for line in (evaluation / "samples.jsonl").read_text().splitlines()]
    entries = index_of(text)
    assert [(e["title"], e["reward"], e["success"]) for e in entries] == [
        (s["task"]["name"], s["reward"], s["success"]) for s in samples
    ]
    assert len({(e["group"], e["member"]) for e in entries}) == len(samples) == 2 * result["eval/tasks"]
    piece = load_runs([evaluation])[0].archive.piece("samples.0")
    assert piece
    assert "".join(piece[0]["rows"][0]["pieces"]).replace(UNFINISHED, "") == samples[0]["rows"][0]["text"]
    (tmp_path / "samples.jsonl").write_bytes((evaluation / "samples.jsonl").read_bytes())
    with pytest.raises(CheckpointError, match="its evaluation has not ended"):
        load_runs([tmp_path])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read as the result of an evaluation"):
        load_runs([tmp_path])


def test_report_when_episodes_are_many_then_they_lie_beside_it_and_older_ones_go(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "_INSIDE", 1000)
    out, folder = tmp_path / "page.html", tmp_path / "page-episodes"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "step-999999.0.js").write_text("older")
    (folder / "notes.txt").write_text("mine")
    assert main([str(run), "--out", str(out)]) == 0
    assert "keep both together" in capsys.readouterr().out
    names = {path.name for path in (folder / "0").iterdir()}
    assert names == {f"{entry['piece']}.js" for entry in index_of(out.read_text())}
    assert (folder / "notes.txt").read_text() == "mine"
    assert not pieces_of(out.read_text())


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


def test_chart_when_values_are_missing_or_not_finite_then_they_are_left_out() -> None:
    assert Chart("t", [Series("s", [], [])]).spec() is None
    assert Chart("t", [Series("s", [1], [0.0])], format="log").spec() is None
    spec = Chart("t", [Series("s", [1, 2, 3], [1.0, float("nan"), 0.0])], format="log").spec()
    assert spec is not None
    assert spec["datasets"]["series0"] == [{"x": 1, "y": 1.0}]


def test_chart_when_pointed_at_then_all_curves_tell_their_values() -> None:
    band = Series("held out", [0, 10], [0.5, 1.0], [0.25, 0.75], [0.75, 1.0])
    spec = Chart("t", [band, Series("training", [0, 5], [0.1, 0.2])], format="percent").spec()
    assert spec is not None
    assert spec["datasets"]["values"] == [
        {"rollout batches": 0, "held out": "50 % [25 %, 75 %]", "training": "10 %"},
        {"rollout batches": 5, "training": "20 %"},
        {"rollout batches": 10, "held out": "100 % [75 %, 100 %]"},
    ]


def test_long_curve_when_drawn_then_it_is_thinned_to_means() -> None:
    spec = Chart("t", [Series("s", list(range(4000)), [float(i % 4) for i in range(4000)])]).spec()
    assert spec is not None
    rows = spec["datasets"]["series0"]
    assert len(rows) == 1000
    assert rows[0] == {"x": 1.5, "y": 1.5}


def test_timeline_when_drawn_then_what_was_discarded_lies_on_top(run: Path) -> None:
    assert Timeline("t", [[], []]).spec() is None
    spec = Timeline("t", [[("applied", "a"), ("discarded", "d")], [("applied", "b")]]).spec()
    assert spec is not None
    assert [row["text"] for row in spec["datasets"]["verdicts"]] == ["a", "b", "d"]
    assert spec["datasets"]["verdicts"][-1] | {"text": ""} == {
        "x": 0.5,
        "to": 1.5,
        "k": "k = 2",
        "kind": "discarded",
        "text": "",
    }
    assert [kind for kind, _ in gate_timeline(load_runs([run])[0]).kinds()] == ["applied", "discarded"]


@pytest.mark.parametrize(
    ("value", "format_", "text"), [(0.5, "percent", "50 %"), (1e-6, "log", "1e-06"), (1234, "number", "1,234")]
)
def test_format_value_when_given_then_short(value: float, format_: str, text: str) -> None:
    assert format_value(value, format_) == text


def found(browser: Browser) -> str:
    return browser.find(".found").text()


def set_filter(browser: Browser, name: str, value: str) -> None:
    browser.run(
        f"const field = document.querySelector('[data-filter={name}]'); field.value = {json.dumps(value)};"
        "field.dispatchEvent(new Event('input'))"
    )


@pytest.mark.slow
def test_browser_when_it_opens_the_report_then_episodes_are_played_out_and_nothing_overflows(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    main([str(run), "--out", str(out)])
    with open_browser() as browser:
        browser.command("POST", "window/rect", {"width": 420, "height": 900})
        browser.open(out.as_uri())
        browser.find(".says.model")
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        assert len(browser.find_all(".token.s0, .token.s1, .token.s2, .token.s3, .token.s4, .token.s5")) > 6
        assert "trained tokens" in browser.find(".says.model").text()
        browser.run(
            "const all = [...document.querySelectorAll('.list button')];"
            "all.find((b) => b.title.includes('<script>')).click();"
        )
        browser.wait_until("return document.querySelector('.says.env').textContent.startsWith('<script>')")
        browser.run("document.querySelector('[data-view=exact]').click()")
        token = browser.find(".exact .token")
        token.click()
        assert "context, not trained on" in browser.find(".shades output").text()
        assert browser.title().startswith("tests.toy:ColourEnv")
        assert browser.run("return document.querySelectorAll('img').length") == 0
        printed = browser.command("POST", "print", {})
        assert len(printed) > 10_000  # a PDF, in base64


@pytest.mark.slow
def test_browser_when_asked_then_every_stored_episode_is_found_by_filter_and_by_text(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_INSIDE", 1000)  # pieces are loaded from beside the page
    out = tmp_path / "page #1.html"
    main([str(run), "--out", str(out)])
    entries = index_of(out.read_text())
    with open_browser() as browser:
        browser.open(out.as_uri())
        browser.find(".says.model")
        set_filter(browser, "source", "")
        browser.wait_until(f"return document.querySelector('.found').textContent.startsWith('{len(entries)} of')")
        set_filter(browser, "low", "0.5")
        wins = sum(entry["reward"] >= 0.5 for entry in entries)
        browser.wait_until(f"return document.querySelector('.found').textContent.startsWith('{wins} of')")
        set_filter(browser, "category", "red")
        red = sum(entry["reward"] >= 0.5 and entry["category"] == "red" for entry in entries)
        browser.wait_until(f"return document.querySelector('.found').textContent.startsWith('{red} of')")
        for name in ("low", "category"):
            set_filter(browser, name, "")
        set_filter(browser, "text", "DOCUMENT.TITLE")
        browser.wait_until("return document.querySelector('.browser').dataset.searched === 'document.title'")
        assert found(browser).startswith("1 of")
        set_filter(browser, "text", "you see green")
        browser.wait_until("return document.querySelector('.browser').dataset.searched === 'you see green'")
        assert found(browser).startswith(f"{sum(entry['category'] == 'green' for entry in entries)} of")
        # Siblings of a group: their rewards, their advantages, their texts beside each other.
        set_filter(browser, "text", "")
        source = next(entry["source"] for entry in entries if entry["source"].startswith("step-"))
        set_filter(browser, "source", f"training batch {int(source.removeprefix('step-'))}")
        browser.wait_until("return document.querySelectorAll('.siblings button').length === 4")
        assert "advantage" in browser.find(".siblings button").text()
        browser.run("document.querySelector('[data-view=siblings]').click()")
        browser.wait_until("return document.querySelectorAll('.columns .column').length === 4")
        shutil.rmtree(tmp_path / "page #1-episodes")
        browser.open(out.as_uri())
        browser.wait_until("return document.querySelector('.episode').textContent.includes('belongs beside this page')")


@pytest.mark.slow
def test_browser_when_a_chart_is_zoomed_and_pointed_at_then_it_shows_a_part_and_tells_values(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    main([str(run), "--out", str(out)])
    with open_browser() as browser:
        browser.open(out.as_uri())
        browser.wait_until("return document.body.dataset.drawn === 'yes'")
        assert len(browser.find_all("figure.chart svg.marks")) == len(charts_of(out.read_text()))
        texts = "[...document.querySelector('.plot').querySelectorAll('text')].map((text) => text.textContent)"
        ticks = f"return {texts}.sort().join()"
        whole = browser.run(ticks)
        browser.find("[data-zoom='0.5']").click()
        browser.wait_until(f"{ticks} !== {json.dumps(whole)}")
        browser.find("[data-zoom='0']").click()
        browser.wait_until(f"{ticks} === {json.dumps(whole)}")
        box = browser.run(
            "const r = document.querySelector('.plot svg').getBoundingClientRect(); return [r.x, r.y + r.height / 2]"
        )
        for x in (box[0] + 150, box[0] + 160):
            browser.point(x, box[1])
        browser.wait_until(
            "return (document.querySelector('#vg-tooltip-element') || {}).textContent?.includes('training batch')"
        )
        assert not browser.errors()
