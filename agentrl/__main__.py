"""python -m agentrl COMMAND ...: the same as the command `agentrl`."""

import sys

from agentrl.command.entry import main

if __name__ == "__main__":
    sys.exit(main())
