"""How the user calls a command."""

import os
import sys


def program(name: str) -> str:
    """How the user calls a command, for usage lines and remedies."""
    if os.path.basename(sys.argv[0]) in ("agentrl", "agentrl.exe", "agentrl-script.py"):
        return f"agentrl {name.replace('_', '-')}"
    return f"python -m agentrl.{name}"
