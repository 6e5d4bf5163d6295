import json

import pytest

from agentrl.envs.search_qa.encyclopaedia import NUM_WORLDS, compact_world, full_encyclopaedia, main
from agentrl.envs.search_qa.scoring import normalize_answer
from agentrl.retriever.client import Client


def titles(passages):
    return {contents.split("\n")[0].strip('"') for _, contents in passages}


def all_worlds():
    yield "full", full_encyclopaedia()
    for split in NUM_WORLDS:
        for world in range(3):
            yield f"compact {split} {world}", compact_world(split, world)


def test_encyclopaedia_of_one_seed_is_always_the_same():
    again = full_encyclopaedia.__wrapped__(0)
    assert again == full_encyclopaedia(0)
    assert full_encyclopaedia.__wrapped__(1) != again


def test_every_chain_can_be_followed_and_ends_at_the_answer():
    for name, world in all_worlds():
        by_title = {c.split("\n")[0].strip('"'): c for _, c in world.passages}
        for questions in world.questions.values():
            for question in questions:
                known = question.text
                for title in question.supporting_titles:
                    assert title in known, (name, question)
                    known += "\n" + by_title[title]
                answer = question.golden_answers[0]
                assert answer in known or answer in ("yes", "no")


def test_no_question_is_answered_by_its_first_passage():
    for name, world in all_worlds():
        by_title = {c.split("\n")[0].strip('"'): c for _, c in world.passages}
        for questions in world.questions.values():
            for question in questions:
                assert len(question.supporting_titles) >= 2
                if question.kind != "comparison":
                    first = f" {normalize_answer(by_title[question.supporting_titles[0]])} "
                    assert f" {normalize_answer(question.golden_answers[0])} " not in first, (name, question)


def test_searching_for_the_question_itself_does_not_find_the_whole_chain():
    world = full_encyclopaedia()
    client, questions = Client.over_passages(world.passages), world.questions["test"]
    found = [{hit.title.strip('"') for hit in client.search([q.text], topk=3)[0]} for q in questions]
    complete = sum(set(q.supporting_titles) <= seen for q, seen in zip(questions, found, strict=True))
    assert complete / len(questions) < 0.02


def test_searching_for_a_title_finds_its_passage_first():
    for name, world in all_worlds():
        client = Client.over_passages(world.passages)
        for title in sorted(titles(world.passages)):
            assert client.search([title], topk=1)[0][0].title == f'"{title}"', (name, title)


def test_training_and_held_out_questions_share_no_entity():
    world = full_encyclopaedia()
    train, test = ({t for q in world.questions[s] for t in q.supporting_titles} for s in ("train", "test"))
    assert not train & test
    assert len(world.questions["train"]) > 2000
    assert len(world.questions["test"]) > 700
    # In the compact style names come back, facts do not: no held-out corpus equals a training one.
    corpora = {split: {compact_world(split, i).passages for i in range(n)} for split, n in NUM_WORLDS.items()}
    assert not corpora["train"] & corpora["test"]


def test_comparisons_are_balanced():
    answers = [q.golden_answers[0] for q in full_encyclopaedia().questions["train"] if "same town" in q.text]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_command_writes_a_corpus_and_questions_that_can_be_read_again(tmp_path, capsys):
    from agentrl.envs.search_qa.questions import load_questions
    from agentrl.retriever.passages import read_corpus

    assert main([str(tmp_path)]) == 0
    assert "880 passages" in capsys.readouterr().err
    assert list(read_corpus(tmp_path / "corpus.jsonl")) == list(full_encyclopaedia().passages)
    read = load_questions({"generated": str(tmp_path / "questions_{split}.jsonl")}, split="test")
    written = full_encyclopaedia().questions["test"]
    assert [(q.text, q.golden_answers, q.supporting_titles) for q in read] == [
        (q.text, q.golden_answers, q.supporting_titles) for q in written
    ]
    assert json.loads((tmp_path / "corpus.jsonl").read_text().splitlines()[0])["id"] == "0"


@pytest.mark.parametrize("split", NUM_WORLDS)
def test_compact_passages_are_short_and_use_few_words(split):
    words: set[str] = set()
    for world in range(NUM_WORLDS[split]):
        for _, contents in compact_world(split, world).passages:
            assert len(contents.split()) <= 12
            words |= set(contents.replace('"', " ").split())
    assert len(words) < 130
