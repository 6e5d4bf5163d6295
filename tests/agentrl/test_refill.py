"""Batches that are filled up with groups that teach, tasks of a middling difficulty, and groups to spare."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import train
from agentrl.build import make_environments
from agentrl.command.guard import main_guard
from agentrl.config.read import load_config
from agentrl.config.schema import Config
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import EnvironmentSpec
from agentrl.envs.spaces import FreeText
from agentrl.errors import ConfigError, UserError
from agentrl.model.processes import ALONE, Processes
from agentrl.rollout.ahead import BatchStream
from agentrl.rollout.quota import GroupsInPlay, Quota
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.rollout.tasks import MixedSampler, TaskSampler
from agentrl.runs.checkpoint import newest_checkpoint
from agentrl.runs.folder import read_metrics
from agentrl.runs.ready_batch import read_batch, write_batch
from agentrl.types import Group, Status, Task, Trajectory, Turn
from tests.agentrl.helpers import TOY, tiny_policy, toy_config, toy_rollout
from tests.agentrl.processes import together
from tests.toy import SMALL_CONFIG, TRAINING, ColourEnv, WaitingEnv

MODULE, TOKENIZER = tiny_policy()


def episode(
    position: int, member: int, *, reward: float, success: bool = False, own: float | None = None
) -> Trajectory:
    """An episode that the environment gave `reward` and, where one is named, a function of one's own `own`."""
    turns = [Turn(0, 0, 1, "", "", reward if own is None else own)]
    rewards = {} if own is None else {"environment": reward, "mine": own}
    task = Task(TOY, "train", 0, position, position)
    return Trajectory(task, member, [], turns, "", Status.TERMINATED, success=success, rewards=rewards)


def group(*episodes: Trajectory) -> Group:
    return Group(episodes[0].task, list(episodes))


def test_outcomes_differ_in_success_or_in_what_the_environment_gave_and_never_by_a_reward_of_ones_own() -> None:
    pair = [episode(0, 0, reward=1.0), episode(0, 1, reward=1.0)]
    assert not group(*pair).outcomes_differ
    assert group(pair[0], episode(0, 1, reward=0.5)).outcomes_differ
    assert group(pair[0], episode(0, 1, reward=1.0, success=True)).outcomes_differ
    shaped = [episode(0, m, reward=1.0, own=value) for m, value in enumerate((0.2, 0.9))]
    assert np.ptp(group(*shaped).rewards) > 0
    assert not group(*shaped).outcomes_differ
    assert group(shaped[0], episode(0, 1, reward=0.0, own=0.2)).outcomes_differ


def fill(differ: Sequence[bool], quota: Quota, *, order: random.Random) -> GroupsInPlay:
    """Play groups of two, of which `differ` says whether they differ, and which end in a random order."""
    tasks = [Task(TOY, "train", 0, position, position) for position in range(len(differ))]
    play = GroupsInPlay(tasks, group_size=2, quota=quota)
    running = list(play.begin())
    while running and not play.is_enough:
        number = running.pop(order.randrange(len(running)))
        for member in range(2):
            play.add(number, episode(number, member, reward=float(member and differ[number])))
        running += play.begin()
    return play


def positions(groups: Sequence[Group]) -> list[int]:
    return [group.task.position for group in groups]


def test_a_batch_is_refilled_by_hand() -> None:
    """D E D E E D ...: three that differ lie among the first six."""
    differ = [True, False, True, False, False, True, True, True]
    for seed in range(20):
        play = fill(differ, Quota(3, most=8, only_differing=True), order=random.Random(seed))
        assert positions(play.groups()) == [0, 1, 2, 3, 4, 5]
        assert (play.put_off(), play.num_left_out()) == ([], 0)
        bounded = fill(differ, Quota(3, most=4, only_differing=True), order=random.Random(seed))
        assert positions(bounded.groups()) == [0, 1, 2, 3]
        assert positions(fill(differ, Quota(3, most=8), order=random.Random(seed)).groups()) == [0, 1, 2]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 8), st.integers(0, 1 << 30))
def test_refilling_ends_with_the_first_task_behind_which_enough_groups_differ(
    differ: list[bool], wanted: int, seed: int
) -> None:
    """Whoever is faster: what is begun depends on the outcomes alone."""
    most = len(differ)
    played = positions(fill(differ, Quota(wanted, most=most, only_differing=True), order=random.Random(seed)).groups())
    counts = np.cumsum(differ)
    enough = np.flatnonzero(counts >= wanted)
    assert played == list(range(int(enough[0]) + 1 if len(enough) else most))


@given(
    st.lists(st.booleans(), min_size=12, max_size=12), st.integers(1, 4), st.integers(0, 3), st.booleans(),
    st.integers(0, 1 << 30),
)  # fmt: skip
def test_with_spare_groups_none_is_lost_and_at_most_the_spare_ones_are_put_off(
    differ: list[bool], wanted: int, spare: int, only: bool, seed: int
) -> None:
    play = fill(differ, Quota(wanted, spare, most=12, only_differing=only), order=random.Random(seed))
    groups, put_off = play.groups(), [task.position for task in play.put_off()]
    num_begun = len(groups) + len(put_off)
    assert sorted([*positions(groups), *put_off]) == list(range(num_begun))
    counting = [group for group in groups if group.outcomes_differ or not only]
    assert len(counting) == wanted or num_begun == 12
    assert len(put_off) <= spare
    assert {t.task.position for t in play.kept()} <= set(put_off)


def test_the_groups_that_are_whole_first_are_taken_by_hand() -> None:
    """Of 0 to 3 group 3 ends first, then 1; of group 0 one episode is over."""
    tasks = [Task(TOY, "train", 0, position, position) for position in range(6)]
    play = GroupsInPlay(tasks, group_size=2, quota=Quota(2, 2, most=4))
    assert list(play.begin()) == [0, 1, 2, 3]
    for number, member in ((3, 1), (0, 0), (3, 0), (1, 0)):
        play.add(number, episode(number, member, reward=0.0))
        assert not play.is_enough
    play.add(1, episode(1, 1, reward=0.0))
    assert play.is_enough
    assert list(play.begin()) == []
    assert positions(play.groups()) == [1, 3]
    assert [[t.member for t in g.trajectories] for g in play.groups()] == [[0, 1], [0, 1]]
    assert play.put_off() == [tasks[0], tasks[2]]
    assert [(t.task.position, t.member) for t in play.kept()] == [(0, 0)]


# the stream: real rollouts of the toy environment


class Parity(ColourEnv):
    """Won where both answers together are a multiple of four characters: about every fourth episode, by chance."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.heard = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.heard += len(action)
        observation, _, done, truncated, info = super().step(action)
        won = done and self.heard % 4 == 0
        return observation, float(won), done, truncated, {**info, "success": won}


def play_of(environment: type, config: Config, **options: Any) -> Rollout:
    """A rollout of one of the environments here."""
    rollout = toy_rollout(MODULE, TOKENIZER, config.rollout)
    spec = EnvironmentSpec(f"{__name__}:{environment.__name__}", "train", options)
    return Rollout(rollout.player.engine, rollout.chat, EnvPool(spec), config.rollout, seed=0)  # type: ignore[attr-defined]


def stream(*, processes: Processes = ALONE, rollout: Any = None, sampler: Any = None, **train_keys: Any) -> BatchStream:
    config = toy_config(train=train_keys)
    if rollout is None:
        rollout = play_of(Parity, config)
    indices = list(range(64))
    sampler = sampler or TaskSampler(TOY, "train", indices=indices, seed=0, band=config.train.difficulty_band)
    return BatchStream(rollout, sampler, config.train, processes=processes)


def next_batch(batches: BatchStream) -> RolloutBatch:
    batches.play()
    return batches.take(is_last=True)


def said(batch: RolloutBatch) -> list[Any]:
    return [
        (
            t.task.position,
            t.task.index,
            t.member,
            [row.ids.tolist() for row in t.rows],
            [row.logprobs.tolist() for row in t.rows],
        )
        for group in batch.groups
        for t in group.trajectories
    ]


def test_a_refilled_batch_holds_as_many_groups_that_differ_as_a_plain_one_has_groups() -> None:
    batches, first = stream(refill=16.0), 0
    num_further = 0
    for _ in range(3):
        batch = next_batch(batches)
        assert sum(group.outcomes_differ for group in batch.groups) == 4
        assert batch.groups[-1].outcomes_differ
        assert positions(batch.groups) == list(range(first, batches.sampler.position))
        num_further, first = num_further + len(batch.groups) - 4, batches.sampler.position
    assert num_further > 0
    bounded = next_batch(stream(refill=1.5))
    assert positions(bounded.groups) == list(range(6))


@pytest.mark.parametrize(
    "keys", [{"refill": 4.0}, {"refill": 4.0, "difficulty_band": [0.2, 0.8]}, {"difficulty_band": [0.2, 0.8]}],
    ids=["refill", "both", "band"],
)  # fmt: skip
def test_a_stream_that_is_saved_and_restored_goes_on_as_the_whole_one(keys: dict[str, Any], tmp_path: Path) -> None:
    whole = stream(**keys)
    batches = [said(next_batch(whole)) for _ in range(12)]
    first = stream(**keys)
    assert [said(next_batch(first)) for _ in range(6)] == batches[:6]
    state = first.state_dict()
    write_batch(tmp_path / "put_off.json", state["put_off"])
    state = {
        **state,
        "sampler": json.loads(json.dumps(state["sampler"])),
        "put_off": read_batch(tmp_path / "put_off.json"),
    }
    second = stream(**keys)
    second.load_state_dict(state)
    assert [said(next_batch(second)) for _ in range(6)] == batches[6:]


def test_several_processes_fill_their_shares_and_lose_no_task() -> None:
    def play(processes: Processes) -> list[tuple[list[int], int, list[int]]]:
        batches = stream(processes=processes, refill=3.0)
        found = []
        for number in range(4):
            batch = next_batch(batches)
            assert sum(g.outcomes_differ for g in batch.groups) == 2 or batch.num_begun == 6
            if number == 1:  # saved, and gone on with
                state = batches.state_dict()
                batches = stream(processes=processes, refill=3.0)
                batches.load_state_dict(state)
            found.append((positions(batch.groups), batches.sampler.position, [t.position for t in batches._put_off]))
        return found

    shares = together(2, play)
    played = sorted(position for share in shares for groups, _, _ in share for position in groups)
    waiting = [position for share in shares for position in share[-1][2]]
    assert shares[0][-1][1] == shares[1][-1][1] == max(played) + 1
    assert sorted([*played, *waiting]) == list(range(max(played) + 1))


def test_a_saved_stream_goes_on_with_another_number_of_processes() -> None:
    batches = stream(refill=4.0)
    batches.play()
    state = batches.state_dict()
    shares = []
    for rank in range(3):
        other = stream(processes=Processes(rank, 3), refill=4.0)
        other.load_state_dict(state)
        shares.append(positions(other.take(is_last=True).groups))
    everything = positions(batches.take(is_last=True).groups)
    assert shares == [everything[rank::3] for rank in range(3)]


# the difficulty band


def test_tasks_outside_of_the_band_are_passed_over_but_for_a_tenth() -> None:
    sampler = TaskSampler(TOY, "train", indices=list(range(100)), seed=3, band=(0.2, 0.8))
    assert sorted(task.index or 0 for task in sampler.take(100)) == list(range(100))
    sampler.learn({"": {index: (0.0, 0.5, 0.2, 1.0)[index % 4] for index in range(100)}})
    taken = sampler.take(1000)
    assert [task.position for task in taken] == list(range(100, 1100))
    outside = [task for task in taken if (task.index or 0) % 4 in (0, 3)]
    # as many lie outside of the band as inside, and a tenth of them is played: 1 of 11
    assert len(outside) / len(taken) == pytest.approx(1 / 11, abs=0.03)
    assert sampler.place - 100 == pytest.approx(2 * (1000 - len(outside)), rel=0.05)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
@settings(deadline=None)
def test_a_band_gives_the_same_tasks_in_any_portions_and_after_a_restart(portions: list[int], seed: int) -> None:
    def make() -> TaskSampler:
        return TaskSampler(TOY, "train", indices=list(range(10)), seed=seed, band=(0.1, 0.9))

    rates = {"": {0: 0.0, 3: 1.0, 4: 0.5}}
    whole, parts, taken = make(), make(), []
    for sampler in (whole, parts):
        sampler.learn(rates)
    for portion in portions:
        taken += parts.take(portion)
        state, parts = json.loads(json.dumps(parts.state_dict())), make()
        parts.load_state_dict(state)
    assert taken == whole.take(sum(portions))


def test_a_band_keeps_the_shares_of_a_mixture() -> None:
    def mixture() -> MixedSampler:
        indices = list(range(20))
        streams = {name: TaskSampler(name, "train", indices=indices, seed=0, band=(0.1, 0.9)) for name in ("a", "b")}
        return MixedSampler(streams, {"a": 2.0, "b": 1.0})

    mixed = mixture()
    mixed.learn({"a": dict.fromkeys(range(0, 20, 2), 1.0)})
    taken = mixed.take(90)
    assert [sum(task.environment == name for task in taken) for name in ("a", "b")] == [60, 30]
    other = mixture()
    other.load_state_dict(json.loads(json.dumps(mixed.state_dict())))
    assert other.take(30) == mixed.take(30)


def test_a_band_is_refused_where_it_falls_or_tasks_cannot_be_counted() -> None:
    with pytest.raises(ConfigError, match=r"train.difficulty_band must be \[lowest, highest\]"):
        load_config(None, ["--train.difficulty_band", "[0.9, 0.1]"])
    config = toy_config(env={"id": f"{__name__}:Uncounted"}, train={"difficulty_band": [0.1, 0.9]})
    with pytest.raises(UserError, match="does not enumerate its tasks"):
        make_environments(config, ALONE)


class Uncounted(gymnasium.Env[str, str]):
    """Nobody knows how many tasks there are."""

    observation_space = action_space = FreeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return "Say something.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", 0.0, True, False, {}


# groups to spare


class Counting(WaitingEnv):
    """Waits in the steps of one task, and counts the episodes that are begun."""

    num_resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        type(self).num_resets += 1
        return super().reset(seed=seed, options=options)


def test_a_slow_group_is_put_off_and_goes_on_in_the_next_batch_where_it_stood() -> None:
    tasks = TaskSampler(TOY, "train", indices=list(range(64)), seed=0).take(9)
    slow = tasks[1].index
    assert slow is not None
    config = toy_config(rollout={"spare_groups": 1})
    Counting.num_resets = 0
    plain = {row[:3]: row for row in said(play_of(Counting, config, slow_task=slow).play(tasks[:5], group_size=4))}
    assert Counting.num_resets == 5 * 4
    batches = stream(rollout=play_of(Counting, config, slow_task=slow), refill=None)
    first = next_batch(batches)
    assert positions(first.groups) == [0, 2, 3, 4]
    assert [task.position for task in first.put_off] == [1]
    assert Counting.num_resets == 10 * 4
    later: list[Any] = []
    for number in range(2):  # it may be over only just behind the others once more
        later += said(next_batch(batches))
        assert Counting.num_resets == (10 + 4 * (number + 1)) * 4, "what was put off was not begun again"
    again = [row for row in later if row[0] == 1]
    assert len(again) == 4
    for row in [*said(first), *again]:
        assert row[:4] == plain[row[:3]][:4]
        assert [np.allclose(a, b, atol=1e-5) for a, b in zip(row[4], plain[row[:3]][4], strict=True)]


def test_groups_to_spare_of_the_embedded_engine_come_in_an_order_of_ticks_and_all_once() -> None:
    config = toy_config(rollout={"spare_groups": 3})

    def play() -> list[list[Any]]:
        batches = stream(rollout=play_of(Parity, config))
        return [said(next_batch(batches)) for _ in range(6)]

    batches = play()
    assert play() == batches
    delivered = [row[0] for batch in batches for row in batch[::4]]
    assert len(set(delivered)) == len(delivered) == 24
    assert delivered != sorted(delivered)
    assert max(delivered) < 24 + 3


# whole runs

CONFIG = f"""{SMALL_CONFIG.replace(TOY, f"{__name__}:Parity")}
{TRAINING}steps = 6
refill = 2.5
difficulty_band = [0.1, 0.9]
[eval]
tasks = 8
[checkpoint]
every = 1
keep = 9
[tracking]
trackers = []
"""


def records(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(folder)]


@pytest.mark.parametrize("ahead", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_refilled_run_counts_every_rollout_and_ends_bit_identical_when_resumed(ahead: int, tmp_path: Path) -> None:
    path, whole, cut = (tmp_path / name for name in ("refill.toml", "whole", "cut"))
    path.write_text(CONFIG)
    words = [str(path), "--run-dir", str(whole), "--rollout.ahead", str(ahead), "--warmstart.cache_dir", str(tmp_path)]
    assert main_guard(lambda: train.main(words)) == 0
    steps = [record for record in records(whole) if record["kind"] == "train"]
    played = np.cumsum([record["batch/groups"] for record in steps])
    assert [record["cost/episodes"] for record in steps] == (4 * played).tolist()
    assert played[-1] > 24
    for record in steps:
        differing = record["batch/groups"] - record["batch/dropped_groups"]
        assert differing == 4 or record["batch/groups"] == 10
        lines = (whole / "trajectories" / f"step-{record['step']:06d}.jsonl").read_text().splitlines()
        assert len(lines) == 4 * record["batch/groups"]
    shutil.copytree(whole, cut)
    for step in (4, 5, 6):
        shutil.rmtree(cut / "checkpoints" / f"step-{step:06d}")
    assert newest_checkpoint(cut).name == "step-000003"
    assert main_guard(lambda: train.main(["--resume", str(cut)])) == 0
    assert records(cut) == records(whole)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_with_groups_to_spare_delivers_every_task_once_also_when_resumed(ahead: int, tmp_path: Path) -> None:
    path, whole, cut = (tmp_path / name for name in ("spare.toml", "whole", "cut"))
    plain = CONFIG.replace("refill = 2.5\ndifficulty_band = [0.1, 0.9]\n", "")
    path.write_text(plain.replace("\n[learner]", "spare_groups = 2\n[learner]"))
    words = [str(path), "--rollout.ahead", str(ahead), "--warmstart.cache_dir", str(tmp_path)]
    assert main_guard(lambda: train.main([*words, "--run-dir", str(whole)])) == 0
    shutil.copytree(whole, cut)
    for step in (4, 5, 6):
        shutil.rmtree(cut / "checkpoints" / f"step-{step:06d}")
    assert main_guard(lambda: train.main(["--resume", str(cut)])) == 0
    for folder in (whole, cut):
        steps = [record for record in records(folder) if record["kind"] == "train"]
        assert [record["cost/episodes"] for record in steps] == [16 * step for step in range(1, 7)]
        assert [record["rollout/groups_put_off"] for record in steps] == [2] * 6
        files = sorted((folder / "trajectories").glob("step-*.jsonl"))
        tasks = [json.loads(line)["task"]["position"] for file in files for line in file.read_text().splitlines()[::4]]
        assert len(set(tasks)) == len(tasks) == 24
        assert max(tasks) < 26
    if not ahead:
        assert main_guard(lambda: train.main([*words, "--run-dir", str(tmp_path / "again")])) == 0
        assert records(tmp_path / "again") == records(whole)


def test_a_run_of_an_earlier_version_that_dropped_equal_groups_is_read(tmp_path: Path) -> None:
    tree = toy_config().model_dump()
    del tree["train"]["refill"], tree["train"]["difficulty_band"]
    assert load_config({**tree, "advantage": {**tree["advantage"], "drop_equal": True}}).train.refill == 1.0
    assert load_config({**tree, "advantage": {**tree["advantage"], "drop_equal": False}}).train.refill is None


@pytest.mark.parametrize(("given", "factor"), [("true", 3.0), ("false", None), ("2.5", 2.5)])
def test_refill_may_be_switched_without_a_factor(given: str, factor: float | None) -> None:
    assert load_config(None, ["--train.refill", given]).train.refill == factor
