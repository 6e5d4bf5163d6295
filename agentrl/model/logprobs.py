"""Log-probs of single rows, as the learner would compute them: the other side of every weight sync's check."""

from functools import partial
from typing import Any

import torch

from agentrl.errors import UserError
from agentrl.model.anatomy import head, head_bias, head_form, hidden_states, one_line
from agentrl.model.fidelity import agree, probe_length, random_rows, shaking
from agentrl.model.head import token_logprobs
from agentrl.model.processes import whole
from agentrl.model.weights import compute_dtype, computing, effective_weight


@torch.no_grad()
def check_fidelity(module: Any, *, pad_id: int, max_context_tokens: int) -> None:
    """Whether the learner's log-probs of rows that are padded on the right are transformers' own.

    Raises:
        UserError: they are not, or the architecture cannot be run at all.
    """
    length = max(8, probe_length(module.config, max_context_tokens))
    rows = random_rows(module, [length, max(4, length // 2)])
    with one_line(module, "the learner's forward pass"):
        padded = [row + [pad_id] * (length - len(row)) for row in rows]
        layer = head(module)
        states = hidden_states(module, torch.tensor(padded, device=layer.weight.device))
        weight = effective_weight(layer)
        for row, own_states in zip(rows, states, strict=True):
            targets = torch.tensor(row[1:], device=layer.weight.device)
            ours, _ = token_logprobs(
                own_states[: len(row) - 1].to(weight.dtype), weight, targets,
                form=head_form(module), bias=head_bias(layer),
            )  # fmt: skip
            own = _own_of_targets(module, row)
            if not agree(ours.cpu(), own.cpu(), module.dtype, shaken=partial(_shaken_of_targets, module, row)):
                raise UserError(
                    f"model.path: the learner's log-probs of {type(module).__name__} are off transformers' own by "
                    f"{float((ours - own).abs().max()):.2g} nats. Take another model."
                )


def _own_of_targets(module: Any, row: list[int]) -> torch.Tensor:
    """transformers' own log-prob of every id but the first, [L - 1]."""
    ids = torch.tensor([row], device=head(module).weight.device)
    logits = module(input_ids=ids, use_cache=False).logits[0, :-1]
    own = torch.cat([part.float().log_softmax(-1) for part in logits.split(256)])
    return own.gather(1, ids[0, 1:, None])[:, 0]


def _shaken_of_targets(module: Any, row: list[int]) -> torch.Tensor:
    with shaking(module):
        return _own_of_targets(module, row).cpu()


@torch.no_grad()
def row_logprobs(module: Any, ids: list[int], temperature: float) -> list[float]:
    """Log-prob of every id but the first given those before it, [L - 1].

    Args:
        module: Hugging Face causal LM; a sharded one needs all processes to ask together.
        ids: a row, [L].
        temperature: log-probs are at this temperature.
    """
    layer = head(module)
    weight = whole(effective_weight(layer)).to(compute_dtype(module))
    row = torch.tensor([ids], device=weight.device)
    with computing(module):
        hidden = hidden_states(module, row)[0, :-1]
    return token_logprobs(
        hidden.to(weight.dtype), weight, row[0, 1:],
        temperature=temperature, form=head_form(module), bias=head_bias(layer),
    )[0].tolist()  # fmt: skip
