"""Generators of tokens."""
