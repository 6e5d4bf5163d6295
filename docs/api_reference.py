"""The API reference, from the docstrings: `python docs/api_reference.py FOLDER`."""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import agentrl


def main(folder: Path) -> None:
    """Write a page for each module."""
    for name in agentrl.__all__:  # loaded on demand, which pdoc does not ask for
        setattr(agentrl, name, getattr(agentrl, name))
    rooms = [f"agentrl.{module.name}" for module in pkgutil.iter_modules(agentrl.__path__)]
    listed = {f"agentrl.{name}" for name in agentrl.__all__}  # modules that the package's own page brings along
    warnings.simplefilter("error")
    # a named tuple whose type refers to itself: pdoc evaluates it outside its module, and prints it as it is written
    warnings.filterwarnings("ignore", message=r"Error parsing type .* agentrl\.envs\.alfworld\.pddl\.PddlProblem")
    pdoc.render.configure(show_source=False)
    pdoc.pdoc("agentrl", *(room for room in rooms if room not in listed and "__" not in room), output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
