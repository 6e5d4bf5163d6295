"""Plays episodes: coroutines over `await engine.generate` and `await env.step`, each on its own clock."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from agentrl.common.event_loops import run_coroutine
from agentrl.config.schema import RolloutConfig
from agentrl.console import note
from agentrl.environment.calls import NoRoom
from agentrl.environment.played import PlayedEnvironment
from agentrl.environment.pool import EnvironmentHandle, EnvPool, NeighbourLost, WorkerLost
from agentrl.errors import InfrastructureError, Unplayable
from agentrl.rollout.admission import Admission
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Engine, Sampling
from agentrl.rollout.episode import EpisodeInPlay
from agentrl.rollout.quota import GroupsInPlay, Quota
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.rollout.scripted import EnginePlayer, Player, ScriptedPlayer, ScriptedPolicy
from agentrl.types import Status, Task, Trajectory

MAX_RETRIES = 2
"""Times an episode is played again after an infrastructure failure."""
MAX_SPOILED = 20
"""Times an episode is played again because a neighbour in its worker process took that along."""
_HOPELESS = 24
"""Lost worker processes after which a batch is given up where not one step was answered yet: hangs take their time."""
_QUARANTINE = 2
"""Episodes that lost a worker process and are played again at once, each in a process of its own."""
_NOTHING = GroupsInPlay([], group_size=1)


class Rollout:
    """Plays groups of tasks with one engine.

    Args:
        engine: samples tokens.
        chat: turns messages into ids.
        environments: what is played, by `Task.environment`; a pool is the only one.
        config: limits and context.
        seed: keys the random numbers of every episode, with task, member and turn.
        policy: a scripted policy that answers in the engine's place; its rows look exactly like sampled ones.
        player: whoever else answers in the engine's place.
    """

    def __init__(
        self,
        engine: Engine | None,
        chat: Chat,
        environments: EnvPool | Mapping[str, PlayedEnvironment],
        config: RolloutConfig,
        *,
        seed: int,
        policy: ScriptedPolicy | None = None,
        player: Player | None = None,
    ) -> None:
        assert [engine, policy, player].count(None) == 2, "an engine, a scripted policy or another player answers"
        if isinstance(environments, EnvPool):
            environments = {"": PlayedEnvironment(environments)}
        self.environments = environments
        self.chat, self.config, self.seed = chat, config, seed
        self.is_scripted = policy is not None
        self.player: Player
        if player is not None:
            self.player = player
        elif policy is not None:
            self.player = ScriptedPlayer(policy, chat, stop=config.stop)
        elif engine is not None:
            sampling = Sampling(config.max_new_tokens, config.temperature, tuple(config.stop), chat.stop_ids)
            self.player = EnginePlayer(engine, sampling)
        self.admission = Admission(
            getattr(engine, "cache", None), most=config.max_concurrent, row_tokens=config.max_context_tokens
        )
        self._has_told = False
        self._without_success: set[str] = set()
        """Environments of which it was said what counts as success."""
        self._longest_unasked = 0
        self._in_play = _NOTHING
        self._paused: dict[tuple[int, int], tuple[EpisodeInPlay, EnvironmentHandle]] = {}
        """Episodes of groups that were put off, by position and member, between two of their turns."""
        self.num_steps, self._num_lost = 0, 0
        """Steps answered, and worker processes lost, in the present `play`."""

    def play(
        self,
        tasks: list[Task],
        *,
        group_size: int,
        on_episode: Callable[[Trajectory], None] | None = None,
        known: Mapping[tuple[int, int], Trajectory] | None = None,
        quota: Quota | None = None,
    ) -> RolloutBatch:
        """Play every task `group_size` times; those of `known`, by position and member, are taken as they are.

        With a quota as many of the tasks are begun as it asks for; episodes that still go on when it is filled pause
        before their next turn, and go on where a later call plays their task again.

        Episodes that infrastructure failures spoiled are left out; so is a group with fewer than 2 left (unless only
        1 was asked for). Every failed trajectory is reported to `on_episode`.

        Raises:
            Unplayable: not one whole group came back.
            RunError: a fatal failure (a dead retriever) struck.
        """
        started = time.perf_counter(), time.process_time()
        before = self.player.counts()
        self._in_play = in_play = GroupsInPlay(tasks, group_size=group_size, quota=quota)
        self.num_steps, self._num_lost = 0, 0
        for environment in self.environments.values():
            environment.pool.renew()
        try:
            run_coroutine(self._play_all(in_play, on_episode or (lambda _: None), known or {}))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._in_play = _NOTHING  # it holds all episodes
        self.player.pause()
        seconds = (time.perf_counter() - started[0], time.process_time() - started[1])
        groups, left_out, played = in_play.groups(), in_play.num_left_out(), in_play.played()
        failures = [t for t in played if t.status is Status.FAILED]
        self._tell_unasked(played)
        self._tell_threshold([t for group in groups for t in group.trajectories])
        if not groups:
            raise Unplayable(f"no group of this batch could be played: {failures[0].error}")
        if left_out:
            note(f"{left_out} of {len(groups) + left_out} groups left out after failures: {failures[0].error}")
        counts = {name: count - before.get(name, 0.0) for name, count in self.player.counts().items()}
        return RolloutBatch(
            groups, failures, left_out, seconds, counts, self.player.version,
            in_play.put_off(), in_play.kept(), in_play.episodes_s, in_play.whole_s,
        )  # fmt: skip

    async def _play_all(
        self,
        in_play: GroupsInPlay,
        on_episode: Callable[[Trajectory], None],
        known: Mapping[tuple[int, int], Trajectory],
    ) -> None:
        """Fill `in_play`. (A returned value would be part of the task, whose repr asyncio takes at the end.)"""
        asyncio.get_running_loop().set_exception_handler(_report_errors)
        pools = [environment.pool for environment in self.environments.values()]
        for pool in pools:
            pool.room.open()
        places, quarantine = asyncio.Semaphore(self.admission.places), asyncio.Semaphore(_QUARANTINE)

        async def play_one(number: int, member: int) -> None:
            task = in_play.tasks[number]
            trajectory = known.get((task.position, member))
            if trajectory is None:
                trajectory = await self._play_with_retries(task, member, places, quarantine)
                for _ in range(self.admission.learn(trajectory) if trajectory is not None else 0):
                    places.release()
            if trajectory is not None:
                on_episode(trajectory)
                in_play.add(number, trajectory)
                begin()

        def begin() -> None:
            for number in in_play.begin():
                for member in range(in_play.group_size):
                    episodes.create_task(play_one(number, member))

        async with asyncio.TaskGroup() as episodes:
            begin()
        await asyncio.gather(*(pool.rest() for pool in pools))

    def _tell_unasked(self, played: list[Trajectory]) -> None:
        """Say which tasks were never asked; again only where a longer prompt comes."""
        longest = max((t.unasked_tokens for t in played), default=0)
        if longest > self._longest_unasked:
            self._longest_unasked = longest
            tasks = {t.task.position for t in played}
            unasked = {t.task.position for t in played if t.unasked_tokens}
            note(
                f"{len(unasked)} of {len(tasks)} tasks were never asked: their first prompt has up to {longest:,} "
                f"tokens, and rollout.max_context_tokens is {self.config.max_context_tokens:,}. Raise it above "
                f"{longest:,}, or shorten what the environment says first."
            )

    def _tell_threshold(self, played: list[Trajectory]) -> None:
        """Say once what success is of an environment that does not say it and gives more than 0 or the threshold."""
        for name, environment in self.environments.items():
            limit = environment.success_threshold
            silent = [t for t in played if t.task.environment == name and not t.tells_success]
            returns = [t.outcome[1] for t in silent]
            if name not in self._without_success and any(value not in (0.0, limit) for value in returns):
                self._without_success.add(name)
                note(
                    f"{environment.pool.spec.id} gives no info['success']: an episode whose return is at least "
                    f"{limit:g} (env.success_threshold) counts as one; returns here lie between {min(returns):.3g} "
                    f"and {max(returns):.3g}"
                )

    async def _play_with_retries(
        self, task: Task, member: int, places: asyncio.Semaphore, quarantine: asyncio.Semaphore
    ) -> Trajectory | None:
        """The episode; None where the batch was enough before it was over."""
        error, lost, failed, spoiled, refused = "", False, 0, 0, 0
        while failed <= MAX_RETRIES:
            async with AsyncExitStack() as place:
                await place.enter_async_context(quarantine if lost else places)
                started = time.perf_counter()
                try:
                    if self._in_play.is_enough:
                        return None
                    trajectory = await self._play_in_room(task, member, place, alone=lost)
                except NoRoom as refusal:
                    refused += 1
                    pool = self.environments[task.environment].pool
                    await pool.rest()
                    if not await pool.room.refuse(refused):
                        failed, error = MAX_RETRIES + 1, _explain_room(pool, refusal)
                        self._take_note(error, lost=False)
                    continue
                except InfrastructureError as failure:
                    if isinstance(failure, NeighbourLost) and spoiled < MAX_SPOILED:
                        spoiled += 1
                        continue
                    failed, error, lost = failed + 1, str(failure), isinstance(failure, WorkerLost)
                    self._take_note(error, lost=lost)
                    continue
            if trajectory is None:
                return None
            self._in_play.episodes_s.append(time.perf_counter() - started)
            rewards = self.environments[task.environment].rewards
            if rewards is not None:
                rewards.give(trajectory)
            trajectory.info = {}  # it may be large, and is not stored
            trajectory.num_retries, trajectory.error = failed + spoiled, error
            return trajectory
        return Trajectory(task, member, [], [], "", Status.FAILED, error=error, num_retries=MAX_RETRIES)

    async def _play_in_room(self, task: Task, member: int, place: AsyncExitStack, *, alone: bool) -> Trajectory | None:
        """One try, with a place on the server where there are only so many; after a refusal the caller leaves it."""
        pool = self.environments[task.environment].pool
        room = pool.room
        await room.enter()
        paused = self._paused.pop((task.position, member), None)
        handle = pool.acquire(alone=alone) if paused is None else paused[1]
        try:
            episode = await self._begin_episode(task, member, handle) if paused is None else paused[0]
            trajectory = await self._play_episode(episode, handle, place)
        except NoRoom:
            await pool.release(handle, broken=True)
            raise
        except InfrastructureError:
            await pool.release(handle, broken=True)
            await room.leave()
            raise
        if trajectory is None:
            self._paused[task.position, member] = episode, handle
        else:
            await pool.release(handle)
        await room.leave()
        return trajectory

    def _take_note(self, error: str, *, lost: bool) -> None:
        """Say the first failure at once: with long time-outs the end of a batch may be far. Records count all."""
        if not self._has_told:
            self._has_told = True
            note(f"an episode failed, it is played again at most {MAX_RETRIES} times: {error}")
        self._num_lost += lost
        if not self.num_steps and self._num_lost >= _HOPELESS:
            raise Unplayable(f"no group of this batch could be played: {error}")

    async def _begin_episode(self, task: Task, member: int, env: EnvironmentHandle) -> EpisodeInPlay:
        observation, info = await env.reset(task)
        how = self.environments[task.environment]
        return EpisodeInPlay(
            task, member, observation, info,
            player=self.player, config=self.config, chat=self.chat, seed=self.seed, system=how.system,
            success_threshold=how.success_threshold,
        )  # fmt: skip

    async def _play_episode(
        self, episode: EpisodeInPlay, env: EnvironmentHandle, place: AsyncExitStack
    ) -> Trajectory | None:
        """Turn by turn to its end, or None where the batch is enough before."""
        place.callback(self.player.release, episode.session)
        while episode.status is None:
            if self._in_play.is_enough:
                return None
            action = await episode.answer()
            if action is None:
                break
            if len(episode.turns) == self.config.max_turns:
                # The engine is done with this episode: a slow verdict keeps nobody from its place.
                await place.aclose()
            result = await env.step(action)
            self.num_steps += 1
            episode.observe(action, *result)
        return episode.finish()


def _explain_room(pool: EnvPool, refusal: NoRoom) -> str:
    return (
        f"no place for another episode within {pool.room.patience_s:g} s: {refusal}. "
        "Let the server play more at once, or end the other clients that hold its places"
    )


def _report_errors(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An interruption is told by the run that it ends, not once more by every episode."""
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)
