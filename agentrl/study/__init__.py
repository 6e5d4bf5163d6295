"""Arms x seeds on one machine: what does reuse cost and bring? `python -m agentrl.study CONFIG`."""
