"""Relative weight change per group of layers: the Disproportionate Weight Divergence of the paper, section 4.1."""

import torch


def relative_weight_change(
    now: dict[str, list[torch.Tensor]], before: dict[str, list[torch.Tensor]], start: dict[str, list[torch.Tensor]]
) -> dict[str, float]:
    """||W_t - W_{t - Delta}||_F / ||W_ref||_F per group of layers (caption of Figure 1).

    Args:
        now: tensors per group at step t.
        before: the same tensors Delta steps earlier.
        start: the same tensors before training (W_ref).
    """
    change = {}
    for group, tensors in now.items():
        if tensors:
            moved = sum(float((a - b).double().square().sum()) for a, b in zip(tensors, before[group], strict=True))
            size = sum(float(w.double().square().sum()) for w in start[group])
            change[group] = (moved / size) ** 0.5 if size else 0.0
    return change
