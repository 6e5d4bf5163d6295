"""Memory and time of a rollout batch, worked out from the shape of the model before anything is loaded.

Symbols: P parameters, D width, I width of the MLP, H and K query and key/value heads of size d, V vocabulary, n layers,
s bytes of a weight while training, c bytes of a factor of its matrix products; T tokens of a
micro-batch, C logit rows at once; N processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from agentrl.config.schema import Config
from agentrl.rollout.engines.factory import holds_own_weights

BYTES = {"float32": 4, "mixed": 4, "bfloat16": 2, "float64": 8}
_PRODUCT_BYTES = {**BYTES, "mixed": 2}
_FP32 = 4


@dataclass(frozen=True)
class Item:
    """One line of an estimate."""

    name: str
    value: float
    """Bytes, or seconds."""
    formula: str
    """How it comes about."""


@dataclass(frozen=True)
class Shape:
    """What counts of a causal LM."""

    parameters: int
    """P, a tied head counted once."""
    active_parameters: int
    """Parameters that multiply one token: all but the embedding table, and of experts those that are chosen."""
    layers: int
    width: int
    mlp_width: int
    """I; of a mixture of experts, of all experts together that one token meets."""
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    norms_heads: bool
    """Whether queries and keys pass norms of their own (Qwen3)."""
    experts_per_token: int = 0
    """0 where there are none."""

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """The shape a Hugging Face config describes; nothing is allocated."""
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config)
        sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
        experts = sum(size for name, size in sizes.items() if ".experts." in name)
        chosen = getattr(config, "num_experts_per_tok", None) or 1
        share = chosen / (getattr(config, "num_experts", None) or 1) if experts else 1.0
        total, table = sum(sizes.values()), config.vocab_size * config.hidden_size
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            parameters=total,
            active_parameters=int(total - experts * (1 - share)) - (0 if config.tie_word_embeddings else table),
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            mlp_width=chosen * config.moe_intermediate_size if experts else config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_size=head_size,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            norms_heads=any("q_norm" in name for name in sizes),
            experts_per_token=chosen if experts else 0,
        )


def activation_bytes(shape: Shape, size: int, *, casts: bool = False) -> int:
    """What one block keeps of one token for backward, in bytes; s is `size`.

    A norm keeps its input in fp32, the normalised vector, and its product with the weight, which is the input of the
    matrices behind it; attention keeps queries, keys, values, output and its normaliser; the MLP keeps the outputs of
    gate, activation and up, and their product:

        2 D (4 + 2 s)  +  s d (2 H + 2 K) + 4 H  +  4 I s
        + d (H + K) (4 + s) with norms of heads  + 2 D s for each expert's copy of input and output

    With `casts` (mixed precision of a whole module) norms work in fp32 and each matrix casts its own copy of its input,
    of which a block has five: + 10 D, and + 5 D for each expert.
    """
    norms = 2 * shape.width * (_FP32 + 2 * size)
    attention = size * shape.head_size * (2 * shape.heads + 2 * shape.kv_heads) + _FP32 * shape.heads
    if shape.norms_heads:
        attention += shape.head_size * (shape.heads + shape.kv_heads) * (_FP32 + size)
    kept = norms + attention + (4 * shape.mlp_width + 2 * shape.experts_per_token * shape.width) * size
    return kept + (10 + 5 * shape.experts_per_token) * shape.width if casts else kept


def trained_shape(shape: Shape, config: Config) -> Shape:
    """The shape as it is trained: above frozen blocks a tied head becomes a matrix of its own."""
    if not config.model.train_layers or not shape.tied:
        return shape
    return replace(shape, tied=False, parameters=shape.parameters + shape.vocabulary * shape.width)


def trained_parameters(shape: Shape, config: Config) -> int:
    """P; of the m topmost blocks m / n of all blocks', norm and head; with adapters of rank r the sum of r (in + out)
    over the matrices that get one."""
    rank, width, mlp = config.model.lora_rank, shape.width, shape.mlp_width
    if config.model.train_layers:
        head = shape.vocabulary * width
        blocks = shape.parameters - head * (1 if shape.tied else 2) - width
        return round(blocks * config.model.train_layers / shape.layers) + width + head
    if not rank:
        return shape.parameters
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sizes = {
        "q_proj": width + queries, "k_proj": width + keys, "v_proj": width + keys, "o_proj": queries + width,
        "gate_proj": width + mlp, "up_proj": width + mlp, "down_proj": mlp + width,
    }  # fmt: skip
    blocks = shape.layers * sum(sizes.get(name, 0) for name in config.model.lora_targets)
    return rank * (blocks + (width + shape.vocabulary if "lm_head" in config.model.lora_targets else 0))


def _trained_symbol(shape: Shape, config: Config) -> str:
    trained = trained_parameters(shape, config)
    if trained == shape.parameters:
        return "P"
    return f"{'upper blocks' if config.model.train_layers else 'adapters'}' {trained:,}"


def learner_memory(shape: Shape, config: Config, *, tokens: int, chunk: int, processes: int = 1) -> list[Item]:
    """Peak memory of an update in one process, at the beginning of a micro-batch's backward.

    Args:
        shape: the policy.
        config: types, recomputation, sharding, adapters.
        tokens: T.
        chunk: C.
        processes: N.
    """
    size, factor = BYTES[config.model.dtype], _PRODUCT_BYTES[config.model.dtype]
    shards = processes if config.learner.shard else 1
    split = f" / {shards}" if shards > 1 else ""
    trained = trained_parameters(shape, config)
    symbol = _trained_symbol(shape, config)
    casts = factor != size and shards == 1  # shards are gathered in the type of the products
    weights = shape.parameters * size / shards
    block, width = activation_bytes(shape, factor, casts=casts), shape.width
    layers = config.model.train_layers or shape.layers
    head = shape.vocabulary * width
    items = [
        Item("weights", weights, f"P s{split} = {shape.parameters:,} x {size}{split}"),
        Item("gradients", trained * size / shards, f"{symbol} s{split}"),
        _moments(config, trained, head, size, shards, f"2 {symbol} s{split}"),
    ]
    if casts:
        items.append(Item("cast weights", shape.parameters * factor, "P c, for a micro-batch's time"))
    elif shards > 1:
        items.append(Item("gathered head", head * factor, "V D c, whole while the batch is used"))
    if shape.tied or factor < _FP32 or shards > 1:
        product = factor if factor < _FP32 else 0  # which fp32 takes in at once
        how = f"{_FP32 + product} V D, the head's own, in fp32{', and one product' if product else ''}"
        items.append(Item("head gradient", head * (_FP32 + product), how))
    if config.loss.kl_coef and not config.model.lora_rank and not whole_modules_wait(config, processes):
        items.append(Item("reference policy", shape.parameters * factor / shards, f"P c{split}, frozen, for the KL"))
    if config.model.gradient_checkpointing:
        between = size if casts else factor
        kept, formula = tokens * (layers * width * between + block), f"T ({between} n D + one block)"
    else:
        kept, formula = tokens * layers * block, f"T n x {block:,} B"
    if config.model.train_layers and config.learner.max_reuse > 1:
        whole = _batch_tokens(config, processes)
        how = f"tokens of the batch x D s, {whole:,}, of the frozen blocks"
        items.append(Item("kept outputs", whole * width * size, how))
    work = tokens * (3 * width + 2 * shape.mlp_width) * factor + tokens * width * (_FP32 + 2 * factor)
    logits = chunk * shape.vocabulary * (_FP32 + (factor if factor < _FP32 else 0))
    return [
        *items,
        Item("activations", kept, f"{formula}, T = {tokens:,}"),
        Item("work space", work, "T (2 I + 3 D) c, one block's gradients, and the last norm"),
        Item("logits", logits, f"C V x {_FP32} B, C = {chunk:,}"),
    ]


def _moments(config: Config, trained: int, head: int, size: int, shards: int, formula: str) -> Item:
    """AdamW's, on the device: all, or where they wait on the host those of the largest tensor."""
    whole = 2 * trained * size / shards
    if config.learner.shard != "offload":
        return Item("optimizer", whole, f"{formula}, AdamW's moments")
    there = f"of one tensor at a time; {whole / 2**30:,.1f} GiB, {formula}, on the host"
    return Item("optimizer", 2 * min(head, trained) * size / shards, f"2 V D s at most, AdamW's moments {there}")


def whole_modules_wait(config: Config, processes: int) -> bool:
    """Whether the reference waits on the host until it scores, and the weights while an engine here plays."""
    return config.learner.shard == "offload" and processes == 1


def cache_bytes(shape: Shape, size: int) -> int:
    """Keys and values of one token, 2 n K d s bytes."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * size


def engine_memory(shape: Shape, config: Config, *, processes: int = 1, device_bytes: float = 80 * 2**30) -> list[Item]:
    """What the rollout engine takes in one process, beside the learner's weights where it shares them.

    vLLM keeps to its share of the device (`gpu_memory_utilization`) and lets rows wait that find no room.
    """
    limits = config.rollout
    if limits.endpoints:
        return []
    size, token = _engine_size(config), cache_bytes(shape, _engine_size(config))
    rows = min(limits.max_concurrent, _episodes(config, processes))
    cache = rows * limits.max_context_tokens * token
    formula = f"2 n K d s x rows x length = {token:,} B x {rows} x {limits.max_context_tokens:,}, at most"
    weights = Item("engine's weights", shape.parameters * size, f"P s = {shape.parameters:,} x {size}")
    if holds_own_weights(limits):
        share = limits.engine_options.get("gpu_memory_utilization", 0.4)
        room = max(0.0, share * device_bytes - weights.value)
        enough = "enough for all full rows" if room >= cache else f"full rows want {cache / 2**30:,.1f} GiB"
        formula = (
            f"vLLM takes its whole share, {share:.0%} of {device_bytes / 2**30:.0f} GiB, less the weights; {enough}"
        )
        return [weights, Item("key/value cache", room, formula)]
    shared = [] if not (config.learner.shard and processes > 1) else [weights]
    return [*shared, Item("key/value cache", cache, formula)]


def sync_memory(shape: Shape, config: Config) -> list[Item]:
    """What a weight sync adds where vLLM wakes: its weights, and the largest tensor, whole in both types."""
    both = BYTES[config.model.dtype] + _engine_size(config)
    largest = shape.vocabulary * shape.width
    return [
        Item("engine's weights", shape.parameters * _engine_size(config), "P s, keys and values get their room after"),
        Item("a gathered tensor", largest * both, f"V D x {both}, the largest one, in both types"),
    ]


def checkpoint_bytes(shape: Shape, config: Config) -> float:
    """Size on the disk: weights, AdamW's moments, and where they are older ones the weights that were last measured."""
    size, trained = BYTES[config.model.dtype], trained_parameters(shape, config)
    return (shape.parameters * (1 + _keeps_measured(config)) + 2 * trained) * size


def checkpoint_memory(shape: Shape, config: Config, *, processes: int = 1) -> Item:
    """Host memory of a process that writes a checkpoint, all of it or of a sharded policy its share, while it saves."""
    writers = processes if config.learner.shard else 1
    formula = f"P s + 2 {_trained_symbol(shape, config)} s" + (
        " + P s of the weights last measured" if _keeps_measured(config) else ""
    )
    value = checkpoint_bytes(shape, config)
    if writers == 1:
        return Item("checkpoint, on the host", value, f"{formula}, whole, in the first process, while it saves")
    table = shape.vocabulary * shape.width
    value *= max(1 / writers, table / shape.parameters)  # a tensor is one process's, and blocks of them
    return Item("checkpoint, on the host", value, f"({formula}) / {writers}, in each process, while it saves")


def _keeps_measured(config: Config) -> bool:
    """Whether some checkpoint lies between two measurements of the weights, whose last state it then holds."""
    every = config.tracking.divergence_every
    return bool(every) and any(step % every for step in (config.checkpoint.every, config.train.steps))


def _engine_size(config: Config) -> int:
    alone = holds_own_weights(config.rollout)  # the embedded engine keeps keys and values in the type of the weights
    own = (_PRODUCT_BYTES if alone else BYTES)[config.model.dtype]
    return BYTES.get(config.rollout.engine_options.get("dtype", ""), own)


@dataclass(frozen=True)
class Device:
    """What a process computes with, as far as time is concerned; rates that real programs reach."""

    name: str
    matrix_rate: float
    """FLOP/s of large matrix products."""
    bandwidth: float
    """Bytes of weights and cache read per second while decoding."""
    decoding_share: float
    """Part of both rates that the embedded engine reaches while it decodes, one token a row."""
    block_s: float
    """Seconds to start the work of one block, which the embedded engine does anew for every token."""


_TURN_S = 2.5e-4
"""Seconds of a turn's text: template, encoding, the action taken out of it."""
GPU = Device("a GPU of the H100 class at 40 % of its bf16 rate and 60 % of its bandwidth", 4e14, 2e12, 1.0, 2.8e-3)
GPU_FP32 = Device("a GPU of the H100 class at 60 % of its fp32 rate and of its bandwidth", 4e13, 2e12, 1.0, 2.8e-3)
CPU = Device("one CPU core", 5e10, 1e10, 0.3, 7e-4)


def forward_flops(shape: Shape, *, length: int) -> float:
    """Floating-point operations of one token's forward pass, head included: 2 P' + 2 n H d L.

    P' are the parameters that multiply a token; the second term is causal attention in a row of `length` L, averaged.
    """
    return 2.0 * shape.active_parameters + 2.0 * shape.layers * shape.heads * shape.head_size * length


_OF_ENGINES = ("decoding", "starting blocks", "reading prompts", "text of turns")
"""Items of `batch_seconds` that the engine's side takes."""


def batch_seconds(shape: Shape, config: Config, *, updates: int, device: Device, processes: int = 1) -> list[Item]:
    """Seconds of one rollout batch in which every row has its full length; environments and syncs not counted.

    The embedded engine reads weights and cache and multiplies one after the other, at a part of the rates; vLLM does
    both at once.

    Args:
        shape: the policy.
        config: sizes.
        updates: optimizer steps on the batch.
        device: rates.
        processes: N.
    """
    limits, embedded = config.rollout, not holds_own_weights(config.rollout)
    size = _engine_size(config)
    episodes = _episodes(config, processes)
    length = limits.max_context_tokens
    generated = min(limits.max_turns * limits.max_new_tokens, length)
    tokens = _batch_tokens(config, processes)
    rows = min(limits.max_concurrent, episodes)
    flops = forward_flops(shape, length=length)
    ticks = math.ceil(episodes / rows) * generated
    read = ticks * (shape.active_parameters * size + rows * length / 2 * cache_bytes(shape, size)) / device.bandwidth
    multiplied = episodes * generated * flops / device.matrix_rate
    decoding = (read + multiplied) / device.decoding_share if embedded else max(read, multiplied)
    reading = max(0, tokens - episodes * generated) * flops / device.matrix_rate
    passes = 4 if config.model.gradient_checkpointing else 3
    upper = (config.model.train_layers or shape.layers) / shape.layers
    below = tokens * (1 - upper) * (flops - 2.0 * shape.vocabulary * shape.width)  # frozen, once
    learning = (below + updates * passes * (tokens * flops - below)) / device.matrix_rate
    items = [
        Item("decoding", decoding, "ticks x (P' s + cache read) / bandwidth, and 2 P' + 2 n H d L a token"),
        Item("starting blocks", ticks * shape.layers * device.block_s if embedded else 0.0, "ticks x n, one by one"),
        Item("reading prompts", reading, "(tokens - generated) x forward"),
        Item("text of turns", episodes * limits.max_turns * _TURN_S, "episodes x max_turns"),
        Item("updates", learning, f"{updates} x tokens x {passes} forward passes' worth"),
    ]
    if config.loss.kl_coef:
        items.append(Item("reference policy", tokens * flops / device.matrix_rate, "tokens x forward"))
    return items


def _episodes(config: Config, processes: int) -> int:
    """Most episodes of a batch that one process plays."""
    return math.ceil(config.train.groups_per_step * config.train.group_size / processes)


def _batch_tokens(config: Config, processes: int) -> int:
    """Tokens of a process's part of a batch whose rows are all full."""
    rows = _episodes(config, processes) * (config.rollout.max_turns if config.rollout.context == "window" else 1)
    return rows * config.rollout.max_context_tokens


@dataclass(frozen=True)
class BatchSplit:
    """A rollout batch in turn and one step ahead (`rollout.ahead`), from the seconds of both halves."""

    rollouts: float
    """Seconds of the engines."""
    learning: float
    """Seconds of the learner."""

    @classmethod
    def of(cls, items: Sequence[Item]) -> "BatchSplit":
        """From `batch_seconds`."""
        rollouts = sum(item.value for item in items if item.name in _OF_ENGINES)
        return cls(rollouts, sum(item.value for item in items) - rollouts)

    @property
    def in_turn(self) -> float:
        """Seconds a batch: r + u."""
        return self.rollouts + self.learning

    @property
    def ahead(self) -> float:
        """Seconds a batch once the first is played: max(r, u)."""
        return max(self.rollouts, self.learning)

    @property
    def engines(self) -> float:
        """Engines for each one of now with which neither side waits: r / u."""
        return self.rollouts / self.learning

    def share(self, count: int) -> tuple[int, int]:
        """How `count` devices, at least 2, are best divided among (learner, engines): as u : r, at least one each.

        Both sides are taken to become faster in proportion, so with l learners and e engines a batch takes
        max(u / l, r / e) times the count that u and r were worked out for.
        """
        learners = max(1, min(count - 1, round(count * self.learning / self.in_turn)))
        near = [n for n in (learners - 1, learners, learners + 1) if 1 <= n < count]
        best = min(near, key=lambda n: max(self.learning / n, self.rollouts / (count - n)))
        return best, count - best
