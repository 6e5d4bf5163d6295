"""Arms x seeds on any number of machines: what does reuse cost and bring? `python -m agentrl.study CONFIG`."""
