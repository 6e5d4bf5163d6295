"""Who plays an evaluation: a model, a chat server, somebody at this terminal, a script."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager

import torch

from agentrl.api_policy.api_player import ApiPlayer, ApiPolicy
from agentrl.api_policy.meter import Usage
from agentrl.config.schema import Config, ModelConfig, RolloutConfig
from agentrl.environment.played import PlayedEnvironment, close_all, played_environments
from agentrl.errors import UserError
from agentrl.evaluation.held_out import EVAL_SEED, eval_rollout_config
from agentrl.model.load import compute_device, load_model, set_threads
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.chat import Chat, chat_for
from agentrl.rollout.engines.factory import holds_own_weights, make_engine, reads_weights
from agentrl.rollout.human import HumanPlayer
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.scripted import ScriptedPolicy, expert_policy, random_policy

Played = Mapping[str, PlayedEnvironment]

_NO_LIMIT = 1 << 30
"""Tokens of a context that somebody else limits: a server refuses what is too long, a person scrolls."""


def rollout_for(
    config: Config, policy: str, model: str | None, api: ApiPolicy | None, usage: Usage
) -> AbstractContextManager[Rollout]:
    """Episodes of the held-out split that `policy` plays.

    Raises:
        UserError: the policy needs something that was not given.
    """
    if policy == "api":
        if api is None:
            raise UserError("--policy api needs a server: give --endpoint URL and --model NAME.")
        return api_rollout(config, api, usage)
    if policy == "human":
        return human_rollout(config)
    if policy != "model":
        return _scripted_rollout(config, policy)
    if model is None:
        raise UserError("give a MODEL or RUN to evaluate, or --policy api|human|expert|random.")
    return _model_rollout(config, model)


@contextmanager
def _environments(config: Config, limits: RolloutConfig, *, expert: bool = False) -> Iterator[Played]:
    played = played_environments(config.model_copy(update={"rollout": limits}), "eval", expert=expert)
    try:
        yield played
    finally:
        close_all(played)


@contextmanager
def _model_rollout(config: Config, model: str) -> Iterator[Rollout]:
    set_threads(model)
    # An engine with weights of its own only looks at the module's shape.
    place = torch.device("cpu") if holds_own_weights(config.rollout) else compute_device()
    policy = ModelConfig(path=model, dtype=config.model.dtype)
    module, tokenizer = load_model(policy, device=place, weights=not reads_weights(config.rollout))
    limits = eval_rollout_config(config)
    is_read = module.device.type == "meta"  # by the engine itself
    with closing(make_engine(limits, module, tokenizer, model=model if is_read else None)) as engine:
        if not is_read:
            engine.load_weights(module.state_dict().items(), version=0)
        with _environments(config, limits) as environments:
            yield Rollout(engine, chat_for(tokenizer, module, limits), environments, limits, seed=EVAL_SEED)


@contextmanager
def _scripted_rollout(config: Config, policy: str) -> Iterator[Rollout]:
    """Scripted policies speak commands and have no context to run out of."""
    scripted: ScriptedPolicy = expert_policy if policy == "expert" else random_policy
    tokenizer = build_tokenizer(())
    unlimited = config.rollout.model_copy(update={"max_context_tokens": _NO_LIMIT, "context": "conversation"})
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    with _environments(_in_commands(config), config.rollout, expert=policy == "expert") as environments:
        yield Rollout(None, chat, environments, unlimited, seed=EVAL_SEED, policy=scripted)


@contextmanager
def api_rollout(config: Config, policy: ApiPolicy, usage: Usage) -> Iterator[Rollout]:
    """Episodes that a chat server plays, in the experiment's format and context; `rollout.player` has what it took."""
    limits = eval_rollout_config(config).model_copy(update={"max_context_tokens": _NO_LIMIT})
    chat = _record_chat()
    with (
        closing(ApiPlayer(policy, chat, limits, usage=usage)) as player,
        _environments(config, limits) as environments,
    ):
        yield Rollout(None, chat, environments, limits, seed=EVAL_SEED, player=player)


@contextmanager
def human_rollout(config: Config) -> Iterator[Rollout]:
    """Episodes that are played here, one after the other, in commands."""
    alone = {"max_context_tokens": _NO_LIMIT, "context": "conversation", "max_concurrent": 1}
    limits = config.rollout.model_copy(update=alone)
    chat = _record_chat()
    with _environments(_in_commands(config), limits) as environments:
        yield Rollout(None, chat, environments, limits, seed=EVAL_SEED, player=HumanPlayer(chat))


def _in_commands(config: Config) -> Config:
    members = [env.model_copy(update={"format": "plain", "reward": None}) for env in config.mixture or [config.env]]
    return config.with_environments(members)


def _record_chat() -> Chat:
    """Ids of some tokenizer: they keep the record of words and are nobody's prompt."""
    tokenizer = build_tokenizer(())
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + str(tokenizer.chat_template)
    return Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
