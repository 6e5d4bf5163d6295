"""Train LLM agents by reinforcement learning in multi-turn environments, using every rollout several times.

What a script or a notebook needs, loaded when it is asked for:

    import agentrl

    config = agentrl.load_config("quickstart", {"train.steps": 20})   # a TOML file, or a shipped one
    run = agentrl.train(config)                                       # as `python -m agentrl.train`
    run = agentrl.train(env=MyEnv, reward=my_reward, on_batch=print)   # a class, a function: docs/python.md
    print(run.success, run.metrics, run.best_checkpoint, run.folder)
    agentrl.evaluate(run.folder, {"env.eval_split": "valid_seen"}).total
    agentrl.read_run("runs/quickstart-20261126-120000").batches

and the protocols of what one may bring, named in a config as `module:Class` or `module:function`: `Gate`
(`gate.kind`), `Loss` (`loss.kind`), `Engine` (`rollout.engine`), `Reward` (`env.reward`). A whole script:
`tests/examples/my_script.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "train": "agentrl.train",
    "evaluate": "agentrl.evaluate",
    "Config": "agentrl.config.schema",
    "load_config": "agentrl.config.read",
    "RunRecord": "agentrl.runs.folder",
    "read_run": "agentrl.runs.folder",
    "read_episodes": "agentrl.runs.folder",
    "Gate": "agentrl.learner.gates",
    "Loss": "agentrl.learner.losses",
    "Engine": "agentrl.rollout.engines.base",
    "Sampling": "agentrl.rollout.engines.base",
    "Completion": "agentrl.rollout.engines.base",
    "Reward": "agentrl.environment.reward",
    "StepSignal": "agentrl.learner.gates",
    "Verdict": "agentrl.learner.gates",
    "Trajectory": "agentrl.types",
    "UserError": "agentrl.errors",
    "RunError": "agentrl.errors",
}
"""Public name -> module; `train` and `evaluate` are modules that can be called."""

__all__ = ["__version__", *_PLACES]

if TYPE_CHECKING:
    from agentrl.config.read import load_config as load_config
    from agentrl.config.schema import Config as Config
    from agentrl.environment.reward import Reward as Reward
    from agentrl.errors import RunError as RunError
    from agentrl.errors import UserError as UserError
    from agentrl.learner.gates import Gate as Gate
    from agentrl.learner.gates import StepSignal as StepSignal
    from agentrl.learner.gates import Verdict as Verdict
    from agentrl.learner.losses import Loss as Loss
    from agentrl.rollout.engines.base import Completion as Completion
    from agentrl.rollout.engines.base import Engine as Engine
    from agentrl.rollout.engines.base import Sampling as Sampling
    from agentrl.runs.folder import RunRecord as RunRecord
    from agentrl.runs.folder import read_episodes as read_episodes
    from agentrl.runs.folder import read_run as read_run
    from agentrl.types import Trajectory as Trajectory


def __getattr__(name: str) -> Any:
    """A public name, from where it lives."""
    if name not in _PLACES:
        raise AttributeError(f"module 'agentrl' has no attribute {name!r}")
    module = import_module(_PLACES[name])
    return module if _PLACES[name] == f"agentrl.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
