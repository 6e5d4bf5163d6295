"""Trajectory groups in, new weights out."""
