"""Evaluation with several samples a task: the numbers, what they depend on, and what is stored."""

import json
from pathlib import Path

import pytest

from agentrl import evaluate
from agentrl.command.guard import main_guard
from agentrl.config.read import build_config, load_config
from agentrl.errors import UserError
from agentrl.evaluate import settle
from agentrl.evaluation.rates import Evaluation, rates_from_metrics
from agentrl.evaluation.samples import describe_sampling, problem_samples, sampling_line
from agentrl.runs.episodes import describe_trajectory
from agentrl.types import Status, Task, Trajectory, Turn

ROOT = Path(__file__).resolve().parents[2]


def trajectory(position: int, member: int, right: bool, **fields: object) -> Trajectory:
    turn = Turn(0, 0, 1, "text", "", float(right), finish="stop" if right else "length", is_valid=right)
    task = Task("bench", "test", 0, position, position)
    settings = {"success": right, "answer": "4" if right else None, "metadata": {"benchmark": "b"}, **fields}
    return Trajectory(task, member, [], [turn], "prompt", Status.TERMINATED, **settings)  # type: ignore[arg-type]


def test_evaluation_with_several_samples_has_intervals_over_problems_not_over_samples() -> None:
    # one problem always solved, one never: 16 of 32 samples, but only two problems
    played = [trajectory(p, m, p == 0, category=f"c{p}") for p in range(2) for m in range(16)]
    metrics = Evaluation(played, "test", 1.0, samples=16).metrics()
    assert metrics["eval/success"] == 0.5
    # Wilson's interval of 1 of 2: (1 +- z sqrt(1/(2 + z^2) )) / 2 with z^2 = 3.8415; of 1 of 1: from 1/(1 + z^2)
    half = (0.0945, 0.9055)
    assert (metrics["eval/success_low"], metrics["eval/success_high"]) == pytest.approx(half, abs=1e-4)
    assert (metrics["eval/tasks"], metrics["eval/samples"]) == (2, 16)
    assert metrics["eval/counts"] == {"c0": [16, 16], "c1": [0, 16], "all": [16, 32]}
    rates = rates_from_metrics(json.loads(json.dumps(metrics)))
    assert rates["all"].interval == pytest.approx(half, abs=1e-4)
    assert rates["c0"].interval == pytest.approx((0.2065, 1.0), abs=1e-4)


def test_samples_of_a_task_come_in_order_and_a_failed_one_counts_as_wrong() -> None:
    failed = Trajectory(Task("bench", "test", 0, 3, 3), 0, [], [], "", Status.FAILED)
    (problem,) = problem_samples([trajectory(3, 2, False), trajectory(3, 1, True, answer="5"), failed])
    assert problem.correct == (False, True, False)
    assert problem.answers == (None, "5", None)
    assert problem.labels == {"benchmark": "b"}


def test_checks_that_ran_out_of_time_are_counted_in_metrics_and_stored_with_samples() -> None:
    played = [trajectory(0, m, m > 1, verdict="library" if m else "timeout") for m in range(4)]
    assert Evaluation(played, "test", 1.0, samples=4).metrics()["eval/verdict_timeouts"] == 0
    played[0].num_verdict_timeouts = 1
    assert Evaluation(played, "test", 1.0, samples=4).metrics()["eval/verdict_timeouts"] == 1
    stored = [describe_trajectory(t, decode=None)["verdict"] for t in played]
    assert stored == ["timeout", "library", "library", "library"]
    described = describe_sampling(build_config({}), played, samples=4, scorer=None)
    assert described["timeouts"] == 1
    assert "timeouts 1" in sampling_line(described)
    silent = Evaluation([trajectory(0, 0, True)], "test", 1.0).metrics()
    assert "eval/verdict_timeouts" not in silent


def test_expert_evaluated_twice_a_problem_is_broken_down_and_every_sample_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--policy", "expert", "--env", "agentrl/Math-v0", "--env.expert=careful", "--env.num_problems", "10"]
    monkeypatch.chdir(tmp_path)
    assert main_guard(lambda: evaluate.main([*words, "--samples", "2"])) == 0
    printed = capsys.readouterr().out
    (out,) = Path("runs").iterdir()
    assert out.name.startswith("eval-expert-generated-2")
    assert f"result in {out};" in printed.replace("\n", " ")
    assert "mean@2" in printed
    assert "majority@2" in printed
    assert "samples 2, " in printed
    assert "template plain" in printed
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert sorted((s["task"]["position"], s["member"]) for s in samples) == [
        (p, m) for p in range(10) for m in range(2)
    ]
    assert all(s["success"] and s["answer"] in s["turns"][0]["action"] for s in samples)
    assert all(s["rows"][0]["ids"] for s in samples)
    assert (out / "tokenizer" / "tokenizer.json").is_file()
    result = json.loads((out / "result.json").read_text())
    assert result["accuracy"]["curriculum"]["mean"] == pytest.approx([1.0, 0.7225, 1.0], abs=1e-4)  # Wilson, 10 of 10
    assert result["accuracy"]["curriculum, level 3"]["problems"] == 2
    two_of_two = pytest.approx([1.0, 0.3424, 1.0], abs=1e-4)
    assert result["accuracy"]["curriculum, subject equation"]["pass@2"] == two_of_two
    assert result["sampling"]["samples"] == 2
    assert result["split"] == result["eval/split"] == "generated test"
    assert result["eval/data"] == {"kind": "generated", "count": 10, "sha256": None, "about": ""}


def test_what_nobody_sets_comes_from_the_benchmark() -> None:
    def settled(policy: str = "model", **tables: dict[str, object]) -> tuple[str, int | None]:
        config = settle(build_config({"env": {"id": "agentrl/Math-v0"}, **tables}), policy)
        return config.env.eval_split, config.eval.samples

    assert settled() == ("test", 16)
    assert settled("expert") == ("test", 1)
    assert settled(eval={"temperature": 0}) == ("test", 1)
    assert settled(eval={"samples": 4}, env={"id": "agentrl/Math-v0", "eval_split": "train"}) == ("train", 4)
    assert settled(env={"id": "tests.toy:ColourEnv"}) == ("valid_unseen", 1)
    with pytest.raises(UserError, match="greedy samples are all alike"):
        settled(eval={"samples": 4, "temperature": 0})


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/math_*.toml")), ids=lambda path: path.stem)
def test_math_configurations_are_complete(path: Path) -> None:
    config = load_config(path)
    assert (config.env.id, config.env.eval_split, config.rollout.max_turns) == ("agentrl/Math-v0", "test", 1)
    if "paper" in path.stem:
        assert (config.train.group_size, config.train.groups_per_step) == (16, 512)
        assert (config.rollout.max_new_tokens, config.rollout.max_context_tokens) == (4096, 2048 + 4096)
        assert (config.loss.kl_coef, config.rollout.temperature, config.learner.lr) == (0, 0.7, 1e-6)
        assert (config.eval.samples, config.learner.max_reuse, config.gate.kind) == (16, 4, "dgg")
