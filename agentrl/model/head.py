"""Hidden states + head weight -> log-probs in chunks; the head's own gradient comes out of the backward pass.

Shapes: N tokens, D hidden width, V vocabulary, C tokens a chunk. Logits exist for one chunk at a time, [C, V], in one
scratch buffer: memory is O(C * V) instead of O(N * V), and no fresh pages are touched per chunk, which on a CPU costs
as much as the arithmetic. Backward computes them again; where the tokens are one chunk, it waits in the buffer.
"""

from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial


class HeadGradient:
    """Collects dL/dW of the head over micro-batches, in fp32, apart from any other use of the weight.

    With tied embeddings the same matrix also receives the embedding's gradient; keeping the head's share in a buffer of
    its own is what makes its energy measurable. `merge` adds it to the parameter's `.grad` in the end.
    """

    def __init__(self, *, with_factors: bool = False, with_entropy: bool = False) -> None:
        self.buffer: torch.Tensor | None = None
        self.energies: list[torch.Tensor] | None = [] if with_factors else None
        """Where wanted: squared norm of every token's own gradient, until `largest_factor` reads them."""
        self.entropy: torch.Tensor | None = torch.zeros((), dtype=torch.float64) if with_entropy else None
        """Where wanted: summed entropy of all tokens, in nats, of every backward pass since `clear`."""

    def add(self, probs: torch.Tensor, targets: torch.Tensor, scaled: torch.Tensor) -> None:
        """Add `(probs - onehot(targets))^T scaled`, [C, V]^T [C, D], with `scaled` = -dL/dlogprob * hidden."""
        shape = (probs.shape[1], scaled.shape[1])
        if self.buffer is None:
            self.buffer = torch.zeros(shape, dtype=_accumulation_type(scaled), device=scaled.device)
        if probs.dtype == scaled.dtype == self.buffer.dtype:
            self.buffer.addmm_(probs.t(), scaled)
        else:
            self.buffer += probs.to(scaled.dtype).t() @ scaled
        self.buffer.index_add_(0, targets, scaled.to(self.buffer.dtype), alpha=-1)
        if self.energies is not None:
            errors = probs.square().sum(1) - 2 * probs.gather(1, targets[:, None])[:, 0] + 1
            self.energies.append(errors.clamp(min=0) * scaled.float().square().sum(1))

    def add_error(self, error: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add `error^T hidden`, [C, V]^T [C, D], with `error` = dL/d(W h)."""
        if self.buffer is None:
            shape = (error.shape[1], hidden.shape[1])
            self.buffer = torch.zeros(shape, dtype=_accumulation_type(hidden), device=hidden.device)
        self.buffer += (error.to(hidden.dtype).t() @ hidden).to(self.buffer.dtype)
        if self.energies is not None:
            self.energies.append(error.float().square().sum(1) * hidden.float().square().sum(1))

    def largest_factor(self, gradient: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """c_max of the paper's Lemma 2: largest A^2 ||onehot - probs||^2 ||hidden||^2 over the active tokens.

        A scalar; logits are at the sampling temperature. The theorem speaks of the policy loss alone, without KL term.

        Args:
            gradient: dL/dlogprob, [N].
            advantages: of the same tokens, [N].
        """
        assert self.energies is not None, "made with with_factors"
        active = gradient.nonzero()[:, 0]
        energies = torch.cat([*self.energies, gradient.new_zeros(0)])[active]
        self.energies.clear()
        factors = energies * (advantages[active] / gradient[active]).square()
        return factors.max().double().cpu() if len(factors) else torch.zeros((), dtype=torch.float64)

    def ensure(self, weight: torch.Tensor) -> torch.Tensor:
        """The buffer, zeros for a process that had no token to learn from; `weight` gives its shape."""
        if self.buffer is None:
            self.buffer = torch.zeros(weight.shape, dtype=_accumulation_type(weight), device=weight.device)
        return self.buffer

    def scatter(self, weight: DTensor) -> None:
        """Sum the buffers of all processes; each keeps the part that its shard of the weight has."""
        partial = DTensor.from_local(self.ensure(weight), weight.device_mesh, [Partial()], run_check=False)
        self.buffer = partial.redistribute(placements=weight.placements)

    def energy(self) -> torch.Tensor:
        """||dL/dW||_F^2, a float64 scalar; 0 where nothing was added (paper, equation of g_t in section 5).

        Of a sharded gradient, the energy of this process's part.
        """
        if self.buffer is None:
            return torch.zeros((), dtype=torch.float64)
        local = self.buffer.to_local() if isinstance(self.buffer, DTensor) else self.buffer
        # fp32 dot products lose digits on large matrices: accumulate piecewise in float64.
        pieces = [piece.dot(piece).double() for piece in local.flatten().split(1 << 20)]
        return torch.stack(pieces).sum() if pieces else torch.zeros((), dtype=torch.float64)

    def merge(self, weight: torch.Tensor) -> None:
        """Add the collected gradient to `weight.grad`, or to the factors that a LoRA head's weight is made of."""
        if self.buffer is None or not weight.requires_grad:
            return
        gradient = self.buffer.to(weight.dtype)
        if weight.is_leaf:
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        else:
            weight.backward(gradient)

    def clear(self) -> None:
        """Forget what was collected."""
        self.buffer = None
        if self.entropy is not None:
            self.entropy = torch.zeros_like(self.entropy)


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        chunk: int,
        sink: HeadGradient | None,
        entropy: torch.Tensor | None,
    ) -> torch.Tensor:
        dtype = _accumulation_type(hidden)
        logprobs = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        scratch = _scratch(hidden, weight, chunk)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden[rows], weight, temperature, scratch)
            torch.log_softmax(logits, -1, out=logits)
            logprobs[rows] = logits.gather(1, targets[rows, None])[:, 0]
            if entropy is not None:
                entropy[rows] = torch.cat([_entropy(few) for few in logits.split(64)])
        ctx.save_for_backward(hidden, weight, targets, logprobs)
        ctx.kept = scratch[: len(hidden)] if len(hidden) <= chunk else None
        ctx.temperature, ctx.chunk, ctx.sink = temperature, chunk, sink
        return logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        hidden, weight, targets, logprobs = ctx.saved_tensors
        sink = ctx.sink if ctx.sink is not None else HeadGradient()
        # Tokens without a gradient (clipped, zero advantage) cost nothing, unless something is wanted of every token.
        every = sink.entropy is not None or sink.energies is not None
        active = torch.arange(len(hidden), device=hidden.device) if every else gradient.nonzero()[:, 0]
        hidden_gradient = torch.zeros_like(hidden)
        wants_weight = ctx.sink is not None or ctx.needs_input_grad[1]
        kept, ctx.kept = ctx.kept, None
        scratch = _scratch(hidden, weight, min(ctx.chunk, len(active))) if kept is None else kept
        for rows in active.split(ctx.chunk):
            h, t = hidden[rows], targets[rows]
            g = (gradient[rows] / -ctx.temperature)[:, None].to(hidden.dtype)
            if kept is None:
                logits = _logits(h, weight, ctx.temperature, scratch)
                probs = torch.softmax(logits, -1, out=logits)
            else:
                probs = kept.exp_() if len(rows) == len(hidden) else kept[rows].exp_()
            # dL/dlogits = g * (probs - onehot): g scales [C, D] instead of [C, V], the one-hot part is a look-up.
            error = (probs.to(hidden.dtype) @ weight).sub_(weight[t])
            if sink.entropy is not None:
                # error * hidden is the mean logit less the target's, so that no pass over [C, V] is needed.
                entropy = -logprobs[rows] - (error * h).sum(1, dtype=logprobs.dtype) / ctx.temperature
                sink.entropy = sink.entropy.to(hidden.device) + entropy.double().sum()
            hidden_gradient[rows] = error.mul_(g)
            if wants_weight:
                sink.add(probs, t, h * g)
        own = sink.buffer.to(weight.dtype) if ctx.sink is None and sink.buffer is not None else None
        return hidden_gradient, own, None, None, None, None, None


class _ShapedLogprobs(torch.autograd.Function):
    """The same for heads with a bias or a soft cap, whose errors have to be formed whole, [C, V]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk: int,
        sink: HeadGradient | None,
        entropy: torch.Tensor | None,
        after: float,
        cap: float | None,
    ) -> torch.Tensor:
        logprobs = torch.empty(len(hidden), dtype=_accumulation_type(hidden), device=hidden.device)
        ctx.shape = (temperature, after, cap)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = _shaped_logits(hidden[rows], weight, bias, *ctx.shape).log_softmax(-1)
            logprobs[rows] = logits.gather(1, targets[rows, None])[:, 0]
            if entropy is not None:
                entropy[rows] = torch.cat([_entropy(few) for few in logits.split(64)])
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.chunk, ctx.sink = chunk, sink
        return logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        hidden, weight, bias, targets = ctx.saved_tensors
        temperature, after, cap = ctx.shape
        sink = ctx.sink if ctx.sink is not None else HeadGradient()
        hidden_gradient = torch.zeros_like(hidden)
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        for rows in torch.arange(len(hidden), device=hidden.device).split(ctx.chunk):
            h, t = hidden[rows], targets[rows]
            logits = _shaped_logits(h, weight, bias, temperature, after, cap)
            logprobs = logits.log_softmax(-1)
            if sink.entropy is not None:
                sink.entropy = sink.entropy.to(h.device) + _entropy(logprobs).double().sum()
            error = logprobs.exp_()
            error[torch.arange(len(t), device=t.device), t] -= 1
            if cap is not None:  # d cap tanh(x / cap) / dx = 1 - tanh^2
                error *= 1 - (logits * (temperature / cap)).square_()
            error *= (gradient[rows] * (-after / temperature))[:, None]
            hidden_gradient[rows] = error.to(h.dtype) @ weight
            if bias_gradient is not None:
                bias_gradient += error.sum(0).to(bias_gradient.dtype)
            if ctx.sink is not None or ctx.needs_input_grad[1]:
                sink.add_error(error, h)
        own = sink.buffer.to(weight.dtype) if ctx.sink is None and sink.buffer is not None else None
        return hidden_gradient, own, bias_gradient, None, None, None, None, None, None, None


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    sink: HeadGradient | None = None,
    with_entropy: bool = False,
    form: Any = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs of target tokens, and (without gradient) the entropy of their distributions.

    Args:
        hidden: post-norm hidden states that predict the targets, [N, D].
        weight: head weight, [V, D].
        targets: token ids, [N].
        temperature: logits are divided by it.
        chunk: tokens whose logits exist at once; None takes what suits the vocabulary and the device.
        sink: receives dL/dW in backward instead of `weight.grad`; also where the weight is frozen.
        with_entropy: also return the entropies in nats, [N].
        form: what the model does behind the head (`anatomy.HeadForm`); None: nothing. Its factor before the head is
            in `hidden` already.
        bias: of the head, [V].

    Returns:
        log-probs [N] (at least fp32), entropies [N] or None.
    """
    chunk = min(chunk or default_chunk(len(weight), hidden.device), max(1, len(hidden)))
    entropy = torch.empty(len(hidden), dtype=_accumulation_type(hidden), device=hidden.device) if with_entropy else None
    after, cap = (1.0, None) if form is None else (form.after, form.cap)
    if cap is None and bias is None:
        # A factor of the logits is a temperature.
        logprobs = _HeadLogprobs.apply(hidden, weight, targets, temperature / after, chunk, sink, entropy)
    else:
        logprobs = _ShapedLogprobs.apply(hidden, weight, bias, targets, temperature, chunk, sink, entropy, after, cap)
    return logprobs, entropy


def default_chunk(vocabulary: int, device: torch.device) -> int:
    """Tokens a chunk: on a CPU logits that stay in its cache as far as matrix products stay efficient."""
    if device.type == "cpu":
        return max(192, min(2048, (1 << 22) // vocabulary))
    return max(1024, min(16384, (1 << 28) // vocabulary))


def _logits(hidden: torch.Tensor, weight: torch.Tensor, temperature: float, scratch: torch.Tensor) -> torch.Tensor:
    """Logits over the temperature, [C, V], in the scratch buffer."""
    out = scratch[: len(hidden)]
    if hidden.dtype == out.dtype:
        return torch.mm(hidden if temperature == 1.0 else hidden / temperature, weight.t(), out=out)
    if hidden.is_cuda:  # cuBLAS sums in fp32 anyway: nothing is rounded on the way out
        return torch.mm(hidden, weight.t(), out_dtype=out.dtype, out=out).div_(temperature)
    return out.copy_(hidden @ weight.t()).div_(temperature)


def _shaped_logits(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    after: float,
    cap: float | None,
) -> torch.Tensor:
    """Logits over the temperature, [C, V], of a head with a bias or a soft cap."""
    logits = (hidden @ weight.t()).to(_accumulation_type(hidden))
    if bias is not None:
        logits += bias
    logits = logits * after if cap is None else torch.tanh(logits * (after / cap)) * cap
    return logits / temperature


def _entropy(logprobs: torch.Tensor) -> torch.Tensor:
    """-sum p log p of each row, [C]; a few rows at a time stay in a CPU's cache."""
    return -torch.bmm(logprobs.exp()[:, None], logprobs[:, :, None])[:, 0, 0]


def _scratch(hidden: torch.Tensor, weight: torch.Tensor, chunk: int) -> torch.Tensor:
    return torch.empty(chunk, len(weight), dtype=_accumulation_type(hidden), device=hidden.device)


def _accumulation_type(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
