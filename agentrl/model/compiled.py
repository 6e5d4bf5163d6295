"""A policy's blocks, compiled for the learner's passes: an option, and accelerate's own.

`accelerate launch --dynamo_backend inductor ...`, or ACCELERATE_DYNAMO_BACKEND=inductor before any command.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from torch._dynamo.exc import TorchDynamoException

from agentrl.errors import UserError
from agentrl.model.anatomy import blocks, standing_in

_OPTION = "--dynamo_backend"
_MOST_GRAPHS = 64
"""Graphs that torch may make of one class of blocks before it says so and runs them plain. Its own limit is 8; these
differ in kind (sliding or full attention), in whether their input has a gradient, and between one row and several."""


@dataclass(frozen=True)
class Compiler:
    """Who compiles, and how."""

    backend: str
    """torch.compile's name of it."""
    fullgraph: bool = False
    """Whether a block that needs several graphs is an error."""


def asked_compiler() -> Compiler | None:
    """What the launcher (or its variables ACCELERATE_DYNAMO_...) asks for; None: nothing is compiled.

    Shapes are always symbolic: --dynamo_use_dynamic is not looked at, since its default cannot be told from a wish.

    Raises:
        UserError: a backend that does not exist, or a mode that cannot work here.
    """
    try:
        asked = TorchDynamoPlugin()
    except ValueError:
        name = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "")
        raise UserError(f'{_OPTION}: there is no compiler {name!r}. Take "inductor", or "no".') from None
    backend = str(asked.backend.value).lower()
    if backend == "no":
        return None
    if asked.mode != "default":
        raise UserError(
            f'--dynamo_mode: only "default" is possible, got "{asked.mode}": the others replay recorded kernels, and '
            "rows of every width would be recorded anew."
        )
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        raise UserError(f'{_OPTION}: this torch has no compiler "{backend}". Take "inductor", or "no".')
    return Compiler(backend, bool(asked.fullgraph))


class CompiledBlocks:
    """Compiled forward functions of a module's blocks, which stand in for the plain ones inside `at_work`.

    The module stays as it is: its names, and with them checkpoints and syncs, and everybody else who runs it. The
    embedded engine decodes with the plain blocks, since its cache is a program of its own. Blocks of one kind share
    their graphs, and so do rows of all widths. What FSDP2 does around a block stays outside.

    Args:
        module: Hugging Face causal LM, with adapters and shards where asked for.
        compiler: what compiles. Nothing is compiled before the first pass.

    Raises:
        UserError: the module has no list of blocks.
    """

    def __init__(self, module: Any, compiler: Compiler) -> None:
        self.name, self.compiler = type(module).__name__, compiler
        found = blocks(module)
        if found is None:
            raise UserError(f"{_OPTION}: {self.name} has no list of blocks to compile. Start without it.")
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, _MOST_GRAPHS)
        how: dict[str, Any] = {"backend": compiler.backend, "fullgraph": compiler.fullgraph, "dynamic": True}
        with warnings.catch_warnings():  # torch's compiler imports modules of torch that warn of their own age
            warnings.simplefilter("ignore", DeprecationWarning)
            self.forwards = [(block, torch.compile(block.forward, **how)) for block in found]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, blocks run compiled: forward passes and their backward, which may call forward again.

        Raises:
            UserError: the compiler gave up.
        """
        try:
            with standing_in(self.forwards):
                yield
        except TorchDynamoException as error:
            cause = getattr(error, "inner_exception", None) or error
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise UserError(
                f"{_OPTION}: {self.compiler.backend} cannot compile the blocks of {self.name}: {reason:.200}. Start "
                "without it; --resume goes on either way."
            ) from error
