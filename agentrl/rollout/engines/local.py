"""The embedded engine: continuous batching over the learner's own module.

Every running row owns a slot of one key/value buffer. A tick either prefills all waiting rows together or decodes one
token for every running row; a finished row leaves at once. A session keeps its slot between turns, so that the next
turn prefills only its new tokens. Shapes: R rows of a tick, Q new tokens a row, S filled positions, V vocabulary.
"""

import asyncio
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache

from agentrl.model.anatomy import backbone, head, head_form
from agentrl.rollout.engines.attention import Layout, layouts
from agentrl.rollout.engines.base import Completion, Sampling, random_stream

# Waiting rows are prefilled once they number this share of the running ones: fewer, fuller forward passes.
_PREFILL_SHARE = 0.25
_WIDTH_STEP = 128
"""On a GPU rows attend to a multiple of so many positions, of which those not yet filled are masked."""


@dataclass(eq=False)
class _Request:
    ids: list[int]
    sampling: Sampling
    uniforms: NDArray[np.float64]
    slot: int
    future: "asyncio.Future[Completion]"
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""


class SlotCache(Cache):
    """Keys and values of all slots in one buffer a layer, [slots, positions, heads, head_dim].

    `select` names the rows and positions of the coming forward pass; the module then calls `update` once a layer.
    """

    def __init__(self, num_slots: int, num_positions: int, device: torch.device) -> None:
        self.layers = []
        self.num_slots, self.num_positions, self.device = num_slots, num_positions, device
        self.buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows: torch.Tensor | slice = slice(0)
        self._write: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))
        self._real: torch.Tensor | None = None
        self._filled = 0

    def select(
        self,
        slots: list[int],
        write_slots: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor | None,
        filled: int,
    ) -> None:
        """Name the rows of the coming forward pass, once for all layers.

        Args:
            slots: slot of each row, [R].
            write_slots: slot of each new token, [R, Q].
            positions: position of each new token, [R, Q].
            valid: indices of the real ones among the R * Q new tokens; None: all are.
            filled: positions to attend to (S).
        """
        contiguous = slots == list(range(slots[0], slots[0] + len(slots)))
        self._rows = slice(slots[0], slots[0] + len(slots)) if contiguous else write_slots[:, 0].contiguous()
        write = (write_slots.flatten(), positions.flatten())
        self._write = write if valid is None else (write[0][valid], write[1][valid])
        self._real, self._filled = valid, filled

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens of a layer and return what its rows attend to, each [R, heads, S, head_dim]."""
        if layer_idx not in self.buffers:
            shape = (self.num_slots, self.num_positions)
            self.buffers[layer_idx] = (
                key_states.new_zeros((*shape, key_states.shape[1], key_states.shape[3])),
                value_states.new_zeros((*shape, value_states.shape[1], value_states.shape[3])),
            )
        slots, positions = self._write
        seen = []
        for buffer, states in zip(self.buffers[layer_idx], (key_states, value_states), strict=True):
            tokens = states.transpose(1, 2).flatten(0, 1)  # [R * Q, heads, head_dim]
            buffer[slots, positions] = tokens if self._real is None else tokens[self._real]
            rows = buffer[:, : self._filled]
            rows = rows[self._rows] if isinstance(self._rows, slice) else rows.index_select(0, self._rows)
            seen.append(rows.transpose(1, 2))
        return seen[0], seen[1]

    def grow(self, num_positions: int) -> None:
        """Make room for longer rows, keeping what is stored."""
        extra = num_positions - self.num_positions
        for layer, pair in self.buffers.items():
            self.buffers[layer] = tuple(torch.nn.functional.pad(t, (0, 0, 0, 0, 0, extra)) for t in pair)  # type: ignore[assignment]
        self.num_positions = num_positions

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Unused: positions and mask are always given."""
        return 0


class LocalEngine:
    """Decodes with a Hugging Face causal LM held in this process, by the code that the learner computes with.

    Args:
        module: the model, shared with the learner or a full replica.
        tokenizer: for stop strings.
        max_concurrent: slots of the key/value buffer.
        max_context_tokens: longest row.
        shares_weights: whether the module is the learner's own.
        layout: what the tokens of each kind of layer see; None: what the module's config says.
    """

    needs_shape_only = False
    mismatches = False
    can_run_ahead = False

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        *,
        max_concurrent: int,
        max_context_tokens: int,
        shares_weights: bool = True,
        layout: Layout | None = None,
    ) -> None:
        self.module, self.tokenizer = module, tokenizer
        self.shares_weights = shares_weights
        self.version = 0
        self.max_context_tokens = max_context_tokens
        self._backbone, self._head, self._form = backbone(module), head(module), head_form(module)
        self._layout = layouts(module.config)[0] if layout is None else layout
        self._device = next(module.parameters()).device
        dtype = getattr(module, "compute_dtype", None) or module.dtype
        same = dtype == module.dtype
        self._computing: Any = nullcontext() if same else torch.autocast(self._device.type, dtype=dtype)
        self._cache = SlotCache(max_concurrent, min(256, max_context_tokens), self._device)
        self._free = list(range(max_concurrent))[::-1]
        self._session_slot: dict[str, int] = {}
        self._stored: list[list[int]] = [[] for _ in range(max_concurrent)]
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._driver: asyncio.Task[None] | None = None
        self._counts = {"generated_tokens": 0.0, "prefilled_tokens": 0.0, "ticks": 0.0}

    async def generate(
        self, ids: list[int], sampling: Sampling, *, key: tuple[int, ...], session: str | None = None
    ) -> Completion:
        """Sample one turn; see `Engine.generate`."""
        room = self.max_context_tokens - len(ids)
        if room < 1:
            raise ValueError(f"the row has {len(ids)} tokens, but rows hold at most {self.max_context_tokens}.")
        slot = self._take_slot(session)
        count = min(sampling.max_new_tokens, room)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        request = _Request(ids, sampling, random_stream(key, count), slot, future)
        self._waiting.append(request)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.get_running_loop().create_task(self._drive())
        try:
            return await future
        finally:
            self._forget(request)
            if session is None:
                self._give_slot(slot)

    def release(self, session: str) -> None:
        """Free the slot of a session."""
        if session in self._session_slot:
            self._give_slot(self._session_slot.pop(session))

    async def score(self, ids: list[int], *, temperature: float = 1.0) -> list[float]:
        """Log-probs of a row by one plain forward pass, [L - 1]; shares no code with decoding."""
        return self._score(ids, temperature)

    @torch.inference_mode()
    def _score(self, ids: list[int], temperature: float) -> list[float]:
        row = torch.tensor([ids], device=self._device)
        with self._computing:
            logits = self.module(input_ids=row, use_cache=False).logits[0, :-1].float() / (temperature or 1.0)
        return [float(x) for x in logits.log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]]

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int) -> None:
        """Take new weights, which the learner's own module has already, and drop all keys and values."""
        assert not self._running, "weights change only between rollouts"
        if not self.shares_weights:
            self.module.load_state_dict(dict(named_tensors), strict=False)
        self._stored = [[] for _ in self._stored]
        self.version = version

    def pause(self) -> None:
        """Give the key/value buffer back where memory is dear: on a GPU. Sessions start afresh."""
        if self._device.type == "cuda":
            self._cache.buffers.clear()
            self._stored = [[] for _ in self._stored]

    def counts(self) -> dict[str, float]:
        """Tokens generated and prefilled, and forward passes."""
        return dict(self._counts)

    def close(self) -> None:
        """Free the key/value buffer."""
        self._cache.buffers.clear()

    def _take_slot(self, session: str | None) -> int:
        if session is not None and session in self._session_slot:
            return self._session_slot[session]
        if not self._free:
            raise RuntimeError("more rows at once than rollout.max_concurrent slots; release finished sessions.")
        slot = self._free.pop()
        if session is not None:
            self._session_slot[session] = slot
        return slot

    def _give_slot(self, slot: int) -> None:
        self._stored[slot] = []
        self._free.append(slot)

    def _forget(self, request: _Request) -> None:
        """Drop a cancelled request; finished ones have left already."""
        for queue in (self._waiting, self._running):
            if request in queue:
                queue.remove(request)

    async def _drive(self) -> None:
        """Ticks until nothing is left to do, letting every coroutine that can run do so in between."""
        await asyncio.sleep(0)
        while self._waiting or self._running:
            try:
                with self._computing:
                    self._tick()
            except Exception as error:
                for request in [*self._waiting, *self._running]:
                    if not request.future.done():
                        request.future.set_exception(error)
                self._waiting, self._running = [], []
            await asyncio.sleep(0)

    @torch.inference_mode()
    def _tick(self) -> None:
        if self._waiting and len(self._waiting) >= _PREFILL_SHARE * len(self._running):
            # A fixed order makes the batch, and with it every rounding, independent of who asked first.
            rows = sorted(self._waiting, key=lambda request: request.slot)
            hidden = self._forward([(row, self._new_ids(row)) for row in rows])
            self._waiting = []
            self._running = sorted([*self._running, *rows], key=lambda request: request.slot)
        else:
            rows = self._running
            hidden = self._forward([(row, row.sampled[-1:]) for row in rows])
        self._counts["ticks"] += 1
        self._sample(rows, hidden)

    def _new_ids(self, request: _Request) -> list[int]:
        """The part of a row whose keys and values are not stored yet: always at least the last token."""
        stored = self._stored[request.slot]
        keep = min(len(stored), len(request.ids) - 1)
        if stored[:keep] != request.ids[:keep]:
            keep = 0  # another conversation in this session: nothing of the old one can be used
        del stored[keep:]
        self._counts["prefilled_tokens"] += len(request.ids) - keep
        return request.ids[keep:]

    def _forward(self, rows: list[tuple[_Request, list[int]]]) -> torch.Tensor:
        """Hidden states of each row's last token, [R, hidden], after storing the new tokens."""
        lengths = [len(new) for _, new in rows]
        begins = [len(self._stored[row.slot]) for row, _ in rows]
        slots = [row.slot for row, _ in rows]
        width = max(lengths)
        filled = max(begin + length for begin, length in zip(begins, lengths, strict=True))
        if self._device.type == "cuda":  # cuDNN plans anew for every width: 1 ms a layer on an H200
            filled = min(-(-filled // _WIDTH_STEP) * _WIDTH_STEP, self.max_context_tokens)
        if filled > self._cache.num_positions:
            self._cache.grow(min(self.max_context_tokens, max(filled, 2 * self._cache.num_positions)))
        for row, new in rows:
            self._stored[row.slot].extend(new)
        # One small tensor goes to the device; all that is derived from it is made there.
        table = [[slot, begin, len(new), *new] for slot, begin, (_, new) in zip(slots, begins, rows, strict=True)]
        packed = torch.tensor([line + [0] * (width + 3 - len(line)) for line in table]).to(self._device)
        ids, starts, counts = packed[:, 3:], packed[:, 1], packed[:, 2]
        offsets = torch.arange(width, device=self._device)
        positions = starts[:, None] + offsets
        valid = None if min(lengths) == width else (offsets < counts[:, None]).flatten().nonzero()[:, 0]
        self._cache.select(slots, packed[:, :1].expand_as(positions), positions, valid, filled)
        hidden = self._backbone(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._mask(positions, filled),
            past_key_values=self._cache,
            use_cache=False,
        ).last_hidden_state
        last = torch.arange(len(rows), device=self._device) * width + counts - 1
        return hidden.flatten(0, 1).index_select(0, last)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] of hidden states [R, D], at least in fp32."""
        hidden = hidden if self._form.before == 1.0 else hidden * self._form.before
        return self._form.apply(self._head(hidden).float())

    def _mask(self, positions: torch.Tensor, filled: int) -> Any:
        """Additive masks [R, 1, Q, S], one or by kind of layer: a token sees stored positions up to its own."""
        dtype = next(self.module.parameters()).dtype
        if isinstance(self._layout, dict):
            return {kind: sight.mask(positions, filled, dtype) for kind, sight in self._layout.items()}
        return self._layout.mask(positions, filled, dtype)

    @torch.inference_mode()
    def trace(self, rows: list[list[int]], cuts: list[list[int]]) -> torch.Tensor:
        """Log-probs [rows * cuts, V] behind each cut of each row, as a rollout would compute them, piece by piece."""
        sampling = Sampling(max_new_tokens=1)
        requests = [_Request(row, sampling, np.zeros(1), slot, None) for slot, row in enumerate(rows)]  # type: ignore[arg-type]
        pieces = []
        for step in range(len(cuts[0])):
            begins = [ends[step - 1] if step else 0 for ends in cuts]
            news = [(r, r.ids[begin : ends[step]]) for r, begin, ends in zip(requests, begins, cuts, strict=True)]
            pieces.append(self._logits(self._forward(news)).log_softmax(-1).cpu())
        self._stored = [[] for _ in self._stored]
        return torch.stack(pieces, 1).flatten(0, 1)

    def _sample(self, rows: list[_Request], hidden: torch.Tensor) -> None:
        """Draw the next token of every row by inverting its cumulative distribution; finish rows that stop."""
        logits = self._logits(hidden)
        temperatures = torch.tensor([row.sampling.temperature for row in rows], device=logits.device)
        greedy = temperatures == 0
        logprobs = (logits / torch.where(greedy, 1.0, temperatures)[:, None]).log_softmax(-1)
        uniforms = torch.tensor([row.uniforms[len(row.sampled)] for row in rows], device=logits.device)
        cumulative = logprobs.double().exp().cumsum(-1)
        drawn = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]
        drawn = torch.where(greedy, logits.argmax(-1), drawn.clamp_(max=logits.shape[1] - 1))
        chosen = logprobs.gather(1, drawn[:, None])[:, 0]
        self._counts["generated_tokens"] += len(rows)
        for row, token, logprob in zip(rows, drawn.tolist(), chosen.tolist(), strict=True):
            row.sampled.append(token)
            row.logprobs.append(logprob)
        finished = [(row, finish) for row in rows if (finish := self._finish(row))]
        for row, finish in finished:
            if not row.future.done():
                row.future.set_result(Completion(row.sampled, row.logprobs, finish))
        if finished:
            self._running = [row for row in self._running if not row.future.done()]

    def _finish(self, row: _Request) -> str:
        """`stop`, `length`, or "" while the row goes on."""
        if row.sampled[-1] in row.sampling.stop_ids:
            return "stop"
        if row.sampling.stop:
            text = self.tokenizer.decode(row.sampled, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if any(stop in text for stop in row.sampling.stop):
                return "stop"
        return "length" if len(row.sampled) == len(row.uniforms) else ""
