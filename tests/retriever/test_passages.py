import bz2
import gzip
import json
import lzma

import pytest

from agentrl.retriever.passages import Hit, PassageFile, read_corpus, write_passages
from agentrl.retriever.retrieval_errors import CorpusError, IndexFolderError


def test_hit_title_and_text_split_at_the_first_line():
    hit = Hit("7", '"Moby Dick"\nCall me\nIshmael.', 1.5)
    assert (hit.title, hit.text) == ('"Moby Dick"', "Call me\nIshmael.")


def test_read_corpus_accepts_both_forms_and_compression(tmp_path):
    rows = [{"id": "x", "contents": '"A"\na'}, {"title": "B", "text": "b"}]
    path = tmp_path / "corpus.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write("\n".join(json.dumps(row) for row in rows))
    assert list(read_corpus(path)) == [("x", '"A"\na'), ("1", '"B"\nb')]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"id": "1"}', "expected an object"),
        ('{"contents": 3}', "expected an object"),
        ('{"contents": " \\n"}', "empty"),
        ('{"contents": "\\"\\"\\n"}', "empty"),
        ('{"contents": "\\"Emma\\"\\n "}', "empty"),
        ('{"title": "Emma", "text": ""}', "empty"),
        ('{"contents": "\\ud800"}', "surrogate"),
    ],
)
def test_read_corpus_with_a_bad_line_names_it(tmp_path, line, reason):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "0", "contents": "good"}\n' + line + "\n")
    with pytest.raises(CorpusError, match=f"line 2.*{reason}"):
        list(read_corpus(path))


def test_read_corpus_of_another_name_reads_json_lines(tmp_path):
    for name in ("corpus", "corpus.txt", "wiki.v2"):
        (tmp_path / name).write_text('{"id": "0", "contents": "good"}\n')
        assert list(read_corpus(tmp_path / name)) == [("0", "good")]


def test_read_corpus_without_a_file_says_what_is_expected(tmp_path):
    with pytest.raises(CorpusError, match="no corpus at"):
        list(read_corpus(tmp_path / "missing.jsonl"))


def test_write_passages_then_read_gives_them_back(tmp_path):
    passages = [(str(i), f'"Título {i}"\nline\n{"é" * i}') for i in range(100)]
    count, digest = write_passages(passages, tmp_path)
    stored = PassageFile(tmp_path)
    assert count == len(stored) == 100
    assert len(digest) == 64
    assert [stored[i] for i in range(100)] == passages
    with pytest.raises(IndexError):
        stored[100]


def test_passage_file_that_was_cut_short_is_refused(tmp_path):
    write_passages([("0", "some text"), ("1", "more text")], tmp_path)
    with (tmp_path / "passages.jsonl").open("r+b") as stream:
        stream.truncate(20)
    with pytest.raises(IndexFolderError, match="damaged"):
        PassageFile(tmp_path)


def test_read_corpus_with_a_byte_order_mark_or_of_single_lines_reads_them(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('\ufeff{"id": "0", "contents": "no title, only text"}\n', encoding="utf-8")
    assert list(read_corpus(path)) == [("0", "no title, only text")]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_read_corpus_that_is_damaged_names_the_file(tmp_path, suffix):
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix]
    path = tmp_path / f"corpus.jsonl{suffix}"
    with opener(path, "wt", encoding="utf-8") as stream:
        stream.write("".join(json.dumps({"contents": f"text {i * 7919}"}) + "\n" for i in range(2000)))
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[:middle] + bytes(64) + whole[middle + 64 :]):
        path.write_bytes(damaged)
        with pytest.raises(CorpusError, match=path.name):
            list(read_corpus(path))
