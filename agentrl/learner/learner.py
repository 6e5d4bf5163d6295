"""The reuse loop: loss -> backward -> gate -> clip -> optimizer, up to K times on one rollout batch."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agentrl.config.schema import Config
from agentrl.errors import RunError
from agentrl.learner.batch import Batch, BatchRow, MicroBatch, empty_micro_batch, micro_batches, token_weights
from agentrl.learner.gates import Gate, make_gate
from agentrl.learner.loss_masks import token_mask
from agentrl.learner.losses import (
    kl_estimate,
    m2po_mask,
    mismatch_weights,
    policy_loss,
    ratio_metrics,
    ratio_sums,
    sequence_ess,
    sequence_sums,
)
from agentrl.learner.policy import Policy
from agentrl.model.anatomy import head_name
from agentrl.model.logprobs import check_fidelity
from agentrl.model.processes import ALONE, Processes, sharded_like, whole
from agentrl.model.weights import plain_weights, without_adapters
from agentrl.types import Group, Metrics, StepSignal, Verdict


@dataclass
class Update:
    """What `Learner.update` did with one rollout batch."""

    num_steps: int = 0
    """Gradients applied."""
    num_discarded: int = 0
    """Gradients computed and discarded."""
    gate_closed: bool = False
    """Whether the gate ended reuse before K."""
    steps: list[Metrics] = field(default_factory=list)
    """Monitors of every update, in order."""
    trained_tokens: int = 0
    """Sampled tokens in the forward passes, summed over updates and processes."""
    seconds: tuple[float, float] = (0.0, 0.0)
    """Wall and CPU seconds of the whole update in this process."""


class Learner:
    """Holds the policy, its optimizer and the gate.

    Args:
        module: Hugging Face causal LM, with adapters or shards where asked for.
        config: the whole experiment.
        pad_id: id for padding.
        reference: what the KL term is measured to, needed where `loss.kl_coef > 0`: a frozen copy, or a LoRA policy
            itself, which stands for the model without its adapters.
        processes: who learns together, each from its own part of the batch.

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
        processes: Processes = ALONE,
    ) -> None:
        self.module, self.config, self.pad_id, self.processes = module, config, pad_id, processes
        self.gate: Gate = make_gate(config.gate, seed=config.train.seed)
        self.policy = Policy(
            module,
            temperature=config.rollout.temperature,
            processes=processes,
            with_factors=config.tracking.head_bound,
        )
        if not self.policy.sharded:  # which were asked before they were cut
            check_fidelity(module, pad_id=pad_id, max_context_tokens=config.rollout.max_context_tokens)
        self.reference = reference
        self.num_batches = 0
        self.num_updates = 0
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters,
            lr=config.learner.lr,
            betas=(config.learner.beta1, config.learner.beta2),
            eps=config.learner.eps,
            weight_decay=config.learner.weight_decay,
            fused=True,
        )
        self._loss = policy_loss(config.loss)

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
        update = Update()
        parts, num_tokens = self._prepare(batch)
        for k in range(1, self.config.learner.max_reuse + 1 if num_tokens else 1):
            metrics, signal = self._backward(parts, k)
            # Every process judges the first one's numbers, so all gates stay alike to the last bit.
            verdict = self.gate.judge(self.processes.from_first(signal))
            if verdict.apply:
                self._apply(verdict, signal.grad_norm)
                update.num_steps += 1
            else:
                update.num_discarded += 1
            self.policy.clear()
            update.trained_tokens += num_tokens
            update.steps.append({"k": k, **metrics, **_verdict_metrics(verdict)})
            if verdict.stop:
                update.gate_closed = verdict.reason not in ("", "filling", "non_finite")
                break
        self.num_batches += 1
        update.seconds = (time.perf_counter() - started[0], time.process_time() - started[1])
        return update

    def kl_penalties(self, groups: Sequence[Group]) -> list[NDArray[np.float64]]:
        """What `loss.kl_in = "reward"` takes from each trajectory's reward, [G] a group.

        The coefficient times the KL of the rollout policy to the reference, summed over sampled tokens, from the
        engine's log-probs. Source: InstructGPT (arXiv 2203.02155), equation 2, as in RLOO (arXiv 2402.14740).
        """
        owners = [(g, t) for g, group in enumerate(groups) for t, x in enumerate(group.trajectories) for _ in x.rows]
        rows = [row for group in groups for trajectory in group.trajectories for row in trajectory.rows]
        batch = [BatchRow(r.ids, r.trained, np.zeros(len(r.ids), np.float32), r.logprobs) for r in rows]
        penalties = [np.zeros(len(group.trajectories)) for group in groups]
        for part in self._pad_parts(self._micro_batches(batch, [1.0] * len(batch), lambda row: row.trained.any())):
            estimates = kl_estimate(part.rollout_logprobs, self._reference_logprobs(part), self.config.loss.kl_kind)
            sums = torch.zeros(len(part.rows)).to(estimates).index_add_(0, part.row_index, estimates)
            for row, value in zip(part.rows, sums.tolist(), strict=True):
                group, trajectory = owners[row]
                penalties[group][trajectory] += self.config.loss.kl_coef * value
        return penalties

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Named whole tensors for an engine that holds a replica: adapters merged, the head included where tied."""
        table = self.module.get_input_embeddings()
        embedding = next(f"{name}.weight" for name, part in self.module.named_modules() if part is table)
        for name, tensor in plain_weights(self.module):
            yield name, tensor
            if self.policy.is_tied and name == embedding:
                yield head_name(self.module), tensor

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights: optimizer tensors under `optimizer`, plain numbers under `counters`.

        Whole tensors, on the first process only; all must ask together.
        """
        return {
            "optimizer": self._whole_moments(),
            "counters": {"num_batches": self.num_batches, "num_updates": self.num_updates},
            "gate": self.gate.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` saved, on any number of processes."""
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {
            i: {kind: sharded_like(tensor, self.policy.parameters[i]) for kind, tensor in kinds.items()}
            for i, kinds in state["optimizer"].items()
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.num_batches = int(state["counters"]["num_batches"])
        self.num_updates = int(state["counters"]["num_updates"])
        self.gate.load_state_dict(state["gate"])

    def _whole_moments(self) -> dict[int, dict[str, torch.Tensor]]:
        kept: dict[int, dict[str, torch.Tensor]] = {}
        for index, kinds in self.optimizer.state_dict()["state"].items():
            for kind, tensor in kinds.items():
                moment = whole(tensor)
                if self.processes.is_first:
                    kept.setdefault(index, {})[kind] = moment.cpu()
        return kept

    def _prepare(self, batch: Batch) -> tuple[list[MicroBatch], int]:
        """Micro-batches with the rows that can contribute a gradient, and their trained tokens over all processes."""
        loss = self.config.loss
        counts = torch.tensor([batch.num_trained_tokens, len(batch.rows)], dtype=torch.float64)
        self.processes.sum_([counts])
        weights = token_weights(
            batch.rows,
            normalization=loss.normalization,
            num_tokens=max(1, int(counts[0])),
            num_rows=max(1, int(counts[1])),
            row_tokens=self.config.rollout.max_context_tokens,
        )
        always = loss.kl_coef > 0 and loss.kl_in == "loss"
        parts = self._micro_batches(batch.rows, weights, lambda row: always or bool(row.advantages.any()))
        used = torch.tensor([sum(len(part.targets) for part in parts)], dtype=torch.float64)
        self.processes.sum_([used])
        return self._pad_parts(parts), int(used)

    def _micro_batches(self, rows: list[BatchRow], weights: list[float], keep: Any) -> list[MicroBatch]:
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

    def _backward(self, parts: list[MicroBatch], k: int) -> tuple[Metrics, StepSignal]:
        """Accumulate the gradient of the whole batch; monitors and signal before clipping."""
        config = self.config.loss
        total, factor, left_out = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        sums, sequences = torch.zeros(8, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        with self.policy.working():
            keep = self._m2po_keep(parts) if config.kind == "m2po" and k > 1 else None
            masks = config.kind in ("m2po", "dppo") or config.sequence_mask != "off"
            for i, part in enumerate(parts):
                logprobs = self.policy.logprobs(part)
                if part.old_logprobs is None:
                    part.old_logprobs = logprobs.detach()
                losses = self._token_losses(part, logprobs)
                kept = self._kept(part, logprobs, None if keep is None else keep[i])
                if kept is not None:
                    losses = losses * kept
                    left_out += (~kept).sum().cpu()
                objective = (losses * part.weights).sum()
                if self.config.tracking.head_bound:
                    logprobs.retain_grad()
                objective.backward()
                if self.config.tracking.head_bound:
                    here = self.policy.head.largest_factor(_known(logprobs.grad), part.advantages)
                    factor = torch.maximum(factor, here)
                total += objective.detach().double().cpu()
                sums = add_ratio_sums(
                    sums,
                    ratio_sums(
                        logprobs.detach(), part.old_logprobs, part.advantages,
                        low=config.clip_low, high=config.clip_high,
                    ),
                )  # fmt: skip
                sequences += sequence_sums(logprobs.detach(), part.old_logprobs, part.row_index)
            head_energy, norms = self.policy.reduce()
        largest, entropy = sums[-1:].clone(), _known(self.policy.head.entropy).cpu()
        self.processes.sum_([total, entropy, sums, sequences, left_out])
        largest = torch.cat([largest, factor[None]])
        self.processes.max_(largest)
        sums[-1] = largest[0]
        ratios = ratio_metrics(sums) | {"sequence_ess": sequence_ess(sequences)}
        ratios |= {"masked": float(left_out / sums[0])} if masks else {}
        ratios |= {"head_bound": float(largest[1])} if self.config.tracking.head_bound else {}
        return self._describe(k, float(total), head_energy, norms, ratios, float(entropy / sums[0]))

    def _kept(self, part: MicroBatch, logprobs: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor | None:
        """Tokens that count in the loss, [N]: those of M2PO's selection and of the masks; None where all do."""
        mask = token_mask(self.config.loss, logprobs, part.rollout_logprobs, part.advantages, part.row_index)
        return keep if mask is None else mask if keep is None else keep & mask

    def _token_losses(self, part: MicroBatch, logprobs: torch.Tensor) -> torch.Tensor:
        """Loss of every trained token, before its weight, [N]."""
        config = self.config.loss
        old = _known(part.old_logprobs)
        losses = self._loss(logprobs, old, part.rollout_logprobs, part.advantages, part.row_index)
        if config.tis_cap:
            losses = losses * mismatch_weights(old, part.rollout_logprobs, cap=config.tis_cap, kind=config.tis_kind)
        if config.kl_coef and config.kl_in == "loss":
            reference = self._reference_logprobs(part)
            losses = losses + config.kl_coef * kl_estimate(logprobs, reference, config.kl_kind)
        return losses

    def _describe(
        self, k: int, loss: float, head_energy: float, norms: dict[str, float], ratios: Metrics, entropy: float
    ) -> tuple[Metrics, StepSignal]:
        grad_norm = sum(norm**2 for norm in norms.values()) ** 0.5
        whole_matrix = self.policy.is_tied and self.config.gate.energy == "tied"
        signal = StepSignal(
            k, norms["embedding"] ** 2 if whole_matrix else head_energy, grad_norm, loss,
            kl=ratios["kl"], clip_fraction=ratios["clip_fraction"], ess=ratios["ess"], m2=ratios["m2"],
            sequence_ess=ratios["sequence_ess"],
        )  # fmt: skip
        metrics = {"loss": loss, "head_energy": head_energy, "grad_norm": grad_norm, **ratios, "entropy": entropy}
        metrics |= {f"grad_norm_{name}": norm for name, norm in norms.items()}
        return metrics, signal

    def _apply(self, verdict: Verdict, grad_norm: float) -> None:
        """Scale as the gate says, clip the norm, step at the rate of schedule and gate."""
        self._set_learning_rate(verdict.rate_factor)
        limit = self.config.learner.max_grad_norm / (verdict.scale * grad_norm + 1e-6)
        factor = verdict.scale * min(1.0, limit)
        if factor != 1.0:
            self.policy.scale_gradient(factor)
        self.optimizer.step()
        self.num_updates += 1

    def _reference_logprobs(self, part: MicroBatch) -> torch.Tensor:
        if part.reference_logprobs is None:
            if self.reference is None:
                raise RunError("loss.kl_coef > 0 needs a reference policy, none was given")
            policy = Policy(self.reference, temperature=self.config.rollout.temperature)
            with without_adapters(self.module) if self.reference is self.module else nullcontext():
                part.reference_logprobs = policy.frozen_logprobs(part)
        return part.reference_logprobs

    @torch.no_grad()
    def _m2po_keep(self, parts: list[MicroBatch]) -> list[torch.Tensor]:
        """M2PO's selection over the whole batch of all processes; this one's part, split into micro-batches."""
        ratios = [(self.policy.logprobs(part) - _known(part.old_logprobs)).cpu() for part in parts]
        advantages = [part.advantages.cpu() for part in parts]
        mine = (torch.cat([*ratios, torch.empty(0)]), torch.cat([*advantages, torch.empty(0)]))
        everyone = self.processes.gather(mine)
        ratio, advantage = (torch.cat([pair[i] for pair in everyone]) for i in range(2))
        keep = m2po_mask(ratio, advantage, threshold=self.config.loss.m2_threshold)
        own = keep.split([len(pair[0]) for pair in everyone])[self.processes.rank]
        return list(own.to(self.processes.device).split([len(ratio) for ratio in ratios]))

    def _set_learning_rate(self, gate_factor: float = 1.0) -> None:
        factor = learning_rate_factor(
            self.num_batches,
            warmup=self.config.learner.warmup_batches,
            total=self.config.train.steps if self.config.learner.schedule == "linear" else None,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learner.lr * factor * gate_factor


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


def add_ratio_sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`ratio_sums` of two parts together: all entries add up, but the last, a maximum."""
    return torch.cat([a[:-1] + b[:-1], torch.maximum(a[-1:], b[-1:])])


def _known(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None, "set by the first pass over a batch"
    return tensor


def _verdict_metrics(verdict: Verdict) -> Metrics:
    decision = {"applied": verdict.apply, "stopped": verdict.stop, "reason": verdict.reason}
    rate = {"rate_factor": verdict.rate_factor} if verdict.apply else {}
    return {**decision, **rate, **verdict.statistics}
