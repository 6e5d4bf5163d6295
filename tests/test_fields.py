"""Fields of other people's files: what they hold that is no text is joined, converted or refused, never its repr."""

import codecs
import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentrl.common.fields import fold, open_text, pick, text_of, texts_of
from agentrl.envs.env_errors import DataError
from agentrl.envs.math.problems import load_problems
from agentrl.envs.search_qa.questions import load_questions
from agentrl.retriever.passages import read_corpus
from agentrl.retriever.retrieval_errors import CorpusError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" a b ", "a b"),
        (None, ""),
        (float("nan"), ""),
        (float("inf"), ""),
        ([], ""),
        (7, "7"),
        (27.0, "27"),
        (1e-05, "0.00001"),
        (1e22, "10000000000000000000000"),
        (Decimal("2.50"), "2.50"),
        (datetime.date(1990, 5, 1), "1990-05-01"),
        (["a", None, ["b", float("nan"), 3.0]], "a b 3"),
        ({"text": "Who?", "tokens": ["Who"]}, "Who?"),
        ({"type": "text", "Text": "Who?"}, "Who?"),
        ([{"type": "text", "text": "Who"}, {"type": "text", "text": "is it?"}], "Who is it?"),
        ("['a', 'b']", "a b"),
        ('["a", "b"]', "a b"),
        ("[1, 2]", "[1, 2]"),
        ("(1, 2)", "(1, 2)"),
        (r"\{1, 2\}", r"\{1, 2\}"),
        ("[sic] it is [so]", "[sic] it is [so]"),
    ],
)
def test_text_of_when_a_field_is_no_text_then_it_is_joined_or_converted(value: Any, text: str) -> None:
    assert text_of(value) == text


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("Ann", ["Ann"]),
        (["Ann", None, "", float("nan"), 1990, ["Miss A"]], ["Ann", "1990", "Miss A"]),
        ("['Ann', \"Bo's\"]", ["Ann", "Bo's"]),
        ("['Ann' 'Bo']", ["Ann", "Bo"]),
        ("['Ann'\n 'Bo' 'Cy']", ["Ann", "Bo", "Cy"]),
        ("array(['Ann', 'Bo'], dtype=object)", ["Ann", "Bo"]),
        ("('Ann', 'Bo')", ["Ann", "Bo"]),
        ("[1990, '1991']", ["1990", "1991"]),
        ("['Ann', nan, None]", ["Ann"]),
        ("[]", []),
        ({"text": ["Ann", "Anne"], "answer_start": [3, 9]}, ["Ann", "Anne"]),
        ({"Value": "Ann", "Aliases": ["A", ["B"]], "MatchedWikiEntityName": "x"}, ["Ann", "A", "B"]),
        ("{'value': 'Ann', 'aliases': ['A']}", ["Ann", "A"]),
        ([{"answer": "Ann", "provenance": [{}]}, {"answer": "Bo"}], ["Ann", "Bo"]),
    ],
)
def test_texts_of_when_answers_come_in_other_forms_then_each_is_its_own(value: Any, texts: list[str]) -> None:
    assert texts_of(value) == texts


@pytest.mark.parametrize("value", [True, b"x", {"a": 1}, ["x", {}], object()])
def test_text_of_when_a_field_cannot_be_text_then_it_is_refused(value: Any) -> None:
    for read in (text_of, texts_of):
        with pytest.raises(TypeError, match="expected a text"):
            read(value)


def test_fold_when_names_differ_in_case_only_then_the_first_that_holds_something_counts() -> None:
    row = fold({"Body": None, "BODY": "b", "body": "c", " Question ": "q"})
    assert row == {"body": "b", "question": "q"}
    assert pick(row, ("text", "body")) == "b"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_open_text_when_the_file_has_a_byte_order_mark_then_reads_what_it_says(encoding: str, tmp_path: Path) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (tmp_path / "a.jsonl").write_bytes(mark + "größe 红".encode(encoding))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(mark + "größe 红".encode(encoding)))
    for name in ("a.jsonl", "a.jsonl.gz"):
        with open_text(tmp_path / name) as stream:
            assert stream.read() == "größe 红"


def question_of(tmp_path: Path, row: dict[str, Any], name: str = "q.jsonl") -> Any:
    (tmp_path / name).write_text(json.dumps(row), encoding="utf-8")
    (question,) = load_questions({"x": tmp_path / name}, split="test")
    return question


@pytest.mark.parametrize(
    ("row", "task", "text", "answers"),
    [
        ({"_id": 7.0, "Input": "Who?", "Target": ["Ann", None]}, "x/7", "Who?", ("Ann",)),
        ({"docid": "d1", "QUERY": "Who?", "Answers": "['Ann' 'Bo']"}, "x/d1", "Who?", ("Ann", "Bo")),
        ({"id": float("nan"), "content": ["Who", "is?"], "answer": 1990.0}, "x/0", "Who is?", ("1990",)),
        ({"id": 0, "question": {"text": "Who?"}, "answers": {"text": ["Ann"], "answer_start": [1]}},
         "x/0", "Who?", ("Ann",)),
        ({"id": "k", "input": "Who?", "output": [{"answer": "Ann"}, {"provenance": [], "answer": "Bo"}]},
         "x/k", "Who?", ("Ann", "Bo")),
        ({"id": "m", "question": "Who?", "answer": "Ann", "answer_aliases": "['A', 'B']"}, "x/m", "Who?",
         ("Ann", "A", "B")),
        ({"question": "Who?", "reward_model": json.dumps({"ground_truth": {"target": ["Ann", "Anne"]}})},
         "x/0", "Who?", ("Ann", "Anne")),
    ],
)  # fmt: skip
def test_questions_when_fields_and_names_are_foreign_then_nothing_is_lost_or_invented(
    tmp_path: Path, row: dict[str, Any], task: str, text: str, answers: tuple[str, ...]
) -> None:
    question = question_of(tmp_path, row)
    assert (question.task, question.text, question.golden_answers) == (task, text, answers)


@pytest.mark.parametrize(
    "row",
    [
        {"question": None, "answer": "a"},
        {"question": "q", "answer": float("nan")},
        {"question": "q", "answer": [None, ""]},
        {"question": "q", "answer": True},
        {"question": {"tokens": ["q"]}, "answer": "a"},
        {"question": "q", "answer": {"start": 3}},
    ],
)
def test_questions_when_a_row_has_no_text_or_answer_then_refused_by_its_number(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="row 0"):
        question_of(tmp_path, row)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_when_they_begin_with_a_byte_order_mark_then_are_read(tmp_path: Path, encoding: str) -> None:
    row = {"id": "é", "question": "Wer?", "answer": "Jürgen", "contents": '"T"\nfür'}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding=encoding)
    assert load_questions({"x": path}, split="test")[0].golden_answers == ("Jürgen",)
    assert list(read_corpus(path)) == [("é", '"T"\nfür')]
    assert load_problems(str(path)).problems[0].answer == "Jürgen"
    (tmp_path / "a.json").write_text(json.dumps([row]), encoding=encoding)
    assert load_questions({"x": tmp_path / "a.json"}, split="test")[0].task == "x/é"
    assert load_problems(str(tmp_path / "a.json")).problems[0].id == "é"
    (tmp_path / "a.csv").write_text("Question,Answer\nWer?,Jürgen\n", encoding=encoding)
    assert load_questions({"x": tmp_path / "a.csv"}, split="test")[0].golden_answers == ("Jürgen",)


def test_corpus_when_marked_files_were_joined_then_every_line_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('\ufeff{"id": 1, "text": "a"}\n\ufeff{"id": 2, "text": "b"}\n', encoding="utf-8")
    assert list(read_corpus(tmp_path / "c.jsonl")) == [("1", "a"), ("2", "b")]


@pytest.mark.parametrize(
    ("row", "passage"),
    [
        ({"_id": "MED-1", "title": "T", "text": "a"}, ("MED-1", '"T"\na')),
        ({"docid": 12, "title": None, "text": "a"}, ("12", "a")),
        ({"docid": 12.0, "title": float("nan"), "content": "a"}, ("12", "a")),
        ({"ID": 0, "Title": "", "Text": "a"}, ("0", "a")),
        ({"id": None, "Contents": '"T"\na'}, ("0", '"T"\na')),
        ({"id": "w", "title": ["A", "B"], "text": ["One.", "Two.", None]}, ("w", '"A B"\nOne. Two.')),
        ({"id": "w", "contents": ['"T"', "One.", "Two."]}, ("w", '"T"\nOne.\nTwo.')),
        ({"pid": 3, "passage": "a"}, ("3", "a")),
    ],
)
def test_corpus_when_names_and_fields_are_foreign_then_ids_and_texts_are_kept(
    tmp_path: Path, row: dict[str, Any], passage: tuple[str, str]
) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    assert list(read_corpus(tmp_path / "c.jsonl")) == [passage]


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1, "title": "T", "text": None},
        {"id": 1, "contents": float("nan")},
        {"id": 1, "title": {"a": 1}, "text": "b"},
        {"id": True, "contents": "b"},
        {"id": 1, "text": [{"start": 3}]},
    ],
)
def test_corpus_when_a_passage_is_no_text_then_its_line_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    with pytest.raises(CorpusError, match="line 1"):
        list(read_corpus(tmp_path / "c.jsonl"))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"body": "Jo has 8 bats.", "question": "How many?", "answer": 8.0, "_id": "n1"},
         ("n1", "Jo has 8 bats.\nHow many?", "8")),
        ({"BODY": "Jo has 8 bats.", "QUESTION": "How many?", "ANSWER": "8 (bats)", "ID": 4},
         ("4", "Jo has 8 bats.\nHow many?", "8 (bats)")),
        ({"docid": "d", "input": "1 + 1", "target": 2}, ("d", "1 + 1", "2")),
        ({"problem": None, "question": ["What is", "1 + 1?"], "final_answer": "['$2$', '3']"},
         ("0", "What is 1 + 1?", "$2$, 3")),
        ({"prompt": "[{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'q'}]", "answer": "[0, 5]"},
         ("0", "q", "[0, 5]")),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant",
          "content": "a"}], "Reward_Model": {"ground_truth": 0.00001}}, ("0", "q", "0.00001")),
        ({"id": float("nan"), "problem": "q", "answer": 1}, ("0", "q", "1")),
    ],
)  # fmt: skip
def test_problems_when_names_and_fields_are_foreign_then_the_whole_problem_is_read(
    tmp_path: Path, row: dict[str, Any], problem: tuple[str, str, str]
) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    (read,), dropped = load_problems(str(tmp_path / "m.jsonl"))
    assert (read.id, read.problem, read.answer) == problem
    assert not dropped


def test_problems_when_a_question_is_an_object_then_its_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"problem": {"latex": "x"}, "answer": 1}))
    with pytest.raises(DataError, match="row 1: expected a text, got an object with latex"):
        load_problems(str(tmp_path / "m.jsonl"))
