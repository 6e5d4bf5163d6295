"""python -m envs.webshop: serve, evaluate, build, synthesize, info."""

from envs.webshop.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
