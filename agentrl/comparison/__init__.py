"""Results on the same tasks, paired."""
