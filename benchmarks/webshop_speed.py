"""WebShop: how fast and how small, in CPU seconds of one thread.

    OMP_NUM_THREADS=1 python benchmarks/webshop_speed.py                    1,000 products, under a minute
    OMP_NUM_THREADS=1 python benchmarks/webshop_speed.py --large FOLDER     also builds 1,181,430 products into FOLDER

Every step includes what a policy needs: the observation, the admissible actions and the rest of `info`, through the
wrappers of `gymnasium.make`. Searches are all different. Start-up and memory are those of a fresh process.
"""

import argparse
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium

import agentrl.envs  # noqa: F401 - registers the ids

_ID = "agentrl/WebShop-v0"
_NUM_LARGE = 1_181_430
# run in a fresh process: start-up, memory, then speed
_PROBE = """
import sys, time
wall = time.perf_counter()
import gymnasium, envs
env = gymnasium.make("agentrl/WebShop-v0", split="train", data_dir=sys.argv[1])
env.reset(seed=0)
cpu, wall = time.process_time(), time.perf_counter() - wall
sys.path.insert(0, sys.argv[2])
from webshop_speed import memory_mb, print_speed
print(f"  ready after {cpu:.2f} CPU-s ({wall:.2f} s); {memory_mb()}")
pool = [gymnasium.make("agentrl/WebShop-v0", split="train", data_dir=sys.argv[1]) for _ in range(1000)]
for seed, other in enumerate(pool):
    other.reset(seed=seed)
assert all(other.unwrapped.shop is env.unwrapped.shop for other in pool)
print(f"  with 1,000 environments in play: {memory_mb()}")
print_speed(env, int(sys.argv[3]))
print(f"  afterwards: {memory_mb()}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="synthetic", help="official files or a built shop (default: synthetic)")
    parser.add_argument("--searches", type=int, default=2000, help="searches timed (default: %(default)s)")
    parser.add_argument("--large", type=Path, metavar="FOLDER", help="also build a large shop there and measure it")
    parser.add_argument("--num-products", type=int, default=_NUM_LARGE, help="of the large shop (default: %(default)s)")
    options = parser.parse_args()
    print(f"data: {options.data_dir}")
    probe(options.data_dir, options.searches)
    if options.large is not None:
        build_large(options.large, options.num_products)
        print(f"data: {options.large}")
        probe(str(options.large), options.searches)


def probe(data_dir: str, searches: int) -> None:
    """Measure a shop in a process of its own."""
    subprocess.run([sys.executable, "-c", _PROBE, data_dir, str(Path(__file__).parent), str(searches)], check=True)


def build_large(folder: Path, num_products: int) -> None:
    """Build the large shop as a user would, and report time, peak memory and size on disk."""
    if (folder / "shop.json").exists():
        print(f"{folder} is built already")
        return
    command = [sys.executable, "-m", "agentrl.envs.webshop", "build", "--data-dir", "synthetic", "--out", str(folder)]
    wall = time.perf_counter()
    subprocess.run([*command, "--num-products", str(num_products)], check=True)
    wall = time.perf_counter() - wall
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(
        f"build of {num_products:,} products: {wall / 60:.1f} minutes, {(used.ru_utime + used.ru_stime) / 60:.1f} CPU "
        f"minutes, peak {used.ru_maxrss / 2**20:.2f} GB, {size / 2**30:.2f} GB on disk"
    )


def memory_mb() -> str:
    """Resident memory of this process, and the part that it shares with no other and no file."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    amount = {name: int(value.split()[0]) / 1024 for name, value in fields.items()}
    return f"{amount['Rss']:.0f} MB resident, of which {amount['Anonymous']:.0f} MB its own"


def print_speed(env: gymnasium.Env[str, str], num_searches: int) -> None:
    """Searches and clicks per CPU second of one environment."""
    queries = list(make_queries(env, num_searches))
    env.reset(seed=1)
    started = time.process_time()
    for query in queries:
        env.step(query)
    spent = time.process_time() - started
    print(f"  {len(queries) / spent:,.0f} searches per CPU-s ({1000 * spent / len(queries):.2f} ms each)")
    clicks, spent = play(env, num_episodes=300)
    print(f"  {clicks / spent:,.0f} clicks per CPU-s ({1e6 * spent / clicks:.0f} µs each)")


def make_queries(env: gymnasium.Env[str, str], count: int) -> Iterator[str]:
    """Different searches of 3 to 14 words of the requests, and of whole requests."""
    generator, shop = random.Random(0), env.unwrapped.shop
    for number in range(count):
        words = shop.goal(generator.randrange(len(shop.goals))).text.split()
        kept = words if number % 4 == 0 else generator.sample(words, min(len(words), generator.randint(3, 14)))
        yield f"search[{' '.join(kept)} {number}]"


def play(env: gymnasium.Env[str, str], *, num_episodes: int) -> tuple[int, float]:
    """(clicks, CPU seconds they took) of random episodes; purchases are among the clicks, searches are not timed."""
    generator, clicks, spent = random.Random(0), 0, 0.0
    for episode in range(num_episodes):
        _, info = env.reset(seed=episode)
        _, _, terminated, _, info = env.step(f"search[{env.unwrapped.session.goal.target.query}]")
        for _ in range(20):
            allowed = [action for action in info["admissible_actions"] if action.startswith("click[")]
            if terminated or not allowed:
                break
            action = generator.choice(allowed)
            started = time.process_time()
            _, _, terminated, _, info = env.step(action)
            spent += time.process_time() - started
            clicks += 1
    return clicks, spent


if __name__ == "__main__":
    main()
