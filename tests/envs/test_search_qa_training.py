"""What of a search episode a learner sees as its own."""

import pytest

from agentrl.config.schema import RolloutConfig
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import EnvironmentSpec
from agentrl.rollout.chat import Chat
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.scripted import expert_policy
from agentrl.rollout.tasks import TaskSampler
from tests.agentrl.helpers import tiny_policy

ENV = "agentrl/SearchQA-v0"
SEARCH_R1 = "agentrl.envs.search_qa.protocols:SearchR1Prompt"
VERL_AGENT = "agentrl.envs.search_qa.protocols:VerlAgentSearch"


@pytest.mark.parametrize(
    ("protocol", "context"), [("plain", "continuation"), (SEARCH_R1, "continuation"), (VERL_AGENT, "window")]
)
def test_retrieved_tokens_are_never_trained_on(protocol: str, context: str) -> None:
    _, tokenizer = tiny_policy()
    limits = RolloutConfig(
        context=context, window_turns=0, stop=["</search>", "</answer>"], max_turns=5, max_new_tokens=128,
        max_context_tokens=16_384, env_workers=0,
    )  # fmt: skip
    pool = EnvPool(EnvironmentSpec(ENV, "test", {"questions": "compact", "topk": 1}, protocol, expert=True))
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id], growing=context == "conversation")
    rollout = Rollout(None, chat, pool, limits, seed=0, policy=expert_policy)
    num_searches = 0
    for group in rollout.play(TaskSampler(ENV, "test", indices=list(range(4)), seed=0).take(4), group_size=1).groups:
        (trajectory,) = group.trajectories
        assert trajectory.success
        for number, row in enumerate(trajectory.rows):
            own = "".join(turn.action for turn in trajectory.turns if turn.row == number)
            assert tokenizer.decode(row.ids[row.trained].tolist()).strip() == own.strip()
            num_searches += "<information>" in tokenizer.decode(row.ids[~row.trained].tolist())
    assert num_searches >= 4
