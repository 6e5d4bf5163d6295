"""The command `agentrl`: all commands under one name."""

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version

from agentrl.command.parsers import PARSERS, answer_help
from agentrl.common.installation import DISTRIBUTION
from agentrl.common.plugins import make_importable
from agentrl.common.streams import tell

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("agentrl.train", "train a policy; --list shows the shipped configs"),
    "evaluate": ("agentrl.evaluate", "success of a run, a model or a scripted policy, with intervals"),
    "warmstart": ("agentrl.warmstart", "imitate an environment's expert"),
    "check-env": ("agentrl.check_env", "does an environment keep the contract, and what does it cost"),
    "play": ("agentrl.play", "play an environment yourself"),
    "report": ("agentrl.report.__main__", "runs as one HTML page"),
    "watch": ("agentrl.watch", "follow a running job"),
    "study": ("agentrl.study.__main__", "arms x seeds: does reuse pay"),
    "panels": ("agentrl.panels.__main__", "frozen lists of tasks: list, verify, make"),
    "compare": ("agentrl.compare", "results on the same tasks, paired"),
    "figures": ("agentrl.figures", "the paper's figures from run folders"),
    "structure": ("agentrl.structure", "the constants of Theorem 1"),
    "convert-smollm2": ("agentrl.convert_smollm2", "a small pretrained model out of a Python package"),
    "alfworld": ("agentrl.envs.alfworld.__main__", "ALFWorld: look at data, pack it, play, score"),
    "webshop": ("agentrl.envs.webshop.__main__", "WebShop: serve, evaluate, build"),
    "math": ("agentrl.envs.math.__main__", "math: check data and answers"),
    "retriever-build": ("agentrl.retriever.build", "encode and index a corpus"),
    "retriever-serve": ("agentrl.retriever.serve", "serve an index"),
    "retriever-evaluate": ("agentrl.retriever.evaluate", "evidence recall of an index"),
}
"""Name -> (module with a `main`, what it is for)."""
_LONG = ("train", "evaluate", "warmstart")
"""Commands that go on when nobody reads their log."""


def main(argv: list[str] | None = None) -> int:
    """`agentrl COMMAND ...`; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        tell(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(installed_version())
        return 0
    name = words[0].replace("_", "-")
    if name not in COMMANDS:
        print(f"error: no command {words[0]!r}; there are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    make_importable(os.getcwd())  # as `python -m` does
    return run_command(name, words[1:])


def run_command(name: str, words: list[str]) -> int:
    """A command with its words; its help is answered before anything is loaded."""
    module = COMMANDS[name][0]
    ours = name.replace("-", "_")
    if ours in PARSERS:
        answer_help(ours, words)
    loaded = importlib.import_module(module)
    if ours not in PARSERS:  # commands of environments and of the retriever guard themselves
        return int(loaded.main(words))
    guard = importlib.import_module("agentrl.command.guard").main_guard
    return int(guard(lambda: loaded.main(words), outlives_readers=name in _LONG))


def usage() -> str:
    """What there is."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: agentrl COMMAND ...    (agentrl COMMAND --help)", "", *lines])


def installed_version() -> str:
    """Name and version of the distribution."""
    try:
        return f"{DISTRIBUTION} {version(DISTRIBUTION)}"
    except PackageNotFoundError:
        return f"{DISTRIBUTION}, not installed"


if __name__ == "__main__":
    sys.exit(main())
