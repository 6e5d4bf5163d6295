"""Claims over a range of rates: judged by intervals that can be checked by hand; their table, map and page."""

from pathlib import Path

import numpy as np
import pytest

from agentrl.analysis.findings import at_least, holds_in
from agentrl.command.guard import main_guard
from agentrl.command.parsers import study_parser
from agentrl.study.__main__ import main, tables
from agentrl.study.claims import claims_table, rules_over_range
from agentrl.study.maps import stage_maps
from agentrl.study.page_tables import with_tables
from agentrl.study.pictures import draw_safe_regions
from agentrl.study.results import Results
from agentrl.study.tables import study_tables
from tests.agentrl.test_study import make_run, results_of

ROOT = Path(__file__).resolve().parents[2]
LOW, HIGH = 1e-3, 1e-2


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [(0.0, 0.1, "shown"), (-0.1, 0.0, "open"), (-0.2, -0.1, "refuted"), (-np.inf, np.inf, "open"), (0.0, 0.0, "shown")],
)
def test_a_limit_is_kept_where_the_whole_interval_keeps_it(low: float, high: float, finding: str) -> None:
    assert at_least(0, low=low, high=high) == finding


def test_a_claim_of_several_cases_is_shown_or_refuted_by_counting_the_certain_ones() -> None:
    assert holds_in(["shown", "shown", "shown", "refuted"], 3) == "shown"
    assert holds_in(["shown", "shown", "open", "refuted"], 3) == "open"
    assert holds_in(["shown", "shown", "refuted", "refuted"], 3) == "refuted"
    assert holds_in(["open"] * 4, 4) == "open"


def rise(level: float, *, at: int) -> list[float]:
    """From 20 % straight to a level at an evaluation, flat from there."""
    return [0.2 + (level - 0.2) * min(1.0, i / at) for i in range(12)]


def over_range(folder: Path, levels: dict[tuple[str, float], tuple[list[float], int]]) -> Results:
    """Two seeds of each arm at each rate: level by seed, and the evaluation at which it is reached."""
    runs = [
        make_run(arm, seed, rise(level, at=at), stage="robust", lr=lr)
        for (arm, lr), (own, at) in levels.items()
        for seed, level in enumerate(own)
    ]
    results = results_of(folder, runs)
    results.study["stages"] = {"robust": {"axes": {"learner.lr": [LOW, HIGH]}}}
    return results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Single use is best at the higher rate, where it reaches 60 and 62 % at evaluation 6."""
    return over_range(
        tmp_path,
        {
            ("single", LOW): ([0.40, 0.42], 6),
            ("single", HIGH): ([0.60, 0.62], 6),
            ("naive", LOW): ([0.65, 0.67], 3),  # +5 points on both seeds
            ("naive", HIGH): ([0.58, 0.64], 6),  # -2 and +2
            ("matched", LOW): ([0.62, 0.64], 3),
            ("matched", HIGH): ([0.60, 0.62], 3),
        },
    )


def test_rules_over_a_range_are_measured_against_single_use_at_its_best(results: Results) -> None:
    single, naive, matched = rules_over_range(results, "robust")
    assert [rule.arm for rule in (single, naive, matched)] == ["single", "naive", "matched"]
    assert naive.settings == ["lr 0.001", "lr 0.01"]
    assert naive.ends == pytest.approx([0.66, 0.61])
    assert [found.mean for found in naive.differences] == pytest.approx([0.05, 0.0])
    # two seeds, -2 and +2 points: deviation .0283, half of the interval 12.706 x .0283 / sqrt(2) = .254
    assert (naive.differences[1].low, naive.differences[1].high) == pytest.approx((-0.25412, 0.25412), abs=1e-5)
    assert naive.safe_at() == ["shown", "open"]
    assert (naive.is_safe, matched.is_safe) == ("open", "shown")
    assert single.lowest.mean == pytest.approx(-0.2)
    assert single.is_safe == "refuted"
    # 61 % at evaluation 6 against evaluation 3; and on a line to 63 % at 3: 3 x 41 / 43 = 2.86
    assert [found.value for found in matched.speedups] == pytest.approx([6 / (3 * 41 / 43), 2.0])
    assert matched.is_worthwhile == "shown"
    assert naive.is_worthwhile == "refuted"  # no sooner at the higher rate
    assert single.is_worthwhile == "refuted"


def test_controls_are_measured_against_single_use_of_the_stage_over_the_same_range(results: Results) -> None:
    """Not against single use of an earlier stage at one rate, were it better there."""
    axes = results.study["stages"]["robust"]["axes"]
    results.study["stages"] = {"main": {"axes": {"learner.lr": LOW}}, "robust": {"axes": axes}, "more": {"axes": axes}}
    results.runs += [make_run("single", seed, rise(0.9, at=6), lr=LOW) for seed in (0, 1)]
    for arm, ends in {"control": (0.65, 0.67), "other": (0.58, 0.64)}.items():
        results.study["arms"][arm] = {"label": arm}
        results.runs += [make_run(arm, seed, rise(end, at=6), stage="more", lr=LOW) for seed, end in enumerate(ends)]
    rules = rules_over_range(results, "more")
    assert [rule.lowest.mean for rule in rules] == pytest.approx([0.05, 0.0])
    (found,) = stage_maps(results, "more")
    assert [cell.difference and cell.difference.mean for cell in found.cells] == pytest.approx([0.0, 0.05])
    text = study_tables(results, source=Path("r.json"), stages=["more"])
    assert "| control | 66.0 (" in text
    assert "speedup over the best single-use setting measured before" in text
    assert results.reference_for("main") != results.reference_for("more") == results.best_reference("robust")


def test_words_may_stand_on_an_axis(results: Results) -> None:
    for run in results.runs:
        engine = "local" if run["axes"]["learner.lr"] == LOW else "a:B"
        run["axes"] = {"learner.max_reuse": 4, "rollout.engine": engine}
    results.study["stages"] = {"robust": {"axes": {"learner.max_reuse": 4, "rollout.engine": ["local", "a:B"]}}}
    single, *_ = stage_maps(results, "robust")
    assert [(cell.row, cell.column) for cell in single.cells] == [("4", "a:B"), ("4", "local")]
    assert rules_over_range(results, "robust")[0].settings == ["max_reuse 4, engine a:B", "max_reuse 4, engine local"]
    assert "| robust | engine local | engine a:B |" in study_tables(results, source=Path("r.json"))


def test_a_rule_that_was_not_measured_everywhere_is_open_unless_it_already_failed(tmp_path: Path) -> None:
    found = over_range(
        tmp_path,
        {
            ("single", HIGH): ([0.60, 0.62], 6),
            ("naive", LOW): ([0.65, 0.67], 3),
            ("matched", LOW): ([0.50, 0.52], 3),
        },
    )
    _, naive, matched = rules_over_range(found, "robust")
    assert (naive.is_safe, naive.is_worthwhile, matched.is_safe) == ("open", "open", "refuted")
    found.runs = [run for run in found.runs if run["arm"] != "single"]
    assert rules_over_range(found, "robust") == []


def test_the_table_of_claims_counts_tasks_and_takes_what_was_not_measured_as_open(
    results: Results, tmp_path: Path
) -> None:
    nothing = results_of(tmp_path, [])
    text = claims_table([results, results, results, nothing], "robust")
    assert "| **toy** (lr 0.001; lr 0.01; seeds 0, 1) | | | | | |" in text
    assert "| **toy** (not measured) | | | | | |" in text
    assert "| naive | 66.0 / 61.0 | +0.0 [-25.4, 25.4] | open |" in text
    assert "| matched | **open** (shown 3, refuted 0, open 1) | **shown** (shown 3, refuted 0, open 1) |" in text
    assert "| naive | **open** (shown 0, refuted 0, open 4) | **refuted** (shown 0, refuted 3, open 1) |" in text
    assert "| single use | **" not in text
    assert "on each of 4 tasks" in text
    assert "on each of" not in claims_table([results], "robust")


def test_the_map_of_a_range_has_rules_in_rows_and_outlines_what_is_shown_to_be_safe(
    results: Results, tmp_path: Path
) -> None:
    (found,) = stage_maps(results, "robust")
    assert {(cell.row, cell.column) for cell in found.cells if cell.is_safe} == {
        ("single use", "0.01"), ("naive", "0.001"), ("matched", "0.001"), ("matched", "0.01"),
    }  # fmt: skip
    draw_safe_regions([results], "robust", tmp_path / "robust.svg")
    text = (tmp_path / "robust.svg").read_text()
    assert all(f">{words}<" in text for words in ("matched", "66.0", "+5.0 [5.0, 5.0]", "0.01", "learner.lr"))


def test_a_page_keeps_its_words_and_gets_its_tables_from_the_marks() -> None:
    end = "<!-- study: end -->\n"
    page = f"# A\n<!-- study: a.json --stage main -->\nold\n{end}B\n<!-- study: b.json -->\n{end}"
    text = with_tables(page, lambda words: " ".join(words).upper())
    assert text == (
        "# A\n<!-- study: a.json --stage main -->\n\nA.JSON --STAGE MAIN\n\n<!-- study: end -->\nB\n"
        "<!-- study: b.json -->\n\nB.JSON\n\n<!-- study: end -->\n"
    )
    assert with_tables(text, lambda words: " ".join(words).upper()) == text


def test_the_command_renders_a_page_beside_its_results_and_refuses_what_is_not_there(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.write(tmp_path / "toy.json", command="x")
    page = tmp_path / "page.md"
    page.write_text("<!-- study: toy.json --claims robust -->\n<!-- study: end -->\n")
    assert main_guard(lambda: main(["--page", str(page)])) == 0
    assert claims_table([results], "robust") in page.read_text()
    page.write_text("no marks")
    assert main_guard(lambda: main(["--page", str(page)])) == 2
    assert "between which a table could go" in capsys.readouterr().err
    assert main_guard(lambda: main([str(tmp_path / "toy.json"), "--claims", "rates"])) == 2
    assert "no stage rates; there are robust" in capsys.readouterr().err
    assert main_guard(lambda: main(["--page", str(tmp_path / "none.md")])) == 2
    assert "none.md cannot be read as a page" in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_page_says_what_its_results_files_say() -> None:
    folder, parser = ROOT / "benchmarks" / "results", study_parser()
    page = (folder / "studies.md").read_text()

    def table(words: list[str]) -> str:
        options = parser.parse_args(words)
        if not all((folder / path).is_file() for path in options.study):
            return "*not measured yet*"
        return tables(options, folder)

    assert with_tables(page, table) == page
