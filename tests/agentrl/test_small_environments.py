"""The ten environments of the benchmark: what is possible and what chance brings, played; the table, and a real run."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.small_environments import ENVIRONMENTS, Offers, Price, SmallEnv, ToldTools, offers_worth
from benchmarks.ten_environments import Result, table, train


def play(env: SmallEnv, player: str, seed: int) -> float:
    wrapped = ToldTools(env) if isinstance(env, Price) else env
    wrapped.reset(seed=seed)
    total = 0.0
    while True:
        _, reward, terminated, truncated, _ = wrapped.step(getattr(env, player)())
        total += reward
        if terminated or truncated:
            return total


@pytest.mark.parametrize("made", ENVIRONMENTS, ids=lambda made: made.__name__)
@pytest.mark.parametrize(("player", "value"), [("_best", "possible"), ("_guess", "chance")])
def test_the_stated_value_when_a_player_plays_1500_episodes_then_it_is_met(
    made: type[SmallEnv], player: str, value: str
) -> None:
    env = made()
    rewards = np.array([play(env, player, seed) for seed in range(1500)])
    margin = 4 * rewards.std() / math.sqrt(len(rewards))
    assert abs(rewards.mean() - float(getattr(made, value))) <= margin + 1e-9


def test_offers_when_one_or_two_are_left_then_their_worth_is_3_5_and_4_25_pips() -> None:
    assert offers_worth(1) == 3.5
    assert offers_worth(2) == 4.25  # 4, 5, 6 are taken, else 3.5 is expected
    assert float(Offers.possible) == pytest.approx(0.82407, abs=1e-5)


@pytest.mark.parametrize("made", ENVIRONMENTS, ids=lambda made: made.__name__)
def test_any_text_when_said_then_the_environment_answers(made: type[SmallEnv]) -> None:
    for text in ("", "9" * 5000, "\x00", "take wait left 3 river"):
        env = made()
        env.reset(seed=1)
        assert 0 <= env.step(text)[1] <= 1


def test_the_table_when_one_seed_of_two_is_good_and_in_time_then_it_says_so() -> None:
    numbers = {"start": 0.1, "wall_s": 60.0, "episodes": 12800, "batches": 100, "cut_turns": 0.9}
    good = Result("Guess", 0, end=0.45, share=0.9, cpu_s=50.0, **numbers)
    late = Result("Guess", 1, end=0.41, share=0.82, cpu_s=301.0, **numbers)
    (*_, row) = table([good, late]).splitlines()
    assert row == "| Guess | 0.500 | 0.414 | 0.100 | 0.450, 0.410 | 86% | 1 of 2 | 12,800 | 301 | 60 |"


@pytest.mark.slow
def test_a_run_of_the_benchmark_when_short_then_its_figures_are_there(tmp_path: Path) -> None:
    words = ["--train.steps", "2", "--rollout.env_workers", "0", "--rollout.max_new_tokens", "4"]
    result = train("Price", 0, tmp_path / "run", [*words, "--warmstart.episodes", "20"])
    assert (result.batches, result.episodes) == (2, 256)
    assert 0 < result.cpu_s < 300
    assert "ToldTools" in (tmp_path / "run" / "config.json").read_text()
