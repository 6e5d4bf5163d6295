"""Health of a rollout batch in numbers: what experienced people watch beside success and reward. Pure.

Reasoning can stay diverse and yet no longer depend on the question ("template collapse", RAGEN-2, arXiv 2604.06268);
entropy does not show that, the mutual information between task and answer does. The paper scores answers under other
tasks' prompts, a forward pass each; here the words of the other answers to a task stand for the model, which is free.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

from agentrl.types import Group, Metrics, Status, Trajectory

_THOUGHT = re.compile(r"(?:<think>)?(.*?)</think>", flags=re.DOTALL)
"""Templates may open it in the prompt."""
_CUT = (Status.TRUNCATED, Status.TURN_LIMIT, Status.TOKEN_LIMIT)


def health_metrics(groups: Sequence[Group]) -> Metrics:
    """`health/` of the record of a rollout batch.

    truncated: share of episodes that a limit ended; equal_groups: share of groups in which nobody did better;
    repeated_answers: share of episodes that say the same as another one of their group; task_information: see there,
    nats a word; think_words: words between <think> and </think> in a turn, mean.
    """
    played = [trajectory for group in groups for trajectory in group.trajectories]
    turns = [turn for trajectory in played for turn in trajectory.turns]
    said = [[answer_words(trajectory) for trajectory in group.trajectories] for group in groups]
    equal = sum(not group.rewards_differ for group in groups)
    return {
        "health/truncated": sum(t.status in _CUT for t in played) / max(1, len(played)),
        "health/equal_groups": equal / max(1, len(groups)),
        "health/repeated_answers": repeated_share(said),
        "health/task_information": task_information(said),
        "health/think_words": sum(len(thought(turn.action).split()) for turn in turns) / max(1, len(turns)),
    }


def answer_words(trajectory: Trajectory) -> tuple[str, ...]:
    """The words of all that the model said in an episode."""
    return tuple(word for turn in trajectory.turns for word in turn.action.split())


def thought(answer: str) -> str:
    """What stands between <think> and </think>; empty where nothing does.

    >>> thought("<think>milk is cold</think><action>open fridge 1</action>")
    'milk is cold'
    """
    found = _THOUGHT.search(answer)
    return found[1] if found else ""


def repeated_share(tasks: Sequence[Sequence[Hashable]]) -> float:
    """Share of answers that another answer to the same task equals.

    >>> repeated_share([["red", "red", "blue"], ["red"]])
    0.5
    """
    counts = [Counter(answers) for answers in tasks]
    repeated = sum(count for each in counts for count in each.values() if count > 1)
    return repeated / max(1, sum(each.total() for each in counts))


def task_information(tasks: Sequence[Sequence[Sequence[Hashable]]]) -> float:
    """Mutual information between a task and a word of its answers, nats; 0 where answers do not depend on the task.

    The mean over words of log p(word | own task) - log mean_j p(word | task j), where p(. | task) are the frequencies
    in the task's other answers and a word's worth of those in all other answers. No answer tells of itself, so chance
    yields no information: less than 0 in small groups, near it in large ones. The most is log of the number of tasks. A
    word that nothing else contains tells nothing.

    >>> round(task_information([[["red"], ["red"]], [["blue"], ["blue"]]]), 4)  # log 12/7
    0.539
    >>> task_information([[["red"], ["red"]], [["red"], ["red"]]])
    0.0

    Args:
        tasks: the words of the answers to each task; tasks with a single answer are left out.
    """
    answers = [found for each in tasks if len(found := [Counter(words) for words in each if words]) > 1]
    if len(answers) < 2:
        return 0.0
    counts = [sum(each, Counter()) for each in answers]
    sizes = [each.total() for each in counts]
    everything = sum(counts, Counter())
    total, weight = everything.total(), sum(1 / (size + 1) for size in sizes)
    frequency = {word: sum(c[word] / (n + 1) for c, n in zip(counts, sizes, strict=True)) for word in everything}
    gain = 0.0
    for own, size, each in zip(counts, sizes, answers, strict=True):
        for answer in each:
            length = answer.total()
            for word, count in answer.items():
                elsewhere = (everything[word] - count) / (total - length)
                if elsewhere:
                    mine = (own[word] - count + elsewhere) / (size - length + 1)
                    others = frequency[word] - own[word] / (size + 1) + elsewhere * (weight - 1 / (size + 1))
                    gain += count * math.log(mine * len(answers) / (mine + others))
    return gain / total
