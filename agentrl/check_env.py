"""python -m agentrl.check_env ID: does this environment keep the contract, and what does it cost?

Plays the environment as a run would (through `EnvironmentSpec`, with `env.format`) and prints one page: a line a check,
and what `info` offers. Exit code 0: nothing failed; 1: something did; 2: bad input.
"""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("check_env")  # before the imports below, which take seconds

import json
import multiprocessing.reduction
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer

from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import check_env_parser
from agentrl.common.event_loops import run_coroutine
from agentrl.common.plugins import explain
from agentrl.config.read import load_config
from agentrl.config.schema import Config
from agentrl.console import Display, console
from agentrl.environment.contract import KNOWN_INFO, ContractError, describe, reset_env, step_env
from agentrl.environment.pool import EnvironmentHandle, EnvPool, WorkerLost
from agentrl.environment.probe import Episode, Prober, patience, settled_bytes
from agentrl.environment.spec import EnvironmentSpec, environment_spec, with_conventions
from agentrl.errors import InfrastructureError, RunError, UserError
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.chat import Chat
from agentrl.runs.outputs import output_file
from agentrl.types import Task

ARBITRARY_TEXTS = {
    "nothing": "", "blanks": " \t\n", "a megabyte": "x" * (1 << 20), "control characters": "\0\x01\x1b[31m\x7f\r",
    "emoji and combining marks": "🙂👩‍👩‍👧é́漢字", "right-to-left": "\u202eabc\u202c שלום", "a lone surrogate": "\ud800",
    "markup": "<script>alert(1)</script></action><action>", "JSON": '{"name": "go", "arguments": {"a": [1, null]}}',
    "format fields": "%s %d {0} {name} \\x00 $(id)", "many lines": "go\n" * 2000, "deep brackets": "[" * 20_000,
}  # fmt: skip
"""What a model may write; no environment may fall over any of it."""
LEAK_BYTES_PER_EPISODE = 1024
"""Growth above this is called a leak ..."""
LEAK_BYTES = 4 << 20
"""... if it also adds up to this much: allocators keep a few pages for themselves."""
NUM_SEEDS = 100
"""Memory is watched over episodes of these seeds, again and again: a cache of tasks fills, a leak goes on."""


@dataclass(frozen=True)
class Finding:
    """One line of the page."""

    check: str
    """What was looked at."""
    verdict: str
    """`ok`, `note` (works, but worth knowing) or `FAIL`."""
    detail: str
    """Figures, or what is wrong and what to do."""


def check_determinism(prober: Prober) -> Finding:
    """The same seed gives the same episode: again, in another instance, and in another process."""
    first = [prober.play(seed).transcript() for seed in range(5)]
    again = [prober.play(seed).transcript() for seed in reversed(range(5))][::-1]
    other = prober.spec.make()
    elsewhere = [prober.play(seed, other).transcript() for seed in range(5)]
    other.close()
    for name, transcripts in (("played again", again), ("in another instance", elsewhere)):
        for seed, (a, b) in enumerate(zip(first, transcripts, strict=True)):
            if a != b:
                return Finding("determinism", "FAIL", f"seed {seed} {name} differs: {_difference(a, b)}")
    if len(set(first)) == 1:
        return Finding("determinism", "note", "seeds 0 to 4 all give the same episode: is there one task only?")
    return Finding("determinism", "ok", "5 seeds repeat, also in another instance and in mixed order")


def play_elsewhere(spec: EnvironmentSpec, timeout_s: float) -> str:
    """First observation of seed 3 in a worker process, which then makes a step.

    Raises:
        UserError: the environment cannot be made from these settings.
        RunError: it raised there; its child WorkerLost: it hung or died.
    """

    async def play(handle: EnvironmentHandle) -> str:
        observation, _ = await handle.reset(Task(spec.id, spec.split, seed=3))
        await handle.step("look")
        return observation

    pool = EnvPool(spec, num_workers=1, step_timeout_s=timeout_s)
    try:
        return run_coroutine(play(pool.acquire()))
    finally:
        pool.close()


def check_other_process(prober: Prober, there: str | RunError) -> Finding:
    """The same seed begins the same episode in a worker process, where `there` was heard."""
    if isinstance(there, RunError):
        return Finding("worker process", "FAIL", f"cannot be played in a process of its own: {there}")
    here, _ = reset_env(prober.env, 3, None)
    if here != there:
        return Finding("worker process", "FAIL", f"seed 3 begins differently there: {_difference(here, there)}")
    return Finding("worker process", "ok", "made and reset in a process of its own, same first observation")


def check_pickle(prober: Prober) -> Finding:
    """Whether a fresh instance can be sent to another process; what `info` holds always can, as plain data."""
    try:
        size = len(multiprocessing.reduction.ForkingPickler.dumps(prober.spec.make()))
    except Exception as error:
        return Finding(
            "picklability", "note", f"instances cannot be pickled ({describe(error)}); workers make their own"
        )
    return Finding("picklability", "ok", f"an instance is {size:,} bytes")


def check_arbitrary_text(prober: Prober) -> Finding:
    """No text of a model makes `step` raise."""
    for name, text in ARBITRARY_TEXTS.items():
        reset_env(prober.env, 0, None)
        try:
            with patience(prober.timeout_s, "no answer"):
                step_env(prober.env, text)
        except Exception as error:
            prober.env = prober.spec.make()
            return Finding(
                "arbitrary text", "FAIL", f"step({name}) raised {type(error).__name__}: {describe(error, 2000)}"
            )
    return Finding("arbitrary text", "ok", f"{len(ARBITRARY_TEXTS)} kinds of it answered: {', '.join(ARBITRARY_TEXTS)}")


def check_growth(
    prober: Prober, num_episodes: int, budget_s: float, on_episode: Callable[[], None]
) -> tuple[list[Finding], list[Episode]]:
    """Memory per instance and per episode, how episodes end, and what resets and steps cost."""
    before = settled_bytes()
    crowd = [prober.spec.make() for _ in range(8)]
    for seed, env in enumerate(crowd):
        prober.play(seed, env)
    per_env = max(0, settled_bytes() - before) / len(crowd)
    for env in crowd:
        env.close()
    del crowd
    prober.reset_s.clear()
    prober.step_s.clear()
    episodes: list[Episode] = []
    ends = {"terminated": 0, "truncated": 0, "cut": 0}
    sizes: list[tuple[int, int]] = []
    started = time.perf_counter()
    for number in range(num_episodes):
        episode = prober.play(number % NUM_SEEDS)
        ends[episode.ended] += 1
        if len(episodes) < 20:
            episodes.append(episode)
        if number % max(1, num_episodes // 20) == 0:
            sizes.append((number, settled_bytes()))
        on_episode()
        if time.perf_counter() - started > budget_s:
            break
    sizes.append((number, settled_bytes()))
    ends_of_all = _judge_ends(ends, prober.max_steps)
    if number + 1 < num_episodes:
        short = f"; {num_episodes:,} were asked for, but {budget_s:g} s were over (--seconds)"
        ends_of_all = replace(ends_of_all, verdict="note", detail=ends_of_all.detail + short)
    return [_judge_memory(sizes, per_env), ends_of_all, _describe_times(prober)], episodes


def check_tasks(prober: Prober, eval_spec: EnvironmentSpec) -> Finding:
    """Enumerable tasks repeat by number, and the splits share none."""
    count = getattr(prober.env.unwrapped, "num_tasks", None)
    if count is None:
        return Finding("tasks", "ok", "no num_tasks: training and evaluation draw from disjoint seeds")
    if not int(count) > 0:
        return Finding("tasks", "FAIL", f"num_tasks must be > 0, got {count}")
    chosen = sorted({int(i) for i in np.linspace(0, int(count) - 1, 30)})
    first = [reset_env(prober.env, 1, {"task": i}) for i in chosen]
    again = [reset_env(prober.env, 2, {"task": i}) for i in reversed(chosen)][::-1]
    for i, (a, _), (b, _) in zip(chosen, first, again, strict=True):
        if a != b:
            return Finding("tasks", "FAIL", f'reset(options={{"task": {i}}}) gives another task each time')
    held_out = eval_spec.make()
    num_held_out = int(getattr(held_out.unwrapped, "num_tasks", 0))
    names = {info["task"] for _, info in first if "task" in info}
    there = [reset_env(held_out, 1, {"task": i})[1] for i in range(min(num_held_out, 30))]
    held_out.close()
    shared = names & {info["task"] for info in there if "task" in info}
    if shared and prober.spec.split != eval_spec.split:
        return Finding("tasks", "FAIL", f"{eval_spec.split} shares tasks with {prober.spec.split}: {min(shared)}")
    return Finding("tasks", "ok", f"{int(count):,} in {prober.spec.split}, {num_held_out:,} in {eval_spec.split}")


def check_info(episodes: list[Episode]) -> list[Finding]:
    """What `info` offers, by the names that a run reads; what it could not use never came this far."""
    infos = [info for episode in episodes for info in episode.infos]
    offered = sorted({key for info in infos for key in info if key in KNOWN_INFO})
    others = sorted({key for info in infos for key in info if key not in KNOWN_INFO})
    found = {*offered, "admissible_actions"} if "random_actions" in offered else offered
    missing = [key for key in ("success", "category", "admissible_actions", "expert_action") if key not in found]
    detail = f"offers {', '.join(offered) or 'nothing that a run reads (fine)'}"
    detail += f"; ignored: {', '.join(map(str, others))}" if others else ""
    uses = {
        "success": "success is then a return of at least env.success_threshold", "category": "no rates per category",
        "admissible_actions": "no random policy", "expert_action": "no warm start",
    }  # fmt: skip
    return [Finding("info", "ok", detail), *(Finding(f"  no {key}", "ok", uses[key]) for key in missing)]


def check_rendering(episodes: list[Episode], tokenizer: Any, name: str) -> Finding:
    """Conversations grow by appending: the template rewrites nothing, and every observation survives its tokens."""
    try:
        chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id], growing=True)
    except UserError as error:
        return Finding("rendering", "FAIL", f"{name}: {error}")
    longest = 0
    for episode in episodes:
        first = episode.infos[0]
        ids = chat.open(episode.observations[0], system=first.get("system"), tools=first.get("tools"))
        for action, observation in zip(episode.actions, episode.observations[1:], strict=True):
            ids = ids + chat.answer_ids(action.encode("utf-8", "replace").decode())
            ids = ids + (added := chat.follow(ids, observation))
            if observation not in tokenizer.decode(added, skip_special_tokens=False):
                return Finding(
                    "rendering", "note", f"{name}: an observation changes between text and tokens: {observation!r:.80}"
                )
        longest = max(longest, len(ids))
    detail = f"{name}: appends only; longest of {len(episodes)} episodes {longest:,} tokens"
    return Finding("rendering", "ok", f"{detail} (rollout.max_context_tokens)")


def run_checks(
    config: Config, *, tokenizer: str | None, num_episodes: int, budget_s: float, max_steps: int
) -> list[Finding]:
    """All findings for the environment of a config."""
    env, timeout_s = config.env, config.rollout.step_timeout_s
    spec = environment_spec(config)
    there: str | RunError
    try:  # first where it can do no harm: what hangs or exits here would take the page along
        there = play_elsewhere(spec, timeout_s)
    except WorkerLost as error:
        return [Finding("worker process", "FAIL", str(error))]
    except RunError as error:
        there = error
    try:
        prober = Prober(replace(spec, expert=spec.offers_expert()), max_steps=max_steps, timeout_s=timeout_s)
        prober.play(0)
    except UserError:
        raise
    except ContractError as error:
        return [Finding(error.part, "FAIL", str(error))]
    except Exception as error:
        return [Finding("contract", "FAIL", str(error) if isinstance(error, RunError) else explain(error))]
    findings = [Finding("contract", "ok", "text in and out, finite rewards, terminated and truncated apart")]
    with Display() as display, display.bar(f"{env.id}: {num_episodes:,} episodes", total=num_episodes) as bar:
        checks = (check_determinism, partial(check_other_process, there=there), check_pickle, check_arbitrary_text)
        findings += [_guarded(check, prober) for check in checks]
        eval_spec = environment_spec(config, "eval")
        findings.append(_guarded(lambda p: check_tasks(p, eval_spec), prober))
        try:
            more, episodes = check_growth(prober, num_episodes, budget_s, bar.advance)
        except InfrastructureError as error:
            return [*findings, Finding("episodes", "FAIL", str(error))]
    texts = [text for episode in episodes for text in (*episode.observations, *episode.actions)]
    loaded = build_tokenizer(texts) if tokenizer is None else AutoTokenizer.from_pretrained(tokenizer)
    rendering = check_rendering(episodes, loaded, tokenizer or "the tiny model's own tokenizer")
    return [*findings, *more, rendering, *check_info(episodes)]


def _judge_memory(sizes: list[tuple[int, int]], per_env: float) -> Finding:
    settled = sizes[len(sizes) // 4 :]  # caches fill in the beginning
    episodes = max(1, settled[-1][0] - settled[0][0])
    grown = settled[-1][1] - settled[0][1]
    growth = max(0, grown) / episodes
    detail = f"{per_env / 2**20:.1f} MiB an instance; {growth:,.0f} bytes an episode over {episodes:,}"
    leaks = grown > LEAK_BYTES and growth > LEAK_BYTES_PER_EPISODE
    remedy = "; something is kept per episode: look for lists that only grow" if leaks else ""
    return Finding("memory", "FAIL" if leaks else "ok", detail + remedy)


def _judge_ends(ends: dict[str, int], max_steps: int) -> Finding:
    total = sum(ends.values())
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in ends.items() if count)
    detail = f"{total:,} episodes: {shares.replace('cut', f'still going after {max_steps} steps')}"
    return Finding("how episodes end", "note" if ends["cut"] == total else "ok", detail)


def _describe_times(prober: Prober) -> Finding:
    parts = []
    for name, values in (("reset", prober.reset_s), ("step", prober.step_s)):
        high = float(np.percentile(values, 99))
        parts.append(f"{name} {1e3 * statistics.median(values):.2f} ms (99 % below {1e3 * high:.2f})")
    slow = statistics.median(prober.step_s) > 0.2
    advice = '; slow: say metadata["blocking"] = True if it waits, or raise rollout.env_workers' if slow else ""
    return Finding("time", "note" if slow else "ok", ", ".join(parts) + advice)


def _guarded(check: Callable[[Prober], Finding], prober: Prober) -> Finding:
    try:
        return check(prober)
    except InfrastructureError as error:
        return Finding(check.__name__.removeprefix("check_").strip("<>"), "FAIL", str(error))


def _difference(a: str, b: str) -> str:
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    begin = max(0, start - 10)
    return f"...{a[begin : start + 30]!r} and ...{b[begin : start + 30]!r}"


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options, overrides = parse_command_line(check_env_parser(), argv)
    if options.episodes < 1 or options.max_steps < 1:
        raise UserError("--episodes and --max-steps must be >= 1.")
    config = with_conventions(load_config(options.config, [*overrides, "--env.id", options.env]))
    with output_file(options.json, "--json") as write:
        findings = run_checks(
            config,
            tokenizer=options.tokenizer,
            num_episodes=options.episodes,
            budget_s=options.seconds,
            max_steps=options.max_steps,
        )
        write(json.dumps([vars(finding) for finding in findings], indent=1))
    print_findings(config, findings)
    return int(any(finding.verdict == "FAIL" for finding in findings))


def print_findings(config: Config, findings: list[Finding]) -> None:
    """The page."""
    table = Table(title=f"{config.env.id}, split {config.env.split}", title_justify="left", box=None)
    for name in ("check", "", "finding"):
        table.add_column(name, overflow="fold")
    colours = {"ok": "green", "note": "yellow", "FAIL": "bold red"}
    for finding in findings:
        detail = finding.detail.encode("utf-8", "backslashreplace").decode()
        table.add_row(finding.check, Text(finding.verdict, colours[finding.verdict]), detail)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main_guard(main))
