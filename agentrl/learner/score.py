"""Log-probs of single rows, as the learner would compute them: the other side of every weight sync's check."""

from typing import Any

import torch

from agentrl.learner.lm_head import token_logprobs
from agentrl.processes import whole
from agentrl.weights import compute_dtype, computing, effective_weight


@torch.no_grad()
def row_logprobs(module: Any, ids: list[int], temperature: float) -> list[float]:
    """Log-prob of every id but the first given those before it, [L - 1].

    Args:
        module: Hugging Face causal LM with `.model` and `.lm_head`; a sharded one needs all processes to ask together.
        ids: a row, [L].
        temperature: log-probs are at this temperature.
    """
    weight = whole(effective_weight(module.lm_head)).to(compute_dtype(module))
    row = torch.tensor([ids], device=weight.device)
    with computing(module):
        hidden = module.model(input_ids=row, use_cache=False).last_hidden_state[0, :-1]
    return token_logprobs(hidden.to(weight.dtype), weight, row[0, 1:], temperature=temperature)[0].tolist()
