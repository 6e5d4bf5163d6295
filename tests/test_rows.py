"""Data files as they lie about: one set of rows in every format gives the same questions, problems and passages."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from agentrl.common.extras import MissingExtraError
from agentrl.common.rows import ENDINGS, read_rows
from agentrl.envs.math.problems import load_problems
from agentrl.envs.search_qa.questions import load_questions
from agentrl.errors import UserError
from agentrl.retriever.passages import read_corpus

ROWS = [
    {"ID": "a", "Question": "What is 1,000 + 2; and why?\nSay.", "Answer": "1,002"},
    {"ID": "b", "Question": 'Who said "no"?\t', "Answer": "Zoë"},
]
PASSAGES = [  # the columns of passage retrieval's table of Wikipedia
    {"id": "w1", "text": "One; two.", "title": "A, B"},
    {"id": "w2", "text": '"Three"\tfour', "title": "Zoë"},
]
PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def table(rows: list[dict[str, str]], delimiter: str) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format of the file's ending."""
    kind = "." + path.name.split(".")[1].lower()
    if kind == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    text = {
        ".jsonl": lambda: "".join(f"{json.dumps(row)}\n" for row in rows),
        ".json": lambda: json.dumps({"version": 1, "DATA": rows, "names": []}),
        ".csv": lambda: table(rows, ","),
        ".tsv": lambda: table(rows, "\t"),
    }[kind]()
    path.write_bytes(PACKERS.get(path.suffix.lower(), bytes)(text.encode()))
    return path


@pytest.mark.parametrize("ending", [*ENDINGS, ".JSONL", ".CSV.GZ"])
def test_every_format_gives_the_same_problems_questions_and_passages(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"set{ending}", ROWS)
    problems, _ = load_problems(str(path))
    questions = load_questions({"set": path}, split="test")
    assert [(p.id, p.problem, p.answer) for p in problems] == [
        (row["ID"], row["Question"].strip(), row["Answer"]) for row in ROWS
    ]
    passages = read_corpus(write(tmp_path / f"corpus{ending}", PASSAGES))
    assert list(passages) == [("w1", '"A, B"\nOne; two.'), ("w2", '"Zoë"\n"Three"\tfour')]
    assert [(q.task, q.text, q.golden_answers) for q in questions] == [
        (f"set/{row['ID']}", row["Question"].strip(), (row["Answer"],)) for row in ROWS
    ]


def test_questions_of_a_parquet_file_keep_what_is_nested(tmp_path: Path) -> None:
    rows = [{
        "id": "t0", "question": "Who?", "data_source": "searchR1_hotpotqa",
        "reward_model": {"ground_truth": {"target": ["Ann", "A."]}, "style": "rule"},
        "supporting_facts": {"title": ["T", "U"], "sent_id": [0, 1]},
    }]  # fmt: skip
    (question,) = load_questions({"x": write(tmp_path / "train.parquet", rows)}, split="test")
    assert question.task == "hotpotqa/t0"
    assert question.golden_answers == ("Ann", "A.")
    assert question.supporting_titles == ("T", "U")


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", "a;b\n1;2,5\n", [{"a": "1", "b": "2,5"}]),  # as spreadsheets write it where the comma is decimal
        ("a.csv", "a\tb\n1\t2;5\n", [{"a": "1", "b": "2;5"}]),
        ("a.csv", "\ufeffa,b\r\n\r\n1,2,,\r\n", [{"a": "1", "b": "2"}]),
        ("a.csv", "a,b\n1\n", [{"a": "1"}]),
        ("a.csv", "", []),
        ("a.tsv", "who, then\twhen\n", [{"question": "who, then", "answer": "when"}]),
        ("a.json", '[{"a": 1}]', [{"a": 1}]),
        ("a.json", '{"rows": [{"a": 1}]}', [{"a": 1}]),
        ("a.json", '{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("a.jsonl", '{"a": 1}\n\n \n{"a": 2}', [{"a": 1}, {"a": 2}]),
    ],
)
def test_rows_of_files_that_differ_from_the_textbook(
    name: str, content: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, newline="")
    header = {"question"} if name == "a.tsv" else ()
    assert [row for _, row in read_rows(tmp_path / name, extra="math", header=header)] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "question,answer\nWho?,Ann\nWhen, and why?,now\n", r"a\.csv, row 2: expected 2 cells"),
        ("a.jsonl", '{"a": 1}\n3\n', "line 2: expected a JSON object, got int"),
        ("a.jsonl", '{"a": 1}\n{"a"', "line 2: expected a JSON object"),
        ("a.json", '{"a": [{}], "b": [{}]}', "list of objects"),
        ("a.json", "[1]", "list of objects"),
        ("a.json", "[1", "cannot be read as json"),
        ("a.json", '{"a": 1}\n{"a": ', "line 2: expected a JSON object"),
        ("a.csv.gz", "a,b\n", "cannot be read as csv"),
        ("a.parquet", "PAR1", "cannot be read as parquet"),
        ("a.xlsx", "PK", r"should end in one of \.jsonl"),
        ("a", "", r"should end in one of \.jsonl"),
    ],
)  # fmt: skip
def test_a_broken_file_is_told_with_its_place(name: str, content: str, message: str, tmp_path: Path) -> None:
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / name, extra="math"))


def test_parquet_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "q.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pyarrow.*\[search\]"):
        load_questions({"x": tmp_path / "q.parquet"}, split="test")
