"""Paired comparisons: numbers by hand, refusals with reasons, tables, the page, published numbers."""

import json
import math
from pathlib import Path

import pytest

from agentrl import compare, evaluate
from agentrl.command.guard import main_guard
from agentrl.common.intervals import wilson_interval
from agentrl.comparison.paired import newcombe_interval, paired_difference, sign_test
from agentrl.comparison.published import published_table, read_published
from agentrl.errors import UserError
from agentrl.evaluation.document import read_document

TOY = ["--env.id", "tests.toy:ColourEnv", "--env.eval_split", "test", "--rollout.max_turns", "2"]
TOY += ["--rollout.env_workers", "0", "--eval.tasks", "16"]


def test_a_paired_difference_counts_flips_and_has_the_interval_of_newcombe() -> None:
    pair = paired_difference([1, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 0, 1, 1, 1, 1, 0, 0, 1, 0])
    assert (pair.first, pair.second, pair.better, pair.worse, pair.count) == (0.3, 0.6, 4, 1, 10)
    assert pair.difference == pytest.approx(0.3)
    assert (pair.low, pair.high) == newcombe_interval(2, 4, 1, 3)
    # By hand: Wilson 6/10 -> [0.3127, 0.8318], 3/10 -> [0.1078, 0.6032]. ad - bc = 6 - 4 = 2 > 0, minus n/2 = 5 -> 0.
    # low = 0.3 - sqrt(0.2873^2 + 0.3032^2) = -0.1177; high = 0.3 + sqrt(0.2318^2 + 0.1922^2) = 0.6011
    assert pair.low == pytest.approx(-0.1177, abs=2e-4)
    assert pair.high == pytest.approx(0.6011, abs=2e-4)
    # sign test: 5 flips, at most 1 against: 2 (1 + 5) / 32
    assert pair.p_value == pytest.approx(0.375)


def test_a_negative_correlation_widens_the_interval_and_a_strong_positive_one_narrows_it() -> None:
    # 50 of 100 both: all alike -> phi = (2500 - 50) / 2500 = 0.98; all apart -> phi = -1
    low, high = wilson_interval(50, 100)
    half = (high - low) / 2
    alike, apart = newcombe_interval(50, 0, 0, 50), newcombe_interval(0, 50, 50, 0)
    assert alike[1] == pytest.approx(half * math.sqrt(2 - 2 * 0.98), abs=1e-9)
    assert apart[1] == pytest.approx(2 * half, abs=1e-9)
    assert alike[0] == pytest.approx(-alike[1])


def test_no_difference_still_has_a_width_and_several_samples_are_bootstrapped() -> None:
    same = paired_difference([1, 0, 1, 0], [1, 0, 1, 0])
    assert same.low < 0 < same.high
    assert same.p_value == 1.0
    shares = paired_difference([0.25, 0.5, 0.75, 0.0], [0.5, 0.75, 1.0, 0.25])
    assert (shares.low, shares.high) == (0.25, 0.25)  # every task by the same
    assert sign_test(0, 3) == 0.25
    with pytest.raises(ValueError, match="same tasks"):
        paired_difference([1], [1, 0])


@pytest.fixture
def results(tmp_path: Path) -> tuple[str, str]:
    for policy in ("random", "expert"):
        words = ["--policy", policy, *TOY, "--out", str(tmp_path / policy)]
        assert main_guard(lambda words=words: evaluate.main(words)) == 0
    return str(tmp_path / "random"), str(tmp_path / "expert")


def test_two_results_are_compared_in_the_terminal_as_markdown_and_as_a_page(
    results: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, text = tmp_path / "page.html", tmp_path / "tables.md"
    capsys.readouterr()
    assert main_guard(lambda: compare.main([*results, "--html", str(page), "--markdown", str(text)])) == 0
    printed = capsys.readouterr().out
    assert "B = expert against A = random" in printed
    first, second = (read_document(Path(folder)) for folder in results)
    wins = sum(task.samples[0].success for task in first.tasks)
    assert second.intervals["all"][0] == 1.0
    assert f"{16 - wins} / 0" in text.read_text()
    html = page.read_text()
    assert "You see blue." in html
    assert html.count("B better</summary>") == 16 - wins
    assert "http" not in html
    assert set(second.intervals) == {"all", "red", "green", "blue", "white"}


def test_what_cannot_be_compared_is_refused_with_every_reason(
    results: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(tmp_path / "other")
    words = ["--policy", "expert", *TOY, "--eval.tasks", "8", "--env.eval_split", "train", "--out", other]
    assert main_guard(lambda: evaluate.main(words)) == 0
    capsys.readouterr()
    assert main_guard(lambda: compare.main([results[0], other])) == 2
    told = capsys.readouterr().err
    assert "environment.split is 'test' in one and 'train' in the other" in told
    assert "different tasks: 16 and 8, of which 0 are the same" in told


def test_another_protocol_is_refused_unless_allowed_and_then_marked(
    results: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(tmp_path / "other")
    words = ["--policy", "expert", *TOY, "--rollout.max_new_tokens", "7", "--out", other]
    assert main_guard(lambda: evaluate.main(words)) == 0
    capsys.readouterr()
    assert main_guard(lambda: compare.main([results[0], other])) == 2
    assert "protocol.max_new_tokens is 4 in one and 7 in the other" in capsys.readouterr().err
    assert main_guard(lambda: compare.main([results[0], other, "--allow-other-protocol"])) == 0
    assert "OTHER PROTOCOL" in capsys.readouterr().out


def test_a_result_of_another_schema_or_none_is_told(results: tuple[str, str], tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    told = json.loads((Path(results[0]) / "result.json").read_text())
    old.write_text(json.dumps({**told, "schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        read_document(old)
    old.write_text(json.dumps({key: value for key, value in told.items() if key != "tasks"}))
    with pytest.raises(UserError, match="tasks: Field required"):
        read_document(old)
    with pytest.raises(UserError, match="cannot be read as a result"):
        read_document(tmp_path / "nothing.json")


def test_published_numbers_have_sources_and_are_marked_where_the_protocol_is_another(
    results: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = read_published()
    assert all(number.source and number.kind in ("paper", "cited", "thread") for number in numbers)
    gigpo = [n for n in numbers if (n.benchmark, n.method, n.kind) == ("alfworld", "GiGPO", "paper")]
    assert [n.value for n in gigpo] == [86.7, 90.8]
    measured = read_document(Path(results[0]))
    marked = published_table(numbers, "alfworld", [measured])
    assert all(row[3].endswith("≠") for row in marked.rows)
    capsys.readouterr()
    assert main_guard(lambda: compare.main(["--published", "bamboogle"])) == 0
    printed = capsys.readouterr().out
    assert "Claims of their authors" in printed
    with pytest.raises(UserError, match="nothing about 'chess'"):
        published_table(numbers, "chess", [])
