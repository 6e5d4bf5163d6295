"""Why a run learns nothing: written-out records for the pure function, and a real short run for each finding."""

from pathlib import Path
from typing import Any

import pytest

from agentrl import train
from agentrl.config.read import build_config, load_config
from agentrl.config.schema import Config
from agentrl.errors import UserError
from agentrl.runs.diagnosis import Cause, findings
from agentrl.runs.folder import read_run
from agentrl.types import Metrics, Trajectory
from tests.agentrl.toy_runs import toy_run
from tests.toy import ColourEnv

PRETRAINED = {"model": {"path": "some/model"}}


def config(**tables: dict[str, Any]) -> Config:
    return build_config({"model": {"path": "tiny"}, **tables})


def batches(count: int, first: int = 1, **changes: Any) -> list[Metrics]:
    """Records of a healthy run: 128 episodes of 10 tokens a batch, all of them trained on, half of the groups mixed."""
    return [
        {
            "step": step, "kind": "train", "rollout/reward": 0.5, "rollout/reward_min": 0.0, "rollout/reward_max": 1.0,
            "rollout/success": 0.5, "rollout/invalid_actions": 0.1, "rollout/cut_turns": 0.2, "rollout/never_asked": 0,
            "rollout/longest_unasked": 0, "batch/mixed_groups": 8, "cost/episodes": 128 * step,
            "cost/generated_tokens": 1280 * step, "cost/trained_tokens": 640 * step,
            **{key.replace("__", "/"): value for key, value in changes.items()},
        }
        for step in range(first, first + count)
    ]  # fmt: skip


def same(reward: float, success: float, **changes: Any) -> dict[str, Any]:
    """What changes where all episodes of a batch get one reward."""
    ends = {"rollout__reward_min": reward, "rollout__reward_max": reward}
    return {
        "rollout__reward": reward, **ends, "rollout__success": success, "batch__mixed_groups": 0, **changes,
    }  # fmt: skip


def codes(found: list[Cause]) -> list[str]:
    return [finding.code for finding in found]


def test_a_run_when_healthy_then_there_is_nothing_to_tell() -> None:
    assert findings(batches(20), config()) == []
    assert findings([], config()) == []


@pytest.mark.parametrize(
    ("changes", "tables", "code", "said", "remedy"),
    [
        ({"rollout__cut_turns": 0.98}, {}, "cut_turns", "98% of the turns were cut at rollout.max_new_tokens", "short"),
        ({"rollout__cut_turns": 0.98}, PRETRAINED, "cut_turns", "98%", "Raise rollout.max_new_tokens"),
        (same(0.0, 0.0), {}, "cannot_start", "all 384 episodes got reward 0", "warmstart.episodes"),
        (same(-1.0, 0.0), {}, "cannot_start", "all 384 episodes got reward -1", "model.path"),
        (same(0.0, 0.0), {"warmstart": {"episodes": 9}}, "all_zero", "all 384 episodes got reward 0", "easier tasks"),
        (same(0.0, 0.0), PRETRAINED, "all_zero", "all 384 episodes got reward 0", "agentrl.play"),
        (same(1.0, 1.0), {}, "all_one", "all 384 episodes got reward 1", "harder tasks"),
        (same(0.5, 1.0), {}, "constant_reward", "all 384 episodes got reward 0.5", "env.reward"),
        ({"batch__mixed_groups": 0}, {}, "equal_groups", "the 8 episodes of each task", "rollout.temperature"),
        ({"rollout__invalid_actions": 0.995}, {}, "invalid_actions", "99.5% of the actions", "warmstart.episodes"),
        ({"rollout__invalid_actions": 1.0}, PRETRAINED, "invalid_actions", "100.0%", "env.system"),
        (
            {"rollout__never_asked": 32, "rollout__longest_unasked": 5000}, {},
            "long_prompt", "96 of 384 episodes were never asked: the first prompt has up to 5,000 tokens", "above 5,0",
        ),
        ({"cost__trained_tokens": 0}, {}, "no_trained_tokens", "none of 3,840 tokens was trained on", "advantage"),
        ({"learner__masked": 1.0}, {}, "no_trained_tokens", "masks left out 100% of the tokens", "loss.sequence_limit"),
    ],
)  # fmt: skip
def test_a_cause_when_it_holds_for_three_batches_then_it_is_told_with_numbers_and_remedy(
    changes: dict[str, Any], tables: dict[str, Any], code: str, said: str, remedy: str
) -> None:
    assert findings(batches(2, **changes), config(**tables)) == []
    (finding,) = findings(batches(3, **changes), config(**tables))
    assert (finding.code, finding.step) == (code, 3)
    assert said in finding.sentence
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout__cut_turns": 0.89}, {"rollout__invalid_actions": 0.98}, {"rollout__never_asked": 6},
        {"learner__masked": 0.98}, {"batch__mixed_groups": 1},
    ],
)  # fmt: skip
def test_a_number_when_just_within_its_limit_then_it_is_no_finding(changes: dict[str, Any]) -> None:
    assert findings(batches(3, **changes), config()) == []


def test_two_bad_batches_when_a_good_one_lies_between_then_they_are_no_finding() -> None:
    bad = same(0.0, 0.0)
    assert findings([*batches(2, **bad), *batches(1, 3), *batches(2, 4, **bad)], config()) == []


def test_a_finding_when_it_goes_on_then_it_is_told_once_and_what_is_new_stands_behind() -> None:
    first = batches(4, rollout__cut_turns=1.0)
    later = batches(3, 5, rollout__cut_turns=1.0, rollout__invalid_actions=1.0)
    assert codes(findings(first, config())) == ["cut_turns"]
    found = findings([*first, *later], config())
    assert [(finding.code, finding.step) for finding in found] == [("cut_turns", 3), ("invalid_actions", 7)]


def test_equal_groups_when_all_is_learned_then_they_are_no_finding_and_when_all_is_lost_they_are() -> None:
    assert findings([*batches(10), *batches(5, 11, **same(1.0, 1.0))], config()) == []
    (finding,) = findings([*batches(10), *batches(5, 11, **same(0.0, 0.0))], config())
    assert (finding.code, finding.step) == ("broke_down", 13)
    certain = {"batch__mixed_groups": 0, "rollout__success": 0.6}
    assert codes(findings([*batches(10), *batches(3, 11, **certain)], config())) == ["broke_down"]


def test_batches_when_small_then_as_many_are_looked_at_as_are_evidence() -> None:
    small = [{**record, "cost/episodes": 16 * record["step"]} for record in batches(7, **same(0.0, 0.0))]
    assert findings(small[:6], config()) == []
    (finding,) = findings(small, config())
    assert finding.sentence.startswith("batches 1 to 7: all 112 episodes got reward 0")


def test_records_when_older_than_the_bounds_of_rewards_then_the_mean_stands_for_them() -> None:
    old = [{k: v for k, v in r.items() if k[-4:] not in ("_min", "_max")} for r in batches(3, **same(0.0, 0.0))]
    assert codes(findings(old, config())) == ["cannot_start"]


@pytest.mark.parametrize(
    ("tables", "num_parameters", "told"),
    [
        ({"learner": {"lr": 1e-6}}, None, True),
        ({"learner": {"lr": 3e-5}}, None, False),
        ({}, None, False),
        ({**PRETRAINED, "learner": {"lr": 1e-3}}, None, False),  # who knows what is in the folder
        ({**PRETRAINED, "learner": {"lr": 1e-5}}, 135_000_000, False),
        ({**PRETRAINED}, None, False),
        ({**PRETRAINED, "learner": {"lr": 1e-3}}, 200_000, False),  # a tiny model's checkpoint
        ({**PRETRAINED}, 200_000, True),  # that trains at the rate of pretrained ones
        ({**PRETRAINED, "learner": {"lr": 1e-3}}, 500_000_000, True),
        ({"model": {"path": "some/model", "lora_rank": 8}, "learner": {"lr": 2e-4}}, 500_000_000, False),
        ({"model": {"path": "some/model", "lora_rank": 8}, "learner": {"lr": 2e-3}}, 500_000_000, True),
    ],
)
def test_a_learning_rate_when_it_is_one_of_another_size_of_model_then_it_is_told_at_once(
    tables: dict[str, Any], num_parameters: int | None, told: bool
) -> None:
    found = findings([], config(**tables), num_parameters=num_parameters)
    assert [(finding.code, finding.step) for finding in found] == [("learning_rate", 0)] * told


class Generous(ColourEnv):
    """Everything is right."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "Thank you.", 1.0, True, False, {}


class Indifferent(ColourEnv):
    """Everything is worth a half."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "Thank you.", 0.5, True, False, {}


class Moody(ColourEnv):
    """Worth something by its task."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "Thank you.", (1 + self.task) / 100, True, False, {}


class Hopeless(ColourEnv):
    """Nothing is right."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, _, done, cut, info = super().step(action)
        return observation, 0.0, done, cut, {**info, "success": False}


class Talkative(ColourEnv):
    """Says more than fits."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return "You see red. " * 100, super().reset(seed=seed, options=options)[1]


class WithTool(ColourEnv):
    """Has a tool."""

    def look(self) -> str:
        """Look around."""
        return "nothing"


def nothing(trajectory: Trajectory) -> float:
    """A reward that nobody gets."""
    return 0.0


def by_length(trajectory: Trajectory) -> float:
    """A reward that differs."""
    return float(len(trajectory.turns[0].action))


def short_run(folder: Path, env: str | list[dict[str, str]] = "tests.toy:ColourEnv", **changes: Any) -> list[Cause]:
    """Findings of a real run of three batches of 6 x 6 episodes, in one environment or a mixture."""
    overrides = {
        **({"env.id": env, "env.eval_split": "test"} if isinstance(env, str) else {}),
        "model.tiny.hidden_size": 32, "model.tiny.intermediate_size": 64,
        "model.tiny.num_heads": 2, "model.tiny.num_kv_heads": 1, "rollout.max_turns": 2, "rollout.max_new_tokens": 4,
        "rollout.max_context_tokens": 128, "rollout.env_workers": 0, "train.steps": 3, "train.groups_per_step": 6,
        "train.group_size": 6, "eval.tasks": 1, "checkpoint.every": 0, "tracking.divergence_every": 0,
        "tracking.trackers": [], "tracking.trajectories_every": 0, "warmstart.cache_dir": str(folder / "warmstart"),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }  # fmt: skip
    config = load_config({"env": env} if isinstance(env, list) else None, overrides)
    train.run(config, run_dir=folder / "run")
    record = read_run(folder / "run")
    return findings(record.records, record.config)


@pytest.mark.parametrize(
    ("env", "changes", "expected"),
    [
        ("tests.toy:ColourEnv", {"env__reward": f"{__name__}:nothing"}, {"cannot_start"}),
        (f"{__name__}:Hopeless", {"warmstart__episodes": 16}, {"all_zero"}),
        (f"{__name__}:Generous", {}, {"all_one"}),
        (f"{__name__}:Indifferent", {}, {"constant_reward"}),
        (f"{__name__}:Moody", {}, {"equal_groups"}),
        (f"{__name__}:Talkative", {}, {"long_prompt", "no_trained_tokens", "cannot_start"}),
        (
            "tests.toy:ColourEnv",
            {
                "env__reward": f"{__name__}:by_length",
                "rollout__max_new_tokens": 32,
                "loss__sequence_mask": "max",
                "loss__sequence_limit": 1e-30,
            },
            {"no_trained_tokens"},
        ),
        (
            "tests.toy:ColourEnv",
            {"env__reward": f"{__name__}:by_length", "learner__lr": 1e-6},
            {"learning_rate"},
        ),
    ],
    ids=["cannot_start", "all_zero", "all_one", "constant", "equal", "unasked", "masked", "rate"],
)
def test_a_real_run_when_something_keeps_it_from_learning_then_that_is_found(
    tmp_path: Path, env: str, changes: dict[str, Any], expected: set[str]
) -> None:
    assert set(codes(short_run(tmp_path, env, **changes))) - {"invalid_actions", "cut_turns"} == expected


def test_a_real_mixture_when_one_environment_teaches_nothing_then_that_one_is_found(tmp_path: Path) -> None:
    lively = {"id": "tests.toy:ColourEnv", "eval_split": "test", "reward": f"{__name__}:by_length"}
    found = codes(short_run(tmp_path, env=[lively, {"id": f"{__name__}:Hopeless", "eval_split": "test"}]))
    assert {code for code in found if "idle" in code} == {"idle_Hopeless"}


@pytest.mark.parametrize(
    ("success", "expected"), [((7 / 8, 1, 7 / 8), []), ((7 / 8, 7 / 8, 7 / 8), ["idle_ColourEnv"])]
)
def test_a_mixture_when_one_environment_is_solved_in_most_batches_then_it_is_not_called_idle(
    success: tuple[float, ...], expected: list[str]
) -> None:
    records = batches(3, **{"rollout__episodes__ColourEnv": 64, "batch__mixed_groups__ColourEnv": 0})
    for record, share in zip(records, success, strict=True):
        record["rollout/success/ColourEnv"] = share
    members = [{"id": "tests.toy:ColourEnv"}, {"id": f"{__name__}:Hopeless"}]
    assert codes(findings(records, config(env=members))) == expected


def test_a_real_run_when_no_answer_is_an_action_then_that_is_found(tmp_path: Path) -> None:
    changes = {"rollout__max_new_tokens": 1, "env__reward": f"{__name__}:by_length"}
    assert "invalid_actions" in codes(short_run(tmp_path, f"{__name__}:Deaf", **changes))


class Deaf(ColourEnv):
    """Understands nothing."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "What?", 0.0, True, False, {"is_valid_action": False}


@pytest.mark.slow
def test_a_real_run_when_it_learns_then_nothing_is_found(tmp_path: Path) -> None:
    record = read_run(toy_run(tmp_path / "run"))
    assert findings(record.records, record.config) == []
    assert record.batches[0]["rollout/reward_min"] == 0.0
    assert record.batches[0]["rollout/reward_max"] == 1.0


def test_tools_when_the_template_does_not_show_them_then_the_run_is_refused_before_its_first_batch(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"does not show tools.*Take a model whose template takes tools"):
        short_run(tmp_path, f"{__name__}:WithTool", env__format="agentrl.envs.tools:ToolCalls")


def test_a_checkpoint_of_a_tiny_model_when_trained_at_the_default_rate_then_its_size_tells(tmp_path: Path) -> None:
    short_run(tmp_path / "first", train__steps=0)
    start = tmp_path / "first" / "run" / "initial"
    short_run(tmp_path / "second", model__path=str(start))
    record = read_run(tmp_path / "second" / "run")
    assert "learning_rate" not in codes(findings(record.records, record.config))
    assert codes(findings(record.records, record.config, num_parameters=60_000))[0] == "learning_rate"
