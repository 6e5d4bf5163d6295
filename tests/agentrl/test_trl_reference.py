"""Losses and advantages equal those of TRL 1.16's own trainer on the same tensors.

Runs where trl is installed beside agentrl: pip install "trl==1.16.*" datasets; make test-all skips it elsewhere.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentrl.learner.advantage import dr_grpo, grpo
from agentrl.learner.batch import Batch, BatchRow
from agentrl.learner.learner import TorchLearner
from agentrl.learner.losses.token_loss import mismatch_weights
from tests.agentrl.helpers import tiny_policy, toy_config

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

B, T, PROMPT = 6, 9, 3
LENGTHS = (9, 4, 7, 1, 9, 6)


@pytest.fixture(scope="module")
def trl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("trl", reason='trl is not installed here (pip install "trl==1.16.*" datasets)')
        assert module.__version__.startswith("1.16."), "the comparison is with TRL 1.16"
        return module


def make_trainer(trl: Any, folder: Path, *, rewards: Any = None, rollout: Any = None, **settings: Any) -> Any:
    from datasets import Dataset

    module, tokenizer = tiny_policy()
    arguments = trl.GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=8, gradient_accumulation_steps=1, num_generations=4,
        max_completion_length=T, bf16=False, fp16=False, use_cpu=True, gradient_checkpointing=False, report_to=[],
        beta=0.0, **settings,
    )  # fmt: skip
    return trl.GRPOTrainer(
        model=module,
        reward_funcs=rewards or (lambda completions, **_: [0.0] * len(completions)),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["red"] * 8}),
        processing_class=tokenizer,
        rollout_func=rollout,
    )


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    mask = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).double()
    old = -3 * torch.rand(B, T, generator=g, dtype=torch.float64)
    return {
        "mask": mask,
        "old": old,
        "new": old + 0.4 * torch.randn(B, T, generator=g, dtype=torch.float64),
        "reference": old + 0.2 * torch.randn(B, T, generator=g, dtype=torch.float64),
        "behaviour": (old + 0.3 * torch.randn(B, T, generator=g, dtype=torch.float64)).float().double(),
        "advantages": torch.tensor([1.5, -0.5, -0.5, -0.5, 0.7, -1.7]).double(),
    }


def theirs(trl: Any, folder: Path, x: dict[str, torch.Tensor], ratio: torch.Tensor | None, **settings: Any) -> Any:
    """(loss, its gradient in the log-probs [B, T]) of TRL's `_compute_loss`."""
    beta = settings.pop("beta", 0.0)
    trainer = make_trainer(trl, folder, **settings)
    trainer.beta = beta  # given to the constructor it would load a reference model
    new = x["new"].clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (new, torch.zeros(B, T), None)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    trainer.use_vllm = ratio is not None
    trainer.vllm_importance_sampling_correction = ratio is not None
    ids = torch.zeros(B, T, dtype=torch.long)
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids[:, :PROMPT], "prompt_mask": torch.ones(B, PROMPT), "completion_ids": ids,
            "completion_mask": x["mask"], "advantages": x["advantages"], "old_per_token_logps": x["old"],
            "ref_per_token_logps": x["reference"], "importance_sampling_ratio": ratio,
            "num_items_in_batch": x["mask"].sum(),
        },
    )  # fmt: skip
    loss.backward()
    return float(loss), new.grad


def ours(x: dict[str, torch.Tensor], **loss: Any) -> Any:
    """The same of the learner: its batch, its weights, its token losses."""
    config = toy_config(loss=loss, rollout={"max_context_tokens": T})
    module, tokenizer = tiny_policy(dtype=torch.float64)
    learner = TorchLearner(module, config, pad_id=tokenizer.pad_token_id)
    rows = []
    for i, length in enumerate(LENGTHS):
        trained = np.arange(PROMPT + length) >= PROMPT
        worth = np.where(trained, float(x["advantages"][i]), 0).astype(np.float32)
        logprobs = np.concatenate([np.zeros(PROMPT), x["behaviour"][i, :length].numpy()]).astype(np.float32)
        rows.append(BatchRow(np.zeros(PROMPT + length, np.int32), trained, worth, logprobs))
    parts, _ = learner.prepare(Batch(rows, sum(LENGTHS), 1, 1))
    new = x["new"].clone().requires_grad_()
    objective = torch.zeros((), dtype=torch.float64)
    for part in parts:
        places = torch.tensor(part.rows)[part.row_index], torch.cat([torch.arange(LENGTHS[i]) for i in part.rows])
        part.old_logprobs, part.reference_logprobs = x["old"][places], x["reference"][places]
        objective = objective + (learner.loss(new[places], part)[0] * part.weights).sum()
    objective.backward()
    return float(objective), new.grad


CLIP = {"clip_low": 0.2, "clip_high": 0.28}
TRL_CLIP = {"epsilon": 0.2, "epsilon_high": 0.28}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "token mean": ({**CLIP}, {**TRL_CLIP, "loss_type": "dapo"}),
    "sequence mean": ({**CLIP, "normalization": "sequence_mean"}, {**TRL_CLIP, "loss_type": "grpo"}),
    "constant": ({**CLIP, "normalization": "constant"}, {**TRL_CLIP, "loss_type": "dr_grpo"}),
    "dual clip": ({**CLIP, "kind": "dual_clip", "dual_clip": 1.5}, {**TRL_CLIP, "loss_type": "dapo", "delta": 1.5}),
    "gspo": (
        {**CLIP, "kind": "gspo", "normalization": "sequence_mean"},
        {**TRL_CLIP, "loss_type": "grpo", "importance_sampling_level": "sequence"},
    ),
    "cispo": ({"kind": "cispo", "clip_high": 0.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
    "kl in the loss": (
        {**CLIP, "kl_coef": 0.1, "kl_kind": "k3"},
        {**TRL_CLIP, "loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": False},
    ),
    "truncated": ({**CLIP, "tis_cap": 1.2}, {**TRL_CLIP, "loss_type": "dapo"}),
    "masked": ({**CLIP, "tis_cap": 1.2, "tis_kind": "mask"}, {**TRL_CLIP, "loss_type": "dapo"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loss_and_its_gradient_equal_trls(trl: Any, tmp_path: Path, case: str) -> None:
    mine, its = CASES[case]
    x = tensors()
    cap, kind = mine.get("tis_cap"), mine.get("tis_kind", "truncate")
    ratio = mismatch_weights(x["old"], x["behaviour"], cap=cap, kind=kind) if cap else None
    loss, gradient = ours(x, **mine)
    wanted, wanted_gradient = theirs(trl, tmp_path, x, ratio, **dict(its))
    assert loss == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_equal_trls(trl: Any, tmp_path: Path, scale: str) -> None:
    rewards = np.array([1.0, 0.0, 0.0, 0.25, 2.0, 2.0, 1.0, 0.0])

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        n = len(prompts)
        return {"prompt_ids": [[5, 6]] * n, "completion_ids": [[7, 8]] * n, "logprobs": [[-1.0, -1.0]] * n}

    trainer = make_trainer(
        trl, tmp_path, rewards=lambda completions, **_: rewards.tolist(), rollout=rollout, scale_rewards=scale
    )
    result = trainer._generate_and_score_completions([{"prompt": "red"}] * 8)["advantages"].numpy()
    groups = rewards.reshape(2, 4)
    if scale == "none":
        np.testing.assert_allclose(result, np.concatenate([dr_grpo(g) for g in groups]), atol=1e-6)
        return
    # TRL adds 1e-4 to the deviation, this project 1e-6
    expected = [grpo(g) * (g.std(ddof=1) + 1e-6) / (g.std(ddof=1) + 1e-4) for g in groups]
    np.testing.assert_allclose(result, np.concatenate(expected), atol=1e-6)
