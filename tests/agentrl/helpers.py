"""Small parts that several test files share."""

from typing import Any

import torch

from agentrl.config.read import build_config
from agentrl.config.schema import Config, RolloutConfig, TinyModelConfig
from agentrl.environment.pool import EnvironmentSpec, EnvPool
from agentrl.learner.batch import MicroBatch
from agentrl.learner.learner import TorchLearner
from agentrl.model.tiny import build_tiny_model, build_tokenizer
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.local import LocalEngine
from agentrl.rollout.rollout import Rollout

TOY = "tests.toy:ColourEnv"
TEXTS = ["You see red. Now green. Which came first? blue white"] * 5


def tiny_policy(
    *, seed: int = 0, tie: bool = False, dtype: torch.dtype = torch.float32, hidden_size: int = 32
) -> tuple[Any, Any]:
    """A two-layer model and tokenizer for the toy environment, with logits that are far from uniform."""
    tokenizer = build_tokenizer(TEXTS)
    shape = TinyModelConfig(
        hidden_size=hidden_size, intermediate_size=64, num_heads=2, num_kv_heads=1, tie_embeddings=tie, init_std=0.02
    )
    module = build_tiny_model(shape, tokenizer, seed=seed).to(dtype).eval()
    with torch.no_grad():
        module.lm_head.weight.mul_(20)
    return module, tokenizer


@torch.no_grad()
def frozen_logprobs(learner: TorchLearner, part: MicroBatch) -> torch.Tensor:
    """Log-probs of a micro-batch's trained tokens as they are now, [N]."""
    with learner.policy.working():
        return learner.policy.logprobs(part)


def gate_config(**keys: Any) -> Any:
    """The table `[gate]` with these keys."""
    return build_config({"gate": keys}).gate


def loss_config(**keys: Any) -> Any:
    """The table `[loss]` with these keys."""
    return build_config({"model": {"path": "some/model"}, "loss": keys}).loss


def toy_config(**tables: dict[str, Any]) -> Config:
    """A config of the toy environment with some tables changed."""
    tree: dict[str, Any] = {
        "env": {"id": TOY, "eval_split": "test"},
        "rollout": {"max_turns": 2, "max_new_tokens": 4, "max_context_tokens": 128, "env_workers": 0},
        "train": {"steps": 3, "groups_per_step": 4, "group_size": 4},
        "loss": {"kl_coef": 0.0, "kl_kind": "k3", "normalization": "token_mean"},
        "learner": {"lr": 1e-3, "schedule": "constant"},
        "checkpoint": {"every": 1},
    }
    for name, table in tables.items():
        tree[name] = {**tree.get(name, {}), **table}
    return build_config(tree)


def toy_rollout(
    module: Any, tokenizer: Any, config: RolloutConfig, *, workers: int = 0, timeout_s: float = 20.0, **options: Any
) -> Rollout:
    """A rollout of the toy environment."""
    engine = LocalEngine(
        module, tokenizer, max_concurrent=config.max_concurrent, max_context_tokens=config.max_context_tokens
    )
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    pool = EnvPool(EnvironmentSpec(TOY, "train", options), num_workers=workers, step_timeout_s=timeout_s)
    return Rollout(engine, chat, pool, config, seed=0)
