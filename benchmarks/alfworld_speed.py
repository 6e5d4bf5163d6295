"""ALFWorld: our engine beside the stock one, in CPU seconds of one thread.

    OMP_NUM_THREADS=1 python benchmarks/alfworld_speed.py --data FOLDER_OR_PACKED_FILE

Both play the same games with the same seeded random admissible commands and report the admissible list after every
step. The stock side needs the extra "alfworld" and is left out with a note where that is missing. Without --data (and
without ALFWORLD_DATA) both play generated games of official size.
"""

import argparse
import random
import resource
import time

import gymnasium

import agentrl.envs  # noqa: F401 - registers the ids
from agentrl.common.extras import MissingExtraError
from agentrl.envs.alfworld.sources import open_games

_ID = "agentrl/ALFWorld-v0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="official folder or packed file; default: ALFWORLD_DATA, else generated games")
    parser.add_argument("--split", default="train")
    parser.add_argument("--games", type=int, default=128, help="games that ours plays (default 128)")
    parser.add_argument("--stock-games", type=int, default=6, help="games that the stock engine plays (default 6)")
    parser.add_argument("--steps", type=int, default=50, help="steps per game (default 50); the stock engine plays 15")
    options = parser.parse_args()
    settings = {"split": options.split, "data": options.data}
    try:
        open_games(**settings, room_size="official")
        settings["room_size"] = "official"
    except ValueError:  # official data: room_size is an option of generated games
        pass

    started = time.process_time()
    games = open_games(**settings)
    print(f"opening {len(games):,} games: {time.process_time() - started:.3f} CPU-s")
    num_games = min(options.games, len(games))
    measure_memory(settings, num_games)
    ours = measure_ours(settings, num_games, options.steps)
    stock = measure_stock(settings, min(options.stock_games, len(games)))
    print(f"{'':34} {'ours':>12} {'stock':>12} {'ratio':>9}")
    for name in ours:
        line = f"{name:34} {ours[name]:12.5g}"
        if stock:
            ratio = ours[name] / stock[name] if "per CPU-s" in name else stock[name] / ours[name]
            line += f" {stock[name]:12.5g} {ratio:8,.0f}x"
        print(line)


def measure_memory(settings: dict, num_games: int) -> None:
    """Peak memory of 1,000 environments in play over `num_games` games."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pool = [gymnasium.make(_ID, **settings) for _ in range(1000)]
    rng = random.Random(0)
    for index, env in enumerate(pool):
        _, info = env.reset(options={"task": index % num_games})
        for _ in range(10):
            _, _, _, _, info = env.step(rng.choice(info["admissible_actions"]))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"1,000 environments over {num_games} games: {after:.0f} MB in all ({after - before:.0f} MB above the start)")


def measure_ours(settings: dict, num_games: int, num_steps: int) -> dict[str, float]:
    games = open_games(**settings)
    started = time.process_time()
    for index in range(num_games):
        games.load(index)
    parse_s = (time.process_time() - started) / num_games
    env = gymnasium.make(_ID, **settings)
    for index in range(num_games):  # parsed once per process: not part of a reset
        env.reset(options={"task": index})
    step_s, reset_s, played = 0.0, 0.0, 0
    for index in range(num_games):
        started = time.process_time()
        _, info = env.reset(options={"task": index})
        reset_s += time.process_time() - started
        played += (timed := play(env, info, index, num_steps))[0]
        step_s += timed[1]
    return {
        "first reset of a game (CPU-ms)": 1e3 * (parse_s + reset_s / num_games),
        "further reset (CPU-ms)": 1e3 * reset_s / num_games,
        "steps per CPU-s": played / step_s,
    }


def measure_stock(settings: dict, num_games: int) -> dict[str, float]:
    try:
        env = gymnasium.make(_ID, **settings, backend="textworld")
    except MissingExtraError as error:
        print(f"no stock engine here: {error}")
        return {}
    first_s = again_s = step_s = 0.0
    played = 0
    for index in range(num_games):
        started = time.process_time()
        env.reset(options={"task": index})
        first_s += time.process_time() - started
        engine = env.unwrapped._engine
        started = time.process_time()
        engine.reset()
        again_s += time.process_time() - started
        _, info = env.reset(options={"task": index})
        played += (timed := play(env, info, index, 15))[0]
        step_s += timed[1]
    return {
        "first reset of a game (CPU-ms)": 1e3 * first_s / num_games,
        "further reset (CPU-ms)": 1e3 * again_s / num_games,
        "steps per CPU-s": played / step_s,
    }


def play(env: gymnasium.Env, info: dict, seed: int, num_steps: int) -> tuple[int, float]:
    """Random admissible commands; (steps, CPU seconds). The choice of the command is not timed."""
    rng, spent, played = random.Random(seed), 0.0, 0
    for _ in range(num_steps):
        command = rng.choice(info["admissible_actions"])
        started = time.process_time()
        _, _, terminated, truncated, info = env.step(command)
        spent += time.process_time() - started
        played += 1
        if terminated or truncated:
            break
    return played, spent


if __name__ == "__main__":
    main()
