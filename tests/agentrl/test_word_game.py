"""The word game of the pretrained study: its rules, and how good its expert is."""

import pytest

from benchmarks.word_game import WORDS, HiddenWord


def test_words_are_in_alphabetical_order_and_different() -> None:
    assert list(WORDS) == sorted(set(WORDS))
    assert len(WORDS) == 150


def test_a_game_by_hand() -> None:
    env = HiddenWord(words=5, tries=3)
    text, info = env.reset(seed=0)
    words = text.split(": ")[1].split(". ")[0].split(", ")
    assert words == sorted(words)
    assert len(words) == 5
    assert info == {}
    env._hidden = words[2]
    assert env.step(words[0]) == (
        f"It comes after {words[0]}.", 0.0, False, False, {"success": False, "is_valid_action": True},
    )  # fmt: skip
    assert env.step("zebra")[::4] == ("That is none of the words.", {"success": False, "is_valid_action": False})
    assert env.step(f" {words[2].title()}.") == ("Found.", 1.0, True, False, {"success": True, "is_valid_action": True})
    env.reset(seed=0)
    env._hidden = words[1]
    told = f"It comes before {words[4]}."
    assert [env.step(words[4])[:3:2] for _ in range(3)] == [(told, False), (told, False), (told, True)]


@pytest.mark.parametrize(("blind_prob", "low", "high"), [(0.0, 1.0, 1.0), (0.8, 0.30, 0.43), (1.0, 0.24, 4 / 12)])
def test_the_expert_halves_what_is_left_or_guesses_blindly(blind_prob: float, low: float, high: float) -> None:
    env, wins = HiddenWord(blind_prob=blind_prob, expert="default"), 0.0
    for seed in range(500):
        _, info = env.reset(seed=seed)
        is_over = False
        while not is_over:
            _, reward, is_over, _, info = env.step(info["expert_action"])
        wins += reward
    assert low <= wins / 500 <= high
