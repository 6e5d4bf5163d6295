"""Which stored positions a token sees: attention masks of the embedded engine, one for each kind of layer.

transformers' backbones take either one mask for all layers or one for each name in `config.layer_types`. Which of them
reproduces the module's own log-probs is tried out before a run.
"""

from dataclasses import dataclass
from typing import Any

import torch

from agentrl.errors import UserError
from agentrl.model.anatomy import one_line
from agentrl.model.fidelity import agree, own_logprobs, probe_length, random_rows, shaking


@dataclass(frozen=True)
class Sight:
    """How far back a token sees: all of its row, a sliding window, or its own chunk."""

    window: int | None = None
    chunk: int | None = None

    def mask(self, positions: torch.Tensor, filled: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask [R, 1, Q, S] for new tokens at `positions` [R, Q] over S filled positions."""
        stored = torch.arange(filled, device=positions.device)
        queries = positions[:, :, None]
        hidden_part = stored > queries
        if self.window is not None:
            hidden_part |= stored <= queries - self.window
        if self.chunk is not None:
            hidden_part |= stored // self.chunk != queries // self.chunk
        mask = torch.zeros(hidden_part.shape, dtype=dtype, device=positions.device)
        return mask.masked_fill_(hidden_part, torch.finfo(dtype).min)[:, None]


Layout = Sight | dict[str, Sight]
"""One sight for all layers, or one by kind of layer."""


def layouts(config: Any) -> list[Layout]:
    """Candidates for an architecture, the likeliest first."""
    text = config.get_text_config(decoder=True)
    window, chunk = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
    everything = Sight()
    by_kind = {"full_attention": everything}
    if isinstance(window, int) and window > 0:
        by_kind["sliding_attention"] = Sight(window=window)
    if isinstance(chunk, int) and chunk > 0:
        by_kind["chunked_attention"] = Sight(chunk=chunk)
    narrow: list[Layout] = [sight for sight in by_kind.values() if sight != everything]
    if not narrow:
        return [everything, by_kind]
    return [by_kind, *narrow, everything] if getattr(text, "layer_types", None) else [*narrow, by_kind, everything]


def find_layout(engine_of: Any, module: Any, *, max_context_tokens: int) -> Layout:
    """The layout with which an engine decodes what transformers computes.

    Args:
        engine_of: (layout, slots, positions) -> an embedded engine of the module.
        module: the model.
        max_context_tokens: longest row of the run.

    Raises:
        UserError: there is none.
    """
    length = max(8, probe_length(module.config, max_context_tokens))
    rows = random_rows(module, [length, max(8, length // 2), 8])
    cuts = [[len(row) - back for back in (6, 5, 4, 1, 0)] for row in rows]

    def own() -> torch.Tensor:
        parts = [own_logprobs(module, row, [cut - 1 for cut in ends]) for row, ends in zip(rows, cuts, strict=True)]
        return torch.cat(parts)

    def shaken() -> torch.Tensor:
        with shaking(module):
            return own()

    expected, failure = own(), ""
    for layout in layouts(module.config):
        try:
            with one_line(module, "decoding"):
                ours = engine_of(layout, len(rows), length).trace(rows, cuts)
        except UserError as error:
            failure = failure or str(error)
            continue
        if agree(ours, expected, module.dtype, shaken=shaken):
            return layout
        gap = float((ours - expected).abs().max())
        failure = f"its decoded log-probs are off by {gap:.2g} nats"
    raise UserError(
        f"model.path: the embedded engine cannot decode {type(module).__name__} "
        f"({failure.removeprefix('model.path: ').removesuffix(' Take another model.')}). "
        'Use rollout.engine = "vllm", or a model whose layers are attention alone.'
    )
