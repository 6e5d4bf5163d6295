"""What the paper measured, as pure functions."""
