"""A handler that misbehaves on request, for the tests of the worker processes."""

import os
import time
from typing import Any

kept: list[bytearray] = []


def initialise() -> None:
    pass


def handle(request: dict[str, Any]) -> dict[str, Any]:
    action = request["action"]
    if action == "sleep":
        time.sleep(60)
    elif action == "spin":
        while True:
            pass
    elif action == "work":
        until = time.process_time() + request["cpu_s"]
        while time.process_time() < until:
            pass
    elif action == "allocate":
        return {"size": len(bytearray(8 << 30))}
    elif action == "hoard":
        kept.append(bytearray(40 << 20))
    elif action == "exit":
        os._exit(3)
    elif action == "raise":
        raise ValueError("a message " + "x" * 1000)
    elif action == "recurse":
        return handle({"action": "recurse"})
    elif action == "write":
        with open(request["path"], "w") as file:
            file.write("written")
    elif action == "run":
        os.system("true")
    elif action == "print":
        print("noise on standard output", flush=True)
    return {"pid": os.getpid(), **request}
