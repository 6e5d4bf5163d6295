"""Run folders -> one self-contained HTML page: `python -m agentrl.report RUN...`."""
