"""Run folders: what is written, read, resumed."""
