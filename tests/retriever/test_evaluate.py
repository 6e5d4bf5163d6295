import json

import pytest

from agentrl.retriever.build import build
from agentrl.retriever.evaluate import EvidenceQuestion, fold_title, main, recall_at
from agentrl.retriever.passages import Hit


def test_recall_counts_titles_among_the_first_k():
    question = EvidenceQuestion("x", "q", frozenset({fold_title("A"), fold_title("B")}))
    hits = [Hit("0", '"a"\ntext', 3.0), Hit("1", '"C"\ntext', 2.0), Hit("2", '"B"\ntext', 1.0)]
    assert recall_at([question], [hits], 1) == (0.5, 0.0)
    assert recall_at([question], [hits], 3) == (1.0, 1.0)
    assert recall_at([question, question], [hits, []], 3) == (0.5, 0.5)


def test_command_prints_recall_per_data_set(corpus, tmp_path, capsys):
    build(corpus, tmp_path / "out", index="bm25")
    path = tmp_path / "questions.jsonl"
    rows = [
        {"dataset": "a", "question": "dracula volume 11", "supporting_titles": ["Dracula 11"]},
        {"dataset": "b", "question": "emma volume 8", "supporting_titles": ["Emma 8", "No such title"]},
        {"dataset": "b", "question": "unknown titles are left out", "supporting_titles": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(tmp_path / "out"), str(path), "--topk", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["bm25", "a", "n", "1", "recall@1", "1.000", "(all", "1.000)"]
    assert lines[1].split() == ["bm25", "b", "n", "1", "recall@1", "0.500", "(all", "0.000)"]
    assert lines[2].split()[:6] == ["bm25", "all", "n", "2", "recall@1", "0.750"]


@pytest.mark.parametrize(("content", "reason"), [('{"question": "q"}\n', "no row with"), ("{\n", "Expecting")])
def test_command_with_questions_of_another_kind_explains_itself(corpus, tmp_path, capsys, content, reason):
    build(corpus, tmp_path / "out", index="bm25")
    (tmp_path / "q.jsonl").write_text(content)
    assert main([str(tmp_path / "out"), str(tmp_path / "q.jsonl")]) == 2
    assert reason in capsys.readouterr().err
