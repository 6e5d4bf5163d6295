import gzip
import json

import pytest

from agentrl.envs.env_errors import DataError
from agentrl.envs.search_qa.questions import Question, load_questions

HOTPOT = {
    "_id": "5a", "question": "Who?", "answer": "Ann", "type": "bridge", "level": "hard",
    "supporting_facts": [["A", 0], ["B", 1], ["A", 2]], "context": [["A", ["a", "b", "c"]], ["B", ["d", "e"]]],
}  # fmt: skip
MUSIQUE = {
    "id": "2hop__1_2", "question": "Who?", "answer": "Ann", "answer_aliases": ["Anne", "Ann"], "answerable": True,
    "paragraphs": [{"title": "A", "is_supporting": True}, {"title": "B", "is_supporting": False}],
}  # fmt: skip
TRIVIA = {"Value": "Ann", "Aliases": ["Ann", "Miss A"], "NormalizedAliases": ["ann", "miss a"], "Type": "x"}
TRIVIA_HF = {"value": "Ann", "aliases": ["Miss A"], "normalized_aliases": ["ann"]}
POPQA = 'id\tsubj\tpossible_answers\tquestion\n7\tX\t"[""politician"", ""leader""]"\tWhat is X?\n'
SEARCH_R1 = {"id": "t", "question": "who?", "data_source": "nq", "reward_model": {"ground_truth": {"target": ["Ann"]}}}
ANN = ("Ann",)
PUBLISHED = {
    "hotpotqa.json": (json.dumps([HOTPOT]), Question("hotpotqa/5a", "Who?", ANN, "hotpotqa", "bridge", ("A", "B"))),
    "hotpotqa.jsonl": (
        json.dumps({**HOTPOT, "supporting_facts": {"title": ["A", "B"], "sent_id": [0, 1]}}),
        Question("hotpotqa/5a", "Who?", ANN, "hotpotqa", "bridge", ("A", "B")),
    ),
    "2wiki.json": (
        json.dumps([{**HOTPOT, "type": "comparison", "answer_id": "Q1", "evidences": [["A", "r", "B"]]}]),
        Question("2wikimultihopqa/5a", "Who?", ANN, "2wikimultihopqa", "comparison", ("A", "B")),
    ),
    "musique.jsonl": (
        json.dumps(MUSIQUE),
        Question("musique/2hop__1_2", "Who?", ("Ann", "Anne"), "musique", "", ("A",)),
    ),
    "bamboogle.csv": ("Question,Answer\nWho?,Ann\n", Question("bamboogle/0", "Who?", ANN, "bamboogle")),
    "bamboogle.jsonl": ('{"question": "Who?", "answer": "Ann"}', Question("bamboogle/0", "Who?", ANN, "bamboogle")),
    "nq.jsonl": ('{"question": "who", "answer": ["Ann", "Bo"]}', Question("nq/0", "who", ("Ann", "Bo"), "nq")),
    "nq.csv": ("who, then\t['Ann', 'Bo, Cy']\n", Question("nq/0", "who, then", ("Ann", "Bo, Cy"), "nq")),
    "nq.qas.csv": ("who\t['Ann', \"Bo's\"]\n", Question("nq/0", "who", ("Ann", "Bo's"), "nq")),
    "triviaqa.json": (
        json.dumps({"Data": [{"Question": "Who?", "QuestionId": "tc_1", "Answer": TRIVIA}]}),
        Question("triviaqa/tc_1", "Who?", ("Ann", "Miss A", "ann", "miss a"), "triviaqa"),
    ),
    "triviaqa.jsonl": (
        json.dumps({"question": "Who?", "question_id": "tc_1", "answer": TRIVIA_HF}),
        Question("triviaqa/tc_1", "Who?", ("Ann", "Miss A", "ann"), "triviaqa"),
    ),
    "triviaqa.verified.json": (
        json.dumps(
            {"Data": [{"Question": "Who?", "QuestionId": "q", "Answer": {**TRIVIA, "HumanAnswers": ["Annie"]}}]}
        ),
        Question("triviaqa/q", "Who?", ("Ann", "Miss A", "ann", "miss a", "Annie"), "triviaqa"),
    ),
    "popqa.tsv": (POPQA, Question("popqa/7", "What is X?", ("politician", "leader"), "popqa")),
    "flashrag.jsonl": (
        '{"id": "test_3", "question": "who", "golden_answers": ["Ann"], "metadata": {}}',
        Question("flashrag/test_3", "who", ANN, "flashrag"),
    ),
    "hotpotqa.flashrag.jsonl": (
        json.dumps(
            {
                "id": "dev_0",
                "question": "Who?",
                "golden_answers": ["Ann"],
                "metadata": {"type": "bridge", "supporting_facts": {"title": ["A", "B", "A"], "sent_id": [0, 1, 2]}},
            }
        ),
        Question("hotpotqa/dev_0", "Who?", ANN, "hotpotqa", "bridge", ("A", "B")),
    ),
    "bom.csv": ("\ufeffQuestion,Answer\nWho?,Ann\n", Question("bom/0", "Who?", ANN, "bom")),
    "musique.null.jsonl": (
        json.dumps(
            {"id": "1", "question": "Who?", "golden_answers": ["Ann"], "answer_aliases": None, "metadata": None}
        ),
        Question("musique/1", "Who?", ANN, "musique"),
    ),
    "verl.jsonl": (
        json.dumps({**SEARCH_R1, "data_source": "searchR1_2wikimultihopqa"}),
        Question("2wikimultihopqa/t", "who?", ANN, "2wikimultihopqa"),
    ),
    "search_r1.jsonl": (json.dumps(SEARCH_R1), Question("nq/t", "who?", ANN, "nq")),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_load_questions_in_a_published_format_reads_all_it_says(name, tmp_path):
    content, expected = PUBLISHED[name]
    (tmp_path / name).write_text(content)
    assert load_questions({name.partition(".")[0]: tmp_path / name}, split="test") == (expected,)


def test_load_questions_from_a_compressed_file_reads_the_same(tmp_path):
    path = tmp_path / "nq.jsonl.gz"
    with gzip.open(path, "wt") as stream:
        stream.write(PUBLISHED["nq.jsonl"][0])
    assert load_questions({"nq": path}, split="test") == (PUBLISHED["nq.jsonl"][1],)


def test_answer_that_only_looks_like_a_list_stays_one_answer(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "q", "answer": "[sic] and [not a list]"}')
    assert load_questions({"x": tmp_path / "q.jsonl"}, split="test")[0].golden_answers == ("[sic] and [not a list]",)


def write_questions(path, numbers):
    path.write_text("".join(json.dumps({"question": f"q {i}", "answer": "a"}) + "\n" for i in numbers))


def test_split_in_the_name_reads_one_file_per_split(tmp_path):
    for split, numbers in (("train", range(3)), ("dev", range(3, 5))):
        write_questions(tmp_path / f"nq_{split}.jsonl", numbers)
    files = {"nq": str(tmp_path / "nq_{split}.jsonl")}
    assert [q.text for q in load_questions(files, split="dev")] == ["q 3", "q 4"]
    assert len(load_questions(files, split="train")) == 3
    with pytest.raises(DataError, match=r"no question file at .*nq_test"):
        load_questions(files, split="test")


def test_one_file_for_all_splits_is_divided_or_refused(tmp_path):
    path = tmp_path / "nq.jsonl"
    write_questions(path, range(400))
    with pytest.raises(DataError, match="same file for training and evaluation"):
        load_questions({"nq": path}, split="train")
    train = {q.text for q in load_questions({"nq": path}, split="train", holdout=0.25)}
    test = {q.text for q in load_questions({"nq": path}, split="test", holdout=0.25)}
    assert not train & test
    assert len(train | test) == 400
    assert 70 <= len(test) <= 130
    assert len(load_questions({"nq": path}, split="test")) == 400


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("q.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q"}', "row 1"),
        ("q.jsonl", '{"question": " ", "answer": "a"}', "row 0"),
        ("q.jsonl", '{"question": "q", "answer": []}', "row 0"),
        ("q.jsonl", '{"question"', "line 1"),
        ("q.jsonl", "3", "line 1"),
        ("q.json", '{"data": []}', "no questions"),
        ("q.json", "3", "list of objects"),
        ("q.json", '{"Data": 3}', "list of objects"),
        ("q.json.gz", "no gzip", "cannot be read"),
        ("q.csv", 'Question,Answer\n"Who?', "row 0"),
        ("q.parquet", "x", "Parquet"),
        ("q.jsonl", "", "no questions"),
    ],
)
def test_load_questions_from_a_bad_file_says_what_was_expected(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        load_questions({"x": tmp_path / name}, split="test")


def test_load_questions_from_the_reference_files_reads_every_row(reference_data):
    folder = reference_data / "search_qa"
    expected = {
        "hotpotqa_dev_qa.jsonl.xz": 7232,
        "hotpotqa_dev_distractor.jsonl.xz": 400,
        "hotpotqa_train_distractor.jsonl": 80,
        "2wiki_train_supporting.jsonl.xz": 400,
        "musique_paragraphs.jsonl.xz": 160,
        "musique_train_paragraphs.jsonl": 80,
        "nq_test_qa.jsonl": 3410,
        "nq_test_sample.jsonl": 800,
        "bamboogle_test_qa.jsonl": 100,
        "questions.jsonl": 3329,
    }
    for name, count in expected.items():
        assert len(load_questions({"x": folder / name}, split="test")) == count
    with_titles = load_questions({"hotpotqa": folder / "hotpotqa_dev_distractor.jsonl.xz"}, split="test")
    assert all(q.supporting_titles for q in with_titles)
