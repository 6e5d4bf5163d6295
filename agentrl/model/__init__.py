"""The policy's module: loading, shapes, weights, log-probs, processes."""
