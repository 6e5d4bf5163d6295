"""The reuse loop: loss -> backward -> gate -> clip -> optimizer, up to K times on one rollout batch."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor

from agentrl.config.schema import Config
from agentrl.errors import CheckpointError, RunError
from agentrl.learner.balance import balanced
from agentrl.learner.batch import Batch, BatchRow, MicroBatch, empty_micro_batch, micro_batches, token_weights
from agentrl.learner.gates import Gate, StepSignal, Verdict, make_gate
from agentrl.learner.host_memory import lent_to, move_state, step_tensor_by_tensor
from agentrl.learner.losses import TokenLoss
from agentrl.learner.losses.token_loss import kl_estimate
from agentrl.learner.monitors import RatioStatistics
from agentrl.learner.policy import Policy
from agentrl.learner.protocol import Update
from agentrl.learner.weight_monitor import WeightMonitor
from agentrl.model.anatomy import head_name
from agentrl.model.compiled import Compiler
from agentrl.model.logprobs import check_fidelity, row_logprobs
from agentrl.model.processes import ALONE, Processes, cut_like, local, whole
from agentrl.model.stored import StoredTensor, own_part
from agentrl.model.weights import Keep, adapter_tensors, gather_weights, plain_weights, share_of, without_adapters
from agentrl.types import Group, Metrics


class TorchLearner:
    """The policy as a PyTorch module, its optimizer and the gate.

    Args:
        module: Hugging Face causal LM, with adapters or shards where asked for.
        config: the whole experiment.
        pad_id: id for padding.
        reference: what the KL term is measured to, needed where `loss.kl_coef > 0`: a frozen copy, or a LoRA policy
            itself, which stands for the model without its adapters.
        initial: the model before training, where `module` is no longer that.
        processes: who learns together, each from its own part of the batch.
        compiler: who compiles the blocks for updates; scores by the reference, syncs and checkpoints do without.

    Raises:
        UserError: an architecture whose log-probs the learner does not compute as transformers does.
    """

    def __init__(
        self,
        module: Any,
        config: Config,
        *,
        pad_id: int,
        reference: Any | None = None,
        initial: Any | None = None,
        processes: Processes = ALONE,
        compiler: Compiler | None = None,
    ) -> None:
        self.module, self.config, self.pad_id, self.processes = module, config, pad_id, processes
        self.gate: Gate = make_gate(config.gate, seed=config.train.seed)
        self.loss = TokenLoss(config.loss)
        self.policy = Policy(
            module,
            temperature=config.rollout.temperature,
            processes=processes,
            with_factors=config.tracking.head_bound,
            keeps_frozen=config.learner.max_reuse > 1,
            compiler=compiler,
        )
        if not self.policy.sharded:  # which were asked before they were cut
            check_fidelity(module, pad_id=pad_id, max_context_tokens=config.rollout.max_context_tokens)
        self.reference = reference
        self.monitor = WeightMonitor(module, every=config.tracking.divergence_every, start=initial, processes=processes)
        self.num_batches = 0
        self.num_updates = 0
        self.offloads, self._is_resting = config.learner.shard == "offload", False
        self._moves_modules = self.offloads and not self.policy.sharded
        if self._moves_modules and reference is not None and reference is not module:
            reference.to("cpu")
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters,
            lr=config.learner.lr,
            betas=(0.9, config.learner.beta2),
            eps=config.learner.eps,
            weight_decay=config.learner.weight_decay,
            fused=True,
        )

    def update(self, batch: Batch) -> Update:
        """Use a rollout batch up to K times.

        A batch that holds no gradient (every group has equal rewards, no KL, no penalty) is no step: the gate does not
        see it.

        Args:
            batch: this process's part of the rollout batch; together the parts are one optimizer batch.

        Raises:
            RunError: three non-finite gradients in a row.
        """
        started = time.perf_counter(), time.process_time()
        self.wake()
        update = Update()
        parts, num_tokens = self.prepare(batch)
        for k in range(1, self.config.learner.max_reuse + 1 if num_tokens else 1):
            metrics, signal = self.backward(parts, k)
            if k == 1:
                metrics |= self._gap(parts)
            # Every process judges the first one's numbers, so all gates stay alike to the last bit.
            verdict = self.gate.judge(self.processes.from_first(signal))
            if verdict.apply:
                self._apply(verdict, signal.grad_norm)
                update.num_steps += 1
            else:
                update.num_discarded += 1
            self.policy.clear()
            update.trained_tokens += num_tokens
            update.steps.append({"k": k, **metrics, **verdict.metrics()})
            if verdict.stop:
                update.gate_closed = verdict.is_judgement
                break
        self.num_batches += 1
        update.seconds = (time.perf_counter() - started[0], time.process_time() - started[1])
        return update

    def kl_penalties(self, groups: Sequence[Group]) -> list[NDArray[np.float64]]:
        """What `loss.kl_in = "reward"` takes from each trajectory's reward, [G] a group.

        The coefficient times the KL of the rollout policy to the reference, summed over sampled tokens, from the
        engine's log-probs. Source: InstructGPT (arXiv 2203.02155), equation 2, as in RLOO (arXiv 2402.14740).
        """
        self.wake()
        owners = [(g, t) for g, group in enumerate(groups) for t, x in enumerate(group.trajectories) for _ in x.rows]
        rows = [row for group in groups for trajectory in group.trajectories for row in trajectory.rows]
        batch = [BatchRow(r.ids, r.trained, np.zeros(len(r.ids), np.float32), r.logprobs) for r in rows]
        penalties = [np.zeros(len(group.trajectories)) for group in groups]
        parts = self._pad_parts(self._micro_batches(batch, [1.0] * len(batch), lambda row: bool(row.trained.any())))
        self._score_by_reference(parts)
        for part in parts:
            reference = _known(part.reference_logprobs)
            estimates = kl_estimate(part.rollout_logprobs, reference, self.config.loss.kl_kind)
            sums = torch.zeros(len(part.rows)).to(estimates).index_add_(0, part.row_index, estimates)
            for row, value in zip(part.rows, sums.tolist(), strict=True):
                group, trajectory = owners[row]
                penalties[group][trajectory] += self.config.loss.kl_coef * value
        return penalties

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Named whole tensors for an engine that holds a replica: adapters merged, the head included where tied."""
        self.wake()
        table = self.module.get_input_embeddings()
        embedding = next(f"{name}.weight" for name, part in self.module.named_modules() if part is table)
        for name, tensor in plain_weights(self.module):
            yield name, tensor
            if self.policy.is_tied and name == embedding:
                yield head_name(self.module), tensor

    def adapter(self) -> dict[str, torch.Tensor]:
        """The factors of a LoRA policy, whole, by the module's names, for servers that hold the base."""
        self.wake()
        return adapter_tensors(self.module)

    def score(self, ids: list[int], temperature: float) -> list[float]:
        """Log-prob of every id but the first given those before it, [L - 1]."""
        return row_logprobs(self.module, ids, temperature)

    def rest(self) -> None:
        """Leave the device's memory to an engine until the weights are needed again, where `learner.shard` says so."""
        if self._moves_modules:
            self.module.to("cpu")
            self._is_resting = True

    def wake(self) -> None:
        """Have the weights where they are computed with."""
        if self._is_resting:
            self.module.to(self.processes.device)
            self._is_resting = False

    def measure(self) -> Metrics:
        """`weight_change/GROUP` where one is due after this batch."""
        return self.monitor.measure(self.num_batches)

    def learning_rate(self, gate_factor: float = 1.0) -> float:
        """Of a step on the present batch: the schedule's, times the gate's factor."""
        factor = learning_rate_factor(
            self.num_batches,
            warmup=self.config.learner.warmup_batches,
            total=self.config.train.steps if self.config.learner.schedule == "linear" else None,
        )
        return self.config.learner.lr * factor * gate_factor

    def state_dict(self, *, spread: bool = False) -> dict[str, Any]:
        """Weights (adapters merged), adapters, moments and monitors by parameter name; counters and gate as numbers.

        Whole tensors, on the first process only, or `spread` over all: each gets its share of them, together all. All
        must ask together.
        """
        self.wake()
        keep: Keep = share_of(self.module, self.processes) if spread else (lambda _: self.processes.is_first)
        return {
            "weights": gather_weights(self.module, keep=keep),
            "adapter": adapter_tensors(self.module),
            "optimizer": self._moments(keep),
            "monitor": self.monitor.tensors(self.num_batches, keep),
            "counters": {"num_batches": self.num_batches, "num_updates": self.num_updates},
            "gate": self.gate.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` saved, on any number of processes; weights came with the module."""
        self._load_moments(state["optimizer"])
        self.monitor.load_tensors(state["monitor"])
        self.num_batches = int(state["counters"]["num_batches"])
        self.num_updates = int(state["counters"]["num_updates"])
        self.gate.load_state_dict(state["gate"])

    def prepare(self, batch: Batch) -> tuple[list[MicroBatch], int]:
        """Micro-batches with the rows that can contribute a gradient, and their trained tokens over all processes."""
        loss = self.config.loss
        always = loss.kl_coef > 0 and loss.kl_in == "loss"

        def keep(row: BatchRow) -> bool:
            return always or bool(row.advantages.any())

        rows = balanced(batch.rows, keep, self.processes)
        counts = torch.tensor([batch.num_trained_tokens, len(rows)], dtype=torch.float64)
        self.processes.sum_([counts])
        weights = token_weights(
            rows,
            normalization=loss.normalization,
            num_tokens=max(1, int(counts[0])),
            num_rows=max(1, int(counts[1])),
            row_tokens=self.config.rollout.max_context_tokens,
        )
        parts = self._micro_batches(rows, weights, keep)
        used = torch.tensor([sum(len(part.targets) for part in parts)], dtype=torch.float64)
        self.processes.sum_([used])
        return self._pad_parts(parts), int(used)

    def backward(self, parts: list[MicroBatch], k: int) -> tuple[Metrics, StepSignal]:
        """Accumulate the gradient of the whole batch in the parameters; monitors and signal, before clipping.

        Args:
            parts: of `prepare`; the first pass over them notes the log-probs that later ones are compared with.
            k: how often the batch has been used, this time included.
        """
        config = self.config.loss
        if config.kl_coef and config.kl_in == "loss":
            self._score_by_reference(parts)
        sums, statistics = torch.zeros(2, dtype=torch.float64), RatioStatistics()
        factor = torch.zeros(1, dtype=torch.float64)
        with self.policy.working():
            selected = self._select(parts) if config.selects and k > 1 else [None] * len(parts)
            for part, choice in zip(parts, selected, strict=True):
                logprobs = self.policy.logprobs(part)
                if part.old_logprobs is None:
                    part.old_logprobs = logprobs.detach()
                losses, kept = self.loss(logprobs, part, choice)
                objective = (losses * part.weights).sum()
                factor = torch.maximum(factor, self._backward_of_part(objective, logprobs, part))
                sums[0] += objective.detach().double().cpu()
                statistics += RatioStatistics.of(
                    logprobs.detach(), part.old_logprobs, part.advantages, part.row_index,
                    clip_range=config.clip_range, kept=kept,
                )  # fmt: skip
            head_energy, norms = self.policy.reduce()
        sums[1] = _known(self.policy.head.entropy).cpu()
        self.processes.sum_([sums])
        statistics = statistics.reduce(self.processes)
        metrics = {
            "loss": float(sums[0]),
            "head_energy": head_energy,
            "grad_norm": _norm(norms),
            **statistics.metrics(),
        }
        if config.masks:
            metrics["masked"] = statistics.masked / statistics.tokens
        if self.config.tracking.head_bound:
            self.processes.max_(factor)
            metrics["head_bound"] = float(factor)
        metrics["entropy"] = float(sums[1]) / statistics.tokens
        metrics |= {f"grad_norm_{name}": norm for name, norm in norms.items()}
        return metrics, self._signal(k, metrics)

    def _gap(self, parts: list[MicroBatch]) -> Metrics:
        """How far the policy that played the batch is from the one that begins to learn from it.

        Batches that are played ahead lag by design; else `engine_kl`, KL(engine || learner) at equal weights, shows
        what other code in the engine makes of them.
        """
        statistics = RatioStatistics()
        for part in parts:
            statistics += RatioStatistics.of(
                _known(part.old_logprobs), part.rollout_logprobs, part.advantages, part.row_index,
                clip_range=self.config.loss.clip_range,
            )  # fmt: skip
        statistics = statistics.reduce(self.processes)
        return statistics.lag_metrics() if self.config.rollout.ahead else {"engine_kl": statistics.metrics()["kl"]}

    def _backward_of_part(self, objective: torch.Tensor, logprobs: torch.Tensor, part: MicroBatch) -> torch.Tensor:
        """Backward; the largest factor of Theorem 2 among the part's tokens where it is tracked, [1], else 0."""
        if not self.config.tracking.head_bound:
            objective.backward()
            return torch.zeros(1, dtype=torch.float64)
        logprobs.retain_grad()
        objective.backward()
        return self.policy.head.largest_factor(_known(logprobs.grad), part.advantages)[None]

    def _signal(self, k: int, metrics: Metrics) -> StepSignal:
        shared = ("head_energy", "grad_norm", "loss", "kl", "clip_fraction", "ess", "m2", "sequence_ess")
        tied = metrics["grad_norm_embedding"] ** 2 if self.policy.is_tied else None
        return StepSignal(k, **{name: metrics[name] for name in shared}, tied_energy=tied)

    def _micro_batches(
        self, rows: list[BatchRow], weights: list[float], keep: Callable[[BatchRow], bool]
    ) -> list[MicroBatch]:
        budget = self.config.learner.microbatch_tokens
        parts = micro_batches(rows, weights, budget=budget, pad_id=self.pad_id, keep=keep)
        return [part.to(self.processes.device) for part in parts]

    def _pad_parts(self, parts: list[MicroBatch]) -> list[MicroBatch]:
        """With shards every forward pass is a meeting: all processes need the same number of them."""
        if not self.policy.sharded:
            return parts
        most = torch.tensor([len(parts)])
        self.processes.max_(most)
        empty = [empty_micro_batch(self.pad_id).to(self.processes.device) for _ in range(int(most) - len(parts))]
        return parts + empty

    def _apply(self, verdict: Verdict, grad_norm: float) -> None:
        """Scale as the gate says, clip the norm, step at the rate of schedule and gate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(verdict.rate_factor)
        limit = self.config.learner.max_grad_norm / (verdict.scale * grad_norm + 1e-6)
        factor = verdict.scale * min(1.0, limit)
        if factor != 1.0:
            self.policy.scale_gradient(factor)
        if self.offloads:
            step_tensor_by_tensor(self.optimizer, self.policy.parameters)
        else:
            self.optimizer.step()
        self.num_updates += 1

    @torch.no_grad()
    def _score_by_reference(self, parts: list[MicroBatch]) -> None:
        """Give every part the reference policy's log-probs, once."""
        if all(part.reference_logprobs is not None for part in parts):
            return
        if self.reference is None:
            raise RunError("loss.kl_coef > 0 needs a reference policy, none was given")
        reference = Policy(self.reference, temperature=self.config.rollout.temperature)
        with self._reference_at_hand(), reference.working():
            for part in parts:
                part.reference_logprobs = reference.logprobs(part)

    def _reference_at_hand(self) -> AbstractContextManager[None]:
        if self.reference is self.module:
            return without_adapters(self.module)
        return lent_to(self.reference, self.processes.device) if self._moves_modules else nullcontext()

    @torch.no_grad()
    def _select(self, parts: list[MicroBatch]) -> list[torch.Tensor | None]:
        """The loss's choice over the whole batch of all processes; this one's part, split into micro-batches."""
        ratios = [(self.policy.logprobs(part) - _known(part.old_logprobs)).cpu() for part in parts]
        advantages = [part.advantages.cpu() for part in parts]
        mine = (torch.cat([*ratios, torch.empty(0)]), torch.cat([*advantages, torch.empty(0)]))
        everyone = self.processes.gather(mine)
        ratio, advantage = (torch.cat([pair[i] for pair in everyone]) for i in range(2))
        chosen = _known(self.config.loss.select(ratio, advantage))
        own = chosen.split([len(pair[0]) for pair in everyone])[self.processes.rank]
        return list(own.to(self.processes.device).split([len(ratio) for ratio in ratios]))

    def _moments(self, keep: Keep) -> dict[str, dict[str, torch.Tensor]]:
        """The optimizer's tensors by parameter and kind, whole, of the parameters that are kept; one at a time."""
        kept: dict[str, dict[str, torch.Tensor]] = {}
        for name, parameter in zip(self.policy.names, self.policy.parameters, strict=True):
            if parameter in self.optimizer.state:  # else it has had no gradient yet
                for kind, value in self.optimizer.state[parameter].items():
                    joined = _joined(value, parameter)
                    if keep(name):
                        kept.setdefault(name, {})[kind] = joined.cpu()
        return kept

    def _load_moments(self, moments: Mapping[str, Mapping[str, torch.Tensor | StoredTensor]]) -> None:
        """Give the optimizer what `_moments` of all processes gave; each takes its own part of every tensor."""
        parameters = dict(zip(self.policy.names, self.policy.parameters, strict=True))
        unknown = next((name for name in moments if name not in parameters), None)
        if unknown is not None:
            raise CheckpointError(f"the optimizer's state names {unknown!r}, which this model does not train.")
        self.optimizer.state.clear()
        for name, kinds in moments.items():
            parameter = parameters[name]
            state: dict[str, Any] = {kind: _cut(value, parameter) for kind, value in kinds.items()}
            if self.offloads:
                move_state(state, torch.device("cpu"))
            self.optimizer.state[parameter] = state


def learning_rate_factor(num_batches: int, *, warmup: int, total: int | None) -> float:
    """Part of the full learning rate for the batch after `num_batches`, in (0, 1].

    Rises linearly over `warmup` batches, then stays, or falls linearly, to reach zero after `total` batches.
    Counted in rollout batches, not optimizer steps, so that reuse and discarded steps change nothing.
    """
    if num_batches < warmup:
        return (num_batches + 1) / warmup
    if total is None:
        return 1.0
    return max(1, total - num_batches) / max(1, total - warmup)


def _joined(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The whole of what the optimizer keeps of a parameter; of shards on the host too, which meet on the device."""
    return whole(cut_like(local(value), parameter)) if isinstance(value, DTensor) else value


def _cut(value: torch.Tensor | StoredTensor, parameter: torch.Tensor) -> torch.Tensor:
    """What the optimizer keeps of a parameter, from the whole: moments cut as it is, in its type; counts as is."""
    part = own_part(value, parameter).to(parameter.device)
    return cut_like(part.to(parameter.dtype), parameter) if value.shape == parameter.shape else part


def _norm(norms: dict[str, float]) -> float:
    return float(sum(norm**2 for norm in norms.values()) ** 0.5)


def _known(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None, "noted by the first pass, or the backward before"
    return tensor
