"""Relative weight change per group of layers: the Disproportionate Weight Divergence of the paper, section 4.1."""

from collections.abc import Mapping


def relative_weight_change(moved: Mapping[str, float], start: Mapping[str, float]) -> dict[str, float]:
    """||W_t - W_{t - Delta}||_F / ||W_ref||_F per group of layers (caption of Figure 1).

    Args:
        moved: squared norm of what each group moved by in Delta steps.
        start: squared norm of each group before training (W_ref).
    """
    return {group: (square / start[group]) ** 0.5 if start[group] else 0.0 for group, square in moved.items()}
