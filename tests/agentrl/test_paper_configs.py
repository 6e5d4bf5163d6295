"""The paper's runs: every config is complete, has the settings of appendix G.1, and prints its schedule offline."""

import re
from pathlib import Path

import pytest

from agentrl import train
from agentrl.command.guard import main_guard
from agentrl.config.read import load_config
from agentrl.config.schema import Config
from agentrl.dry_run.estimate import GPU, BatchSplit, Shape, batch_seconds
from agentrl.dry_run.schedule import model_shape
from agentrl.environment.pool import EnvironmentSpec

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "paper"
README = ROOT / "docs" / "scaling.md"
CONFIGS = sorted(FOLDER.glob("*.toml"))
MODELS = {"qwen3_4b": "Qwen/Qwen3-4B-Instruct-2507", "qwen2.5_7b": "Qwen/Qwen2.5-7B-Instruct"}
# Appendix G.1: prompts a batch, group, prompt + response tokens, steps, KL.
SETTINGS = {
    "math": (512, 16, 2048 + 4096, 1, 0.0),
    "alfworld": (16, 8, 8192 + 8192, 50, 0.001),
    "webshop": (32, 8, 4096 + 4096, 30, 0.001),
    "search_qa": (64, 8, 2048 + 8192, 10, 0.001),
}


def load(path: Path, *overrides: str) -> Config:
    return load_config(path, list(overrides))


def test_there_is_one_config_for_each_task_and_model() -> None:
    assert {path.stem for path in CONFIGS} == {f"{task}_{model}" for task in SETTINGS for model in MODELS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_the_papers_settings(path: Path) -> None:
    config = load(path)
    task, model = next((t, m) for t in SETTINGS for m in MODELS if path.stem == f"{t}_{m}")
    prompts, group, tokens, steps, kl = SETTINGS[task]
    assert config.model.path == MODELS[model]
    assert (config.train.groups_per_step, config.train.group_size) == (prompts, group)
    assert (config.rollout.max_context_tokens, config.rollout.max_turns) == (tokens, steps)
    assert (config.loss.kl_coef, config.learner.lr, config.rollout.temperature) == (kl, 1e-6, 0.7)
    assert (config.learner.max_reuse, config.gate.kind, config.gate.tau) == (4, "dgg", 0.1)
    assert config.learner.microbatch_tokens >= tokens
    assert config.loss.tis_cap == 2.0
    assert config.model.dtype == "mixed"
    EnvironmentSpec(config.env.id, config.env.split, config.env.options, config.env.format).constructor_options()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_arms_of_its_header_are_one_override_away(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    assert f"configs/paper/{path.name}" in header
    for words in ("--gate.tau", "--gate.kind fixed", "--gate.kind none"):
        assert words in header
    assert load(path, "--gate.tau", "0.5").gate.tau == 0.5
    single = load(path, "--gate.kind", "fixed").gate
    assert (single.kind, single.k) == ("fixed", 1)
    assert load(path, "--gate.kind", "none").gate.kind == "none"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_schedule_fits_the_papers_gpus(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "32" if path.stem.startswith("math") else "16")
    assert main_guard(lambda: train.main([str(path), "--dry-run"])) == 0
    out = capsys.readouterr().out
    for fact in ("rows per batch", "optimizer steps per batch", "1 .. 4", "activations", "key/value cache", "updates"):
        assert fact in out
    assert all(5 < gib < 75 for gib in phases(out)), out


def phases(out: str) -> list[float]:
    """GiB of update and rollout that a schedule prints."""
    lines = [line for line in out.splitlines() for phase in ("an update", "a rollout") if f"memory of {phase}" in line]
    assert len(lines) == 2
    return [float(line.split("│")[2].strip().removesuffix(" GiB")) for line in lines]


def test_the_readmes_commands_fit_their_gpus(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = README.read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if "-m agentrl.train configs/paper/" in line]
    worlds = [re.search(r"num_processes (\d+)|WORLD_SIZE=(\d+)", command) for command in commands]
    sizes = [next(filter(None, world.groups())) if world else "1" for world in worlds]
    assert sizes == ["1", "1", "8", "16", "16"], "one GPU, the same offloaded, one node, two nodes, the schedule of two"
    for command, size in zip(commands, sizes, strict=True):
        monkeypatch.setenv("WORLD_SIZE", size)
        words = command.split("-m agentrl.train ")[1].replace("--dry-run", "").split()
        assert main_guard(lambda words=words: train.main([str(ROOT / words[0]), *words[1:], "--dry-run"])) == 0
        assert all(gib < 75 for gib in phases(capsys.readouterr().out)), command


def test_the_docs_say_how_many_of_sixteen_gpus_learn_and_play() -> None:
    """learner : engines one step ahead, with single use and with all four, by the formula of `--dry-run`."""
    text = README.read_text()
    for path in CONFIGS:
        config = load(path)
        shape = Shape.of(model_shape(config))
        shares = []
        for updates in (1, 4):
            items = batch_seconds(shape, config, updates=updates, device=GPU, processes=16)
            learners, engines = BatchSplit.of(items).share(16)
            shares.append(f"{learners} : {engines}")
        row = f"| `{path.stem}` | {' | '.join(shares)} |"
        assert row in text, row
