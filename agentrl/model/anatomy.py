"""The parts of any causal LM: backbone, head, and what happens to the logits behind the head.

What happens there (scales, soft caps, biases) is measured, not read from names: a hook hands the module known numbers
in the head's place and looks at what comes out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from agentrl.errors import UserError

_LOGITS = (-40.0, 40.0)
"""Range of the logits with which a head is measured."""
_EXACT = 1e-5
"""Largest relative deviation of a form that counts as found; those of float32 are below 1e-6."""


@dataclass(frozen=True)
class HeadForm:
    """logits = cap tanh((W (before h) + b) after / cap), without the tanh where `cap` is None."""

    before: float = 1.0
    """Factor of the hidden states on their way into the head (MiniCPM)."""
    after: float = 1.0
    """Factor of the logits (Granite, Cohere)."""
    cap: float | None = None
    """Soft cap of the logits (Gemma 2)."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """What the module makes of its head's output."""
        if self.after != 1.0:
            logits = logits * self.after
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


PLAIN = HeadForm()


def backbone(module: Any) -> Any:
    """The module that turns ids into the hidden states behind the last norm."""
    inner = module.base_model
    if inner is module:  # whose prefix names the folder of a larger model (Llama 4)
        inner = getattr(module, "model", None)
    if inner is None or head(module) is None:
        raise UserError(
            f"model.path: {type(module).__name__} has no body and head apart, which is what is trained here. "
            "Take another model."
        )
    return inner


def blocks(module: Any) -> Any | None:
    """The transformer blocks of the backbone, in their order; None where it has no such list."""
    return getattr(backbone(module), "layers", None)


@contextmanager
def standing_in(forwards: Sequence[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, each of some blocks runs another forward function; afterwards what stood there before, stand-ins too."""
    before = [vars(block).get("forward") for block, _ in forwards]
    for block, forward in forwards:
        block.forward = forward
    try:
        yield
    finally:
        for (block, _), forward in zip(forwards, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def head(module: Any) -> Any:
    """The linear layer from hidden states to logits."""
    return module.get_output_embeddings()


def head_bias(layer: Any) -> torch.Tensor | None:
    """The bias of a head, [V]."""
    bias: torch.Tensor | None = getattr(layer, "bias", None)
    return bias


def is_tied(module: Any) -> bool:
    """Whether head and embedding are one matrix."""
    return head(module).weight is module.get_input_embeddings().weight


def head_name(module: Any) -> str:
    """Name of the head's matrix."""
    layer = head(module)
    return next(f"{name}.weight" for name, part in module.named_modules() if part is layer)


def hidden_states(module: Any, ids: torch.Tensor) -> torch.Tensor:
    """States [R, L, D] of rows [R, L] that are padded on the right, with the factor that the head expects."""
    states: torch.Tensor = backbone(module)(input_ids=ids, use_cache=False).last_hidden_state
    before = head_form(module).before
    return states if before == 1.0 else states * before


def head_form(module: Any) -> HeadForm:
    """What surrounds the head of a module, measured once.

    Raises:
        UserError: nothing that is known here.
    """
    form: HeadForm | None = getattr(module, "_agentrl_head_form", None)
    if form is None:
        form = _measure(module)
        module._agentrl_head_form = form
    return form


@torch.no_grad()
def _measure(module: Any) -> HeadForm:
    layer, ids = head(module), torch.tensor([[1, 2, 3, 5]], device=module.get_input_embeddings().weight.device)
    seen: list[torch.Tensor] = []

    def replace(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        seen.append(args[0])
        known = torch.linspace(*_LOGITS, output.numel(), device=output.device, dtype=torch.float32)
        seen.append(known.view_as(output).to(output.dtype))
        return seen[-1]

    states = backbone(module)(input_ids=ids, use_cache=False).last_hidden_state
    hook = layer.register_forward_hook(replace)
    try:
        logits = module(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    if len(seen) != 2 or seen[1].shape != logits.shape or seen[0].shape != states.shape:
        raise _unknown(module, "its logits are not one product of its hidden states")
    tolerance = max(_EXACT, 4 * torch.finfo(logits.dtype).eps, 4 * torch.finfo(seen[1].dtype).eps)
    before = _factor(states, seen[0], tolerance)
    if before is None:
        raise _unknown(module, "hidden states are changed before the head")
    after, cap = _factor(seen[1], logits, tolerance), None
    if after is None:
        after, cap = 1.0, _cap(seen[1].double(), logits.double(), tolerance)
        if cap is None:
            raise _unknown(module, "logits are changed behind the head")
    before, after = (_as_written(module, value, tolerance) for value in (before, after))
    return HeadForm(before, after, cap and _as_written(module, cap, 10 * tolerance))


def _factor(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> float | None:
    """The factor from `a` to `b`, or None where there is none."""
    a, b = a.double().flatten(), b.double().flatten()
    factor = float(a @ b / (a @ a).clamp(min=1e-300))
    return factor if factor and float((factor * a - b).abs().max()) <= tolerance * float(b.abs().max()) else None


def _cap(raw: torch.Tensor, capped: torch.Tensor, tolerance: float) -> float | None:
    """The soft cap that makes `capped` of `raw`: the root of cap tanh(r / cap) = c at the largest logit."""
    r, c = float(raw.max()), float(capped.flatten()[raw.argmax()])
    low, high = max(c, 1e-6), 1e6
    if not 0 < c < r:
        return None
    for _ in range(200):
        middle = (low + high) / 2
        is_low = middle * float(torch.tanh(torch.tensor(r / middle, dtype=torch.float64))) < c
        low, high = (middle, high) if is_low else (low, middle)
    deviation = (high * torch.tanh(raw / high) - capped).abs().max()
    return high if float(deviation) <= 10 * tolerance * c else None


def _as_written(module: Any, value: float, tolerance: float) -> float:
    """A measured number as the config writes it, where it does: itself or its reciprocal."""
    if abs(value - 1) <= tolerance:
        return 1.0
    written = {float(v) for v in _numbers(module.config.to_dict()) if v}
    close = [w for v in written for w in (v, 1 / v) if abs(w - value) <= tolerance * abs(value)]
    return min(close, key=lambda w: abs(w - value)) if close else value


def _numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _numbers(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree


def _unknown(module: Any, what: str) -> UserError:
    return UserError(
        f"model.path: {type(module).__name__} cannot be trained here: {what}, which the learner's head does not know. "
        "Take another model."
    )


@contextmanager
def one_line(module: Any, who: str) -> Iterator[None]:
    """What breaks inside an architecture while it is tried out becomes one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"model.path: {type(module).__name__} cannot be used: {who} fails with {type(error).__name__}: "
            f"{reason:.200}. Take another model."
        ) from error
