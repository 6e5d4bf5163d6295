import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.common.intervals import wilson_interval
from agentrl.envs.search_qa.score_transcripts import main, mean_interval
from agentrl.envs.search_qa.scoring import (
    exact_match,
    f1_score,
    folded_exact_match,
    format_reward,
    has_valid_format,
    last_answer,
    normalize_answer,
    own_turns,
    verl_reward,
)

VALID = "<think>a</think><search>q</search>\n\n<information>Paris here</information>\n\n<think>b</think>"


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Beatles!", "beatles"),
        ("an  apple\ta day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("“Łódź”", "“łódź”"),  # ASCII only: typographic quotes and accents stay
        ("a.n", ""),
    ],
)
def test_normalize_answer_on_examples_gives_squads_form(text, normalized):
    assert normalize_answer(text) == normalized


def test_exact_match_counts_any_alias_and_nothing_else():
    assert exact_match("the King of England", ["George III", "King of England"])
    assert not exact_match("England", ["King of England"])
    assert not exact_match(None, ["none"])
    assert not exact_match("x", [])


def test_folded_exact_match_sees_through_accents_and_typography():
    assert not exact_match("Malgorzata–Brăila’s", ["Malgorzata-Braila's"])
    assert folded_exact_match("Malgorzata–Brăila’s", ["Malgorzata-Braila's"])


@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("George III", ["George III"], 1),
        ("King George", ["George III"], 0.5),
        ("a b c d", ["c d e f"], 4 / 7),  # "a" is an article: 3 and 4 tokens, 2 in common
        ("one", ["two", "one two"], 2 / 3),
        ("the", ["a"], 1),
        ("the", ["x"], 0),
        ("x", ["y"], 0),
        (None, ["y"], 0),
    ],
)
def test_f1_score_on_examples_computed_by_hand(prediction, gold, score):
    assert f1_score(prediction, gold) == pytest.approx(score)


@given(st.text(max_size=40), st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_f1_score_of_any_text_lies_between_exact_match_and_one(prediction, gold):
    assert float(exact_match(prediction, gold)) <= f1_score(prediction, gold) <= 1


def test_last_answer_looks_only_within_a_turn_and_takes_the_last():
    assert last_answer(["<answer> a </answer>", "<answer>b</answer> <answer>c</answer>"]) == "c"
    assert last_answer(["<answer>open", "close</answer>"]) is None
    assert last_answer(["<answer>open", "<answer>Paris</answer>"]) == "Paris"
    assert last_answer([]) is None


def test_response_without_an_answer_is_not_scored_as_the_prompts_example():
    assert last_answer(["I think it is Beijing."]) is None
    assert not exact_match(last_answer(["I give up"]), ["Beijing"])


def test_answer_inside_a_passage_does_not_count():
    response = "<search>q</search>\n<information>x <answer>Paris</answer></information>\nno idea"
    assert last_answer(own_turns(response)) is None


@pytest.mark.parametrize(
    ("response", "is_valid"),
    [
        (VALID + " <answer>Paris</answer>\n", True),
        ("<think>a</think>\n<answer>x</answer>", True),
        (VALID, False),
        (VALID + "<answer>Paris", False),
        (VALID + "so <answer>Paris</answer>", False),
        ("<answer>Paris</answer>", False),
        ("<think>a</think><answer>x</answer> more", False),
        ("<think>a</think><search>q</search><answer>x</answer>", False),
        ("<think>a<search>q</search></think><answer>x</answer>", False),
        ("", False),
    ],
)
def test_valid_format_is_the_state_machine_of_search_r1(response, is_valid):
    assert has_valid_format(response) is is_valid


def test_format_reward_has_the_five_levels_of_search_r1_v03():
    gold = ["Paris"]
    assert format_reward(VALID + "<answer>Paris</answer>", "Paris", gold) == 1.0
    assert format_reward("<answer>Paris</answer>", "Paris", gold) == 0.8
    assert format_reward(VALID + "<answer>Rome</answer>", "Rome", gold) == 0.2
    assert format_reward(VALID + "<answer>Rome</answer>", "Rome", gold, retrieval_score=0.1) == pytest.approx(0.3)
    assert format_reward("<answer>Rome</answer>", "Rome", gold) == 0.1
    assert format_reward("nothing", None, gold) == 0.0


def test_verl_reward_quarters_a_response_crowded_with_answer_tags():
    assert verl_reward(["<answer>x</answer>"], ["x"]) == 1
    assert verl_reward(["<answer>x</answer>" * 10], ["x"]) == 1
    assert verl_reward(["<answer>x</answer>" * 11], ["x"]) == 0.25
    assert verl_reward(["</answer>" * 11 + "<answer>x</answer>"], ["x"]) == 0.25
    assert verl_reward(["x"], ["x"]) == 0


def test_wilson_interval_matches_its_published_values():
    # Newcombe 1998, table I: 81 of 263 -> 0.2553 to 0.3662; 0 of 20 -> 0 to 0.1611.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert mean_interval([0.0, 1.0]) == pytest.approx((0.5 - 1.96 * 0.5, 0.5 + 1.96 * 0.5), abs=1e-3)


def test_evaluate_command_prints_each_data_set_with_its_interval(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"dataset": "nq", "golden_answers": ["x"], "response": "<answer>x</answer>"}\n'
        '{"dataset": "nq", "golden_answers": ["x"], "turns": ["<answer>y</answer>"]}\n'
        '{"dataset": "musique", "golden_answers": ["x"], "turns": []}\n'
    )
    assert main([str(path)]) == 0
    nq, musique, mean = capsys.readouterr().out.splitlines()[1:]
    assert nq.split()[:5] == ["nq", "2", "3610", "0.500", "[0.095,"]
    assert musique.split()[:4] == ["musique", "1", "2417", "0.000"]
    assert mean.split()[-1] == "0.250"
    path.write_text("{}\n")
    assert main([str(path)]) == 2
    assert "line 1: expected" in capsys.readouterr().err
