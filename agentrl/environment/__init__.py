"""Environments as rollouts see them: specification, contract, processes, places."""
