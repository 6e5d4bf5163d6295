"""Problem files of the published formats, overlap, and the command line."""

import gzip
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentrl.common.extras import MissingExtraError
from agentrl.envs.env_errors import DataError
from agentrl.envs.math.__main__ import main
from agentrl.envs.math.overlap import exact_repeats, find_overlap, words
from agentrl.envs.math.problems import NAMED_DATA, answer_text, available_data, load_problems

# One row of each published format -> (question, answer, metadata).
PUBLISHED: dict[str, tuple[dict[str, Any], str, str, dict[str, Any]]] = {
    "math500": (
        {"problem": "Find $x$.", "solution": "...", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 3,
         "unique_id": "test/1"},
        "Find $x$.", r"\frac{1}{2}", {"subject": "Algebra", "level": 3},
    ),
    "aime24": ({"id": 60, "problem": "p", "solution": "s", "answer": "033", "question": "p"}, "p", "33", {}),
    "aime25": ({"question": "q", "answer": 70.0}, "q", "70", {}),
    "amc23": ({"id": 0, "problem": "p", "answer": 27.0, "url": "u", "question": "p"}, "p", "27", {}),
    "minerva": (
        {"problem": "p", "solution": r"first \boxed{\frac{1}{2}}", "type": "Astronomy", "idx": 0},
        "p", r"\frac{1}{2}", {"subject": "Astronomy"},
    ),
    "olympiadbench": (
        {"id": 1606, "subfield": "Algebra", "context": None, "question": "q", "solution": ["s"],
         "final_answer": ["$2$"], "is_multiple_answer": False, "unit": "%", "error": "1e-1"},
        "q", "$2$", {"subject": "Algebra"},
    ),
    "gsm8k": ({"question": "q", "answer": "It is <<24*50=1200>>1200.\n#### 1,200"}, "q", "1200", {}),
    "svamp": (
        {"Body": "Jo has 8 bats.", "Question": "How many?", "Answer": 8.0, "Type": "Addition", "ID": "chal-1"},
        "Jo has 8 bats.\nHow many?", "8", {"subject": "Addition"},
    ),
}  # fmt: skip


OTHER_OVERLAPS = [("aime25", 0, 21), ("olympiadbench", 0, 140), ("minerva", 0, 3), ("gsm8k", 0, 2)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_loader_when_given_a_published_format_then_reads_question_answer_and_description(name: str, tmp_path: Path):
    row, question, answer, metadata = PUBLISHED[name]
    write_jsonl(tmp_path / f"{NAMED_DATA[name]['test']}.jsonl", [row])
    (problem,), dropped = load_problems(name, data_dir=str(tmp_path))
    assert (problem.problem, problem.answer, problem.metadata, problem.source) == (question, answer, metadata, name)
    assert not dropped
    assert problem.tolerance == (0.1 if name == "olympiadbench" else None)


@pytest.mark.parametrize(
    ("name", "row", "answer"),
    [
        ("aime24", {"ID": "2024-I-1", "Problem": "p", "Solution": "s", "Answer": 25}, "25"),
        ("aime24", {"problem": "p", "solution": r"so \boxed{025}", "url": "u"}, "25"),
        ("aime25", {"problem_idx": 1, "problem": "p", "answer": r"336^\circ"}, "336"),
        ("aime25", {"problem": "p", "answer": "$204$"}, "204"),
        ("amc23", {"problem": "p", "answer": 0.5}, "0.5"),
        ("gsm8k", {"question": "q", "answer": "#### $1,000,000.50"}, "$1000000.50"),
        ("gsm8k", {"question": "q", "answer": "#### (1, 2)"}, "(1, 2)"),
        ("math500", {"problem": "p", "answer": r"Thus $\boxed{\frac{3}{4}}$."}, r"\frac{3}{4}"),
        ("math500", {"problem": "p", "gt_answer": "5"}, "5"),
    ],
)
def test_loader_when_copies_of_a_benchmark_differ_then_reads_the_same_answer(
    name: str, row: dict[str, Any], answer: str, tmp_path: Path
):
    write_jsonl(tmp_path / f"{NAMED_DATA[name]['test']}.jsonl", [row])
    (problem,), _ = load_problems(name, data_dir=str(tmp_path))
    assert (problem.problem, problem.answer) == (row.get("problem") or row.get("question") or row["Problem"], answer)


def test_loader_when_a_problem_has_several_subjects_then_names_them_all(tmp_path: Path):
    row = {"problem": "p", "answer": 1, "problem_type": ["Algebra", "Geometry"]}
    (problem,), _ = load_problems(str(write_jsonl(tmp_path / "hmmt.jsonl", [row])))
    assert problem.metadata == {"subject": "Algebra, Geometry"}


def test_loader_when_given_the_original_math_format_then_reads_level_and_boxed_solution(tmp_path: Path):
    row = {"problem": "p", "level": "Level 5", "type": "Geometry", "solution": r"Hence \boxed{7}."}
    (problem,), _ = load_problems(str(write_jsonl(tmp_path / "m.jsonl", [row])))
    assert (problem.answer, problem.metadata) == ("7", {"subject": "Geometry", "level": 5})


def test_loader_when_given_verls_format_then_reads_chat_and_ground_truth(tmp_path: Path):
    row = {"prompt": [{"role": "user", "content": "p"}], "reward_model": {"ground_truth": "34", "style": "rule"}}
    (problem,), _ = load_problems(str(write_jsonl(tmp_path / "dapo.jsonl", [row])))
    assert (problem.problem, problem.answer) == ("p", "34")


def test_loader_when_columns_are_named_then_reads_those(tmp_path: Path):
    path = write_jsonl(tmp_path / "own.jsonl", [{"frage": "q", "antwort": 1.5, "answer": "no"}])
    (problem,), _ = load_problems(str(path), question_column="frage", answer_column="antwort")
    assert (problem.problem, problem.answer, problem.id, problem.source) == ("q", "1.5", "0", "own")


def test_loader_when_rows_lack_an_answer_or_question_then_drops_and_counts_them(tmp_path: Path):
    rows = [
        {"problem": "a", "answer": "1", "difficulty": 2.0},
        {"problem": "b", "answer": None, "difficulty": 3.0},
        {"problem": "c", "answer": "", "difficulty": 3.0},
        {"problem": " ", "answer": "1", "difficulty": 3.0},
        {"problem": "d", "answer": "1", "difficulty": 0.0},
        {"problem": "e", "answer": float("nan"), "difficulty": 1.0},
    ]
    problems, dropped = load_problems(str(write_jsonl(tmp_path / "m.jsonl", rows)))
    assert [problem.problem for problem in problems] == ["a"]
    assert dropped == Counter({"no gold answer": 3, "no question": 1, "difficulty 0": 1})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  7 ", "7"),
        (7, "7"),
        (27.0, "27"),
        (2.5, "2.5"),
        (None, ""),
        (["$1$", "$2$"], "$1$, $2$"),
        (["3"], "3"),
        ([], ""),
    ],
)
def test_answer_text_when_cast_then_nothing_is_lost(value: Any, text: str):
    assert answer_text(value) == text


@pytest.mark.parametrize("value", [True, {"a": 1}, [["nested", {}]]])
def test_answer_text_when_it_is_no_answer_then_raises(value: Any):
    with pytest.raises(TypeError, match="expected an answer"):
        answer_text(value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"problem": "p", "answer": "1"}\n{"problem": ', r"line 2.*JSON object"),
        ("a.jsonl", "[1, 2]\n", r"line 1.*list"),
        ("a.jsonl", '{"x": 1, "answer": "1"}\n', r"row 1.*problem or question.*question_column"),
        ("a.jsonl", '{"problem": "p", "z": 1}\n', r"row 1.*answer_column"),
        ("a.jsonl", '{"problem": "p", "answer": true}\n', r"row 1.*bool"),
        ("a.jsonl", "", "holds no problem"),
        ("a.jsonl", '{"problem": "p", "answer": null}\n', "no gold answer"),
        ("a.txt", "x", r"\.jsonl"),
        ("a.json", "{", "cannot be read as json"),
        ("a.jsonl.xz", "not packed", "cannot be read"),
    ],
)
def test_loader_when_a_file_is_bad_then_says_where_and_what(tmp_path: Path, name: str, content: str, message: str):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_problems(str(path))


def test_loader_when_an_integer_benchmark_holds_another_answer_then_raises(tmp_path: Path):
    write_jsonl(tmp_path / "aime24.jsonl", [{"problem": "p", "answer": "70.5"}])
    with pytest.raises(DataError, match="integer"):
        load_problems("aime24", data_dir=str(tmp_path))


def test_loader_when_a_name_or_folder_is_unknown_then_names_the_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MATH_DATA", raising=False)
    with pytest.raises(DataError, match="math500"):
        load_problems("math5000")
    with pytest.raises(DataError, match="MATH_DATA"):
        load_problems("math500")
    with pytest.raises(DataError, match=r"Expected math500\.jsonl"):
        load_problems("math500", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="no 'train' split"):
        load_problems("math500", split="train", data_dir=str(tmp_path))


@pytest.mark.parametrize("ending", [".jsonl.xz", ".jsonl.gz", ".json"])
def test_loader_when_a_named_file_is_packed_then_finds_it(ending: str, tmp_path: Path):
    rows = [{"question": "line\u2028separator", "answer": "#### 3"}]
    text = json.dumps(rows) if ending == ".json" else json.dumps(rows[0], ensure_ascii=False) + "\n"
    data = text.encode()
    packed = {"": data, ".xz": lzma.compress(data), ".gz": gzip.compress(data)}["" if ending == ".json" else ending[6:]]
    (tmp_path / f"gsm8k_test{ending}").write_bytes(packed)
    (problem,), _ = load_problems("gsm8k", data_dir=str(tmp_path))
    assert problem.problem == "line\u2028separator"
    assert available_data("test", data_dir=str(tmp_path)) == ["gsm8k"]


def test_loader_when_given_parquet_then_reads_it_or_names_the_package(tmp_path: Path):
    path = tmp_path / "p.parquet"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(MissingExtraError, match="pyarrow"):
            load_problems(str(path))
        return
    parquet.write_table(pyarrow.table({"problem": ["p", "q"], "answer": ["1", None]}), path)
    problems, dropped = load_problems(str(path))
    assert [p.answer for p in problems] == ["1"]
    assert dropped.total() == 1
    path.write_bytes(b"not parquet")
    load_problems.cache_clear()
    with pytest.raises(DataError, match="Parquet"):
        load_problems(str(path))


def test_words_when_a_text_has_none_of_the_latin_ones_then_the_text_itself_counts():
    assert words("Find  $x+1$!") == ("find", "x", "1")
    assert words("求值  的") == ("求值 的",)
    assert words("求值") != words("求和")


def test_overlap_when_runs_are_shared_then_counts_problems_once():
    base = "one two three four five six seven eight nine ten eleven twelve thirteen"
    train = [f"{base} fourteen", "A  repeat, word for word!", "short one"]
    benchmark = [base, "a repeat word for word", "eight " + " ".join(base.split()[:8]), "unrelated words only here"]
    overlap = find_overlap(train, benchmark)
    assert overlap.exact == [1]
    assert overlap.train_exact == [1] == exact_repeats(train, benchmark)
    assert overlap.ngrams == {13: [0], 8: [0, 2]}


def test_command_when_checking_overlap_then_prints_counts_and_writes_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train = write_jsonl(tmp_path / "train.jsonl", [{"problem": "What is one plus one?", "answer": "2", "id": "t1"}])
    test = write_jsonl(tmp_path / "test.jsonl", [{"problem": "what is ONE plus one", "answer": "2", "id": "b1"}])
    out = tmp_path / "overlap.json"
    assert main(["overlap", str(train), str(test), "--json", str(out)]) == 0
    found = json.loads(out.read_text())[str(test)]
    assert found == {"num_problems": 1, "exact": ["b1"], "13-gram": [], "8-gram": [], "train_exact": ["train/t1"]}
    assert "exact" in capsys.readouterr().out


def test_command_when_checking_files_then_reports_drops_and_exit_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write_jsonl(tmp_path / "f.jsonl", [{"problem": "p", "answer": "2"}, {"problem": "q", "answer": None}])
    assert main(["check", str(path)]) == 0
    assert "1 problems (1 identical), 0 not accepted, 1 dropped" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err.startswith("error: There is no file")


@pytest.mark.parametrize(
    ("name", "split", "count", "dropped"),
    [
        ("math500", "test", 500, 0),
        ("aime25", "test", 30, 0),
        ("minerva", "test", 272, 0),
        ("olympiadbench", "test", 675, 0),
        ("gsm8k", "test", 1319, 0),
        ("gsm8k", "train", 7473, 0),
        ("math", "train", 7468, 6),
        ("math", "test", 500, 0),
        ("aime_1983_2023", "train", 975, 0),
    ],
)
def test_reference_data_when_loaded_then_has_the_published_rows_and_gold_equals_gold(
    reference_data: Path, name: str, split: str, count: int, dropped: int
):
    from agentrl.envs.math.verifier import verify

    problems, losses = load_problems(name, split=split, data_dir=str(reference_data / "math"))
    assert (len(problems), losses.total()) == (count, dropped)
    assert all(verify(p.answer, rf"\boxed{{{p.answer}}}", tolerance=p.tolerance).correct for p in problems)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math500", "minerva", "olympiadbench", "aime25", "gsm8k"])
def test_reference_gold_when_only_the_library_decides_then_equals_itself(reference_data: Path, name: str):
    pytest.importorskip("math_verify")
    assert main(["check", name, "--no-shortcut", "--data-dir", str(reference_data / "math")]) == 0


def test_reference_solutions_when_checked_against_their_answers_then_all_are_correct(reference_data: Path):
    from agentrl.common.rows import read_rows
    from agentrl.envs.math.verifier import verify

    rows = [row for _, row in read_rows(reference_data / "math" / "math500.jsonl", extra="math")]
    assert all(verify(row["answer"], row["solution"]).correct for row in rows)


def test_reference_answers_when_the_same_exam_comes_in_two_formats_then_are_equal(reference_data: Path):
    folder = reference_data / "math"
    one = load_problems("aime25", data_dir=str(folder)).problems
    other = load_problems(str(folder / "aime25_alt.jsonl")).problems
    assert [p.answer for p in one] == [p.answer for p in other]


@pytest.mark.parametrize(
    ("name", "exact", "eight"),
    [
        ("math500", 6, 216),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHER_OVERLAPS),
    ],
)
def test_reference_overlap_when_counted_then_matches_the_known_figures(
    reference_data: Path, name: str, exact: int, eight: int
):
    folder = str(reference_data / "math")
    train = [
        p.problem for n in ("math", "aime_1983_2023") for p in load_problems(n, split="train", data_dir=folder).problems
    ]
    overlap = find_overlap(train, [p.problem for p in load_problems(name, data_dir=folder).problems])
    assert (len(overlap.exact), len(overlap.ngrams[8])) == (exact, eight)
