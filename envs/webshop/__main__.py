"""python -m agentrl.envs.webshop: serve, evaluate, build, synthesize, info."""

from agentrl.envs.webshop.shop_commands import main

if __name__ == "__main__":
    raise SystemExit(main())
