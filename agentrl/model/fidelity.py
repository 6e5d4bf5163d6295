"""Are the log-probs computed here transformers' own? Asked once, at the start, of every pretrained model.

Rows of random ids, longer than every window the architecture has as far as rows of the run can be, go through the code
that trains (and, in `rollout.engines.attention`, the code that decodes) and through the module itself.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SHORTEST = 24
_BOUNDARY = re.compile(r"window|chunk|max_position|block|context|local", re.IGNORECASE)
"""Names of config values beyond which an architecture may behave differently."""
_ROUNDING = 20
"""Times what `shaking` moves that still count as rounding; where nothing is unusual it comes to less than the limit."""


def probe_length(config: Any, limit: int) -> int:
    """Tokens of a row that leaves every window behind, at most `limit`."""
    beyond = [value + 8 for value in _boundaries(config.to_dict()) if 0 < value + 8 <= limit]
    return min(limit, max([_SHORTEST, *beyond]))


def random_rows(module: Any, lengths: list[int]) -> list[list[int]]:
    """Rows of ids that the module embeds."""
    generator = torch.Generator().manual_seed(0)
    size = module.get_input_embeddings().weight.shape[0]
    return [torch.randint(size, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def own_logprobs(module: Any, ids: list[int], positions: list[int]) -> torch.Tensor:
    """transformers' own distributions behind some positions of a row, [positions, V], on the CPU."""
    row = torch.tensor([ids], device=module.get_input_embeddings().weight.device)
    logits = module(input_ids=row, use_cache=False).logits[0, positions]
    return logits.float().log_softmax(-1).cpu()


def agree(
    ours: torch.Tensor, own: torch.Tensor, dtype: torch.dtype, *, shaken: Callable[[], torch.Tensor] | None = None
) -> bool:
    """Whether log-probs differ by rounding alone, measured by how far the distributions themselves vary.

    In half precision an expert may be chosen otherwise for a token here and there: the median decides. In full
    precision every position does, but trained weights can make single positions tens of times as sensitive to rounding
    as others: what `shaken` moves there is allowed for.

    Args:
        ours: [positions] or [positions, V].
        own: transformers' own, likewise.
        dtype: of the weights.
        shaken: `own` once more, computed under `shaking`; asked only where it matters.
    """
    gaps, spread = (ours.double() - own.double()).abs(), float(own.double().std())
    if not bool(gaps.isfinite().all()):
        return False
    if dtype not in (torch.float32, torch.float64):
        return float(gaps.median()) <= 0.1 * spread + 1e-2
    limit = 5e-4 * spread + 2e-6
    if float(gaps.max()) <= limit or shaken is None:
        return float(gaps.max()) <= limit
    moved = (shaken().double() - own.double()).abs()
    gap, rounding = (x.flatten(1).amax(1) if x.dim() > 1 else x for x in (gaps, moved))
    return bool((gap <= (_ROUNDING * rounding).clamp(min=limit)).all())


@contextmanager
def shaking(module: Any) -> Iterator[None]:
    """Noise of a millionth on what the module embeds: it moves log-probs about as far as rounding on the way does."""

    def shake(_module: Any, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0))
        return embedded * (1 + 1e-6 * noise.to(embedded))

    hook = module.get_input_embeddings().register_forward_hook(shake)
    try:
        yield
    finally:
        hook.remove()


def _boundaries(tree: Any, name: str = "") -> list[int]:
    if isinstance(tree, dict):
        return [value for key, part in tree.items() for value in _boundaries(part, str(key))]
    if isinstance(tree, list | tuple):
        return [value for part in tree for value in _boundaries(part, name)]
    is_number = isinstance(tree, int) and not isinstance(tree, bool)
    return [tree] if is_number and _BOUNDARY.search(name) else []
