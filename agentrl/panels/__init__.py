"""Frozen, named lists of tasks: what a score must have been measured on to bear a name."""
