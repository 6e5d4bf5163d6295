"""Train LLM agents by reinforcement learning in multi-turn environments, reusing every rollout safely.

What a script or a notebook needs, loaded when it is asked for:

    import agentrl

    config = agentrl.load_config("quickstart", {"train.steps": 20})   # a TOML file, or a shipped one
    run = agentrl.train(config)                                       # as `python -m agentrl.train`
    print(run.success, run.folder)
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
    "Config": "agentrl.config",
    "load_config": "agentrl.config",
    "RunRecord": "agentrl.run_folder",
    "read_run": "agentrl.run_folder",
    "read_episodes": "agentrl.run_folder",
    "Gate": "agentrl.learner.gate",
    "Loss": "agentrl.learner.loss",
    "Engine": "agentrl.rollout.engine",
    "Sampling": "agentrl.rollout.engine",
    "Completion": "agentrl.rollout.engine",
    "Reward": "agentrl.rollout.reward",
    "StepSignal": "agentrl.types",
    "Verdict": "agentrl.types",
    "Trajectory": "agentrl.types",
    "UserError": "agentrl.errors",
    "RunError": "agentrl.errors",
}
"""Public name -> module; `train` and `evaluate` are modules that can be called."""

__all__ = ["__version__", *_PLACES]

if TYPE_CHECKING:
    from agentrl.config import Config as Config
    from agentrl.config import load_config as load_config
    from agentrl.errors import RunError as RunError
    from agentrl.errors import UserError as UserError
    from agentrl.learner.gate import Gate as Gate
    from agentrl.learner.loss import Loss as Loss
    from agentrl.rollout.engine import Completion as Completion
    from agentrl.rollout.engine import Engine as Engine
    from agentrl.rollout.engine import Sampling as Sampling
    from agentrl.rollout.reward import Reward as Reward
    from agentrl.run_folder import RunRecord as RunRecord
    from agentrl.run_folder import read_episodes as read_episodes
    from agentrl.run_folder import read_run as read_run
    from agentrl.types import StepSignal as StepSignal
    from agentrl.types import Trajectory as Trajectory
    from agentrl.types import Verdict as Verdict


def __getattr__(name: str) -> Any:
    """A public name, from where it lives."""
    if name not in _PLACES:
        raise AttributeError(f"module 'agentrl' has no attribute {name!r}")
    module = import_module(_PLACES[name])
    return module if _PLACES[name] == f"agentrl.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
