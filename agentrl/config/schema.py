"""The typed config tree: one TOML file is one experiment.

Every field carries its meaning, unit and range here; `python -m agentrl.train --help-config` prints them.
"""

import datetime
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializationInfo, WrapValidator, field_validator, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from agentrl.config.defaults import with_defaults
from agentrl.config.section import OWN_NAME, Section, union_of_kinds
from agentrl.learner.gates import DggConfig, GateConfig
from agentrl.learner.losses import ClipConfig, LossConfig

_LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _with_iso_dates(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_iso_dates(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_iso_dates(each) for each in value]
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def _expand_home(value: Any) -> Any:
    """`~` and `~name` at the beginning of texts, however deep in lists and tables."""
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~") else value
    if isinstance(value, dict):
        return {key: _expand_home(inner) for key, inner in value.items()}
    return [_expand_home(inner) for inner in value] if isinstance(value, list) else value


def _own_or(value: Any, handler: Callable[[Any], Any]) -> Any:
    return value if isinstance(value, str) and OWN_NAME.fullmatch(value) else handler(value)


OR_OWN = WrapValidator(_own_or)
"""Beside the names of a Literal: `module:Class` or `module:function` of one's own."""


Share = Annotated[float, Field(ge=0, le=1)]
_USUAL_REFILL = 3.0
"""`train.refill = true`: where two of three groups do not differ, refilling still ends."""


class EnvConfig(Section):
    """Which environment is played, and how a model talks to it."""

    id: str = "agentrl/ALFWorld-v0"
    """Gymnasium id, or `module:Class` for an environment of your own."""
    split: str = "train"
    """Split that training tasks come from."""
    eval_split: str = "valid_unseen"
    """Split that evaluation tasks come from; never shares a task with `split`. Where it is not given, an environment's
    own word for it holds (`metadata["eval_split"]` of its class)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment; dates and times of a TOML file arrive as ISO text (`2026-01-31`)."""
    format: str = "plain"
    """How an answer becomes an action: `plain` (the text itself), `think_action` (the text between <action> tags), or
    `module:Wrapper`, a gymnasium.Wrapper."""
    system: str | None = None
    """System message; None uses what the environment offers, if anything."""
    reward: str | dict[str, float] | None = None
    """`module:function` of one's own, f(trajectory) -> number: the reward of a whole episode, in place of the sum of
    what the environment gave for its steps; or a table of several with their weights, in which `environment` is that
    sum. Success stays the environment's."""
    success_threshold: float = 1.0
    """Where the environment gives no `info["success"]`: its return (the sum over an episode) from which an episode is a
    success. 1 suits rewards of 0 and 1; say what suits others."""
    weight: float = Field(1.0, gt=0)
    """Share of the training tasks, relative to the other tables, where there are several `[[env]]`."""

    @field_validator("options")
    @classmethod
    def _write_dates(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Run folders hold JSON, which knows no dates: an environment gets the same before and after a resume.

        `~` in paths is replaced, as no shell does it in a file or behind an equals sign.
        """
        return dict(_expand_home(_with_iso_dates(options)))


class TinyModelConfig(Section):
    """Shape of a small model with its own tokenizer, built when `model.path = "tiny"`."""

    hidden_size: int = Field(64, ge=8)
    """Width."""
    num_layers: int = Field(2, ge=1)
    """Transformer blocks."""
    num_heads: int = Field(4, ge=1)
    """Attention heads."""
    num_kv_heads: int = Field(2, ge=1)
    """Key/value heads."""
    intermediate_size: int = Field(192, ge=8)
    """Width of the MLP."""
    tie_embeddings: bool = False
    """Whether the lm_head shares the embedding matrix."""
    max_positions: int = Field(4096, ge=16)
    """Longest row the model accepts, in tokens."""
    init_std: float | None = Field(None, gt=0)
    """Deviation of the weights at the start; None: 1 / sqrt(width). With much less, what is read hardly moves what is
    said, and one answer for all is learned before one that depends on the question."""
    entity_names: bool = True
    """Whether a word and the number behind it are one token (`cabinet 13`); off where numbers are computed with."""


class ModelConfig(Section):
    """The policy."""

    path: str = "tiny"
    """Folder or hub name of a Hugging Face causal LM, or `tiny`."""
    tiny: TinyModelConfig = TinyModelConfig()
    """Shape of the tiny model."""
    dtype: Literal["float32", "mixed", "bfloat16", "float64"] = "float32"
    """Type of the weights while training. `mixed`: weights, gradients and moments in float32, in which steps of 1e-6
    count, matrix products and attention in bfloat16, which is what GPUs are fast in."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more compute."""
    lora_rank: int = Field(0, ge=0)
    """Train adapters of this rank and freeze the rest (package peft); 0 trains all weights."""
    lora_targets: list[str] = Field(default_factory=lambda: list(_LINEAR_LAYERS))
    """Names of the layers that get adapters; `lm_head` is possible."""
    train_layers: int = Field(0, ge=0)
    """Train this many of the topmost blocks, the last norm and the head; what lies below is frozen, and its output is
    kept while a batch is reused. 0 trains all weights."""


class WarmstartConfig(Section):
    """Imitation of the environment's expert before RL; makes a base policy where no pretrained one is at hand."""

    episodes: int = Field(0, ge=0)
    """Expert episodes to imitate; 0 skips the warm start."""
    noise: float = Field(0.0, ge=0, lt=1)
    """Probability that a turn of a demonstration errs (the expert then recovers)."""
    train_noise: bool = False
    """Whether those errors are imitated too; False masks them."""
    passes: float = Field(1.0, gt=0)
    """Passes over the demonstrations."""
    batch_size: int = Field(8, ge=1)
    """Episodes per optimizer step."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW (embeddings, head, norms)."""
    muon_lr: float = Field(0.02, ge=0)
    """Peak learning rate of Muon (matrices inside the blocks); 0 uses AdamW for all."""
    observation_weight: float = Field(1.0, ge=0)
    """Weight of the loss on the environment's tokens relative to the expert's own."""
    cache_dir: str | None = None
    """Folder that keeps finished warm starts by content; None uses ~/.cache/agentrl (or AGENTRL_CACHE). Where it cannot
    be written, the folder for temporary files is used."""


class RolloutConfig(Section):
    """How episodes are played."""

    engine: Annotated[Literal["local", "vllm"], OR_OWN] = "local"
    """`local` decodes with the learner's own module; `vllm` with vLLM, in the learner's process or on `endpoints`;
    `module:Class` is an engine of one's own, made with module, tokenizer, config, rank and count."""
    endpoints: list[str] = Field(default_factory=list)
    """vllm: addresses of running servers (`http://host:8000`), at least one for every learner process."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """vllm: keyword arguments of vLLM's EngineArgs (`gpu_memory_utilization`); with endpoints `weight_sync` (`disk`;
    `adapter`: of a LoRA policy the factors alone; `nccl` from GPU to GPU), `folder` that the servers see too, `address`
    of this machine."""
    turn_timeout_s: float = Field(600.0, gt=0)
    """vllm: patience for one turn while no other waits for room, and for a server that is away."""
    sync_tolerance: float = Field(0.1, gt=0)
    """vllm: mean gap between the engine's and the learner's log-probs of some tokens, in nats, above which the run
    stops after a weight sync. By default 50 roundings of the products: 0.025 for float32, 0.1 for bfloat16."""
    context: Literal["conversation", "window", "continuation"] = "conversation"
    """`conversation`: one growing chat; `window`: a fresh prompt each turn; `continuation`: the environment's text is
    appended raw inside one assistant turn, in place of the end of turn and other special tokens behind an answer."""
    window_turns: int = Field(2, ge=0)
    """Past turns shown in the `window` context."""
    max_turns: int = Field(20, ge=1)
    """Actions per episode."""
    max_new_tokens: int = Field(16, ge=1)
    """Generated tokens per turn; 4 for a tiny model from scratch, whose answers are a word."""
    max_context_tokens: int = Field(2048, ge=8)
    """Longest row: prompt, observations and answers together."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probs everywhere are at this temperature."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end a turn, kept in the text."""
    ahead: int = Field(0, ge=0, le=1)
    """0 plays and learns in turn; 1 plays the next batch in a process of its own while the learner uses this one, with
    weights that are one batch older."""
    spare_groups: int = Field(0, ge=0)
    """Groups begun beyond `train.groups_per_step`: a batch is those that are whole first, and the others go on in the
    next one. Quick tasks then come first, and which ones depends on the clock."""
    max_concurrent: int = Field(128, ge=1)
    """Episodes played at once in a process."""
    env_workers: int | None = Field(None, ge=0)
    """Processes that run environments; 0 steps them in-process; None: 0 for the built-in ones, else 2."""
    step_timeout_s: float = Field(60.0, gt=0)
    """Patience for one reset or step of an environment in a worker process."""
    max_failed_share: float = Field(0.25, ge=0, le=1)
    """Share of a batch's episodes that may fail; more in two batches in a row end the run. 1 lets any go by."""


class TrainConfig(Section):
    """The loop."""

    steps: int = Field(100, ge=0)
    """Rollout batches; 200 for a tiny model from scratch."""
    groups_per_step: int = Field(16, ge=1)
    """Tasks per rollout batch."""
    group_size: int = Field(8, ge=2)
    """Trajectories per task."""
    refill: float | None = Field(None, ge=1)
    """Groups whose episodes all came to one outcome (success, and the environment's own return; never `env.reward`) are
    left out of the update, its denominator included, and further tasks are played until `groups_per_step` groups
    differ, at most so many times `groups_per_step` in all; true is 3. 1 only leaves out; None: they stay in the
    denominator."""
    difficulty_band: tuple[Share, Share] | None = None
    """Tasks whose success rate was below the first or above the second number when they were last played are passed
    over, nine times out of ten; for environments that enumerate their tasks. None: no task is."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""

    @field_validator("refill", mode="before")
    @classmethod
    def _read_switch(cls, refill: Any) -> Any:
        return _USUAL_REFILL if refill is True else None if refill is False else refill

    @field_validator("difficulty_band")
    @classmethod
    def _require_order(cls, band: tuple[float, float] | None) -> tuple[float, float] | None:
        if band is not None and band[0] > band[1]:
            raise PydanticCustomError("band", "must be [lowest, highest]")
        return band


class AdvantageConfig(Section):
    """Rewards of a group -> advantages."""

    estimator: Literal["grpo", "rloo", "dr_grpo", "reinforce_pp", "gigpo"] = "grpo"
    """Which estimator (see agentrl/learner/advantage.py)."""
    ddof: Literal[0, 1] = 1
    """Standard deviation of the group: 1 sample, 0 population."""
    invalid_action_penalty: float = Field(0.0, ge=0)
    """Subtracted from the advantage of the tokens of an invalid action; never divided by a standard deviation."""
    step_weight: float = Field(1.0, ge=0)
    """GiGPO: weight of the step-level advantage."""
    discount: float = Field(0.95, gt=0, le=1)
    """GiGPO: discount of the step returns."""


class LearnerConfig(Section):
    """Optimizer and reuse."""

    max_reuse: int = Field(4, ge=1)
    """K: most optimizer steps on one rollout batch."""
    lr: float = Field(1e-6, gt=0)
    """Learning rate; 1e-3 for the tiny model."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's second moment."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm clip, after the gate."""
    warmup_batches: int = Field(0, ge=0)
    """Rollout batches over which the learning rate rises linearly."""
    schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or falling linearly to zero at `train.steps` batches, as a tiny model from scratch
    has it."""
    microbatch_tokens: int = Field(16384, ge=1)
    """Token budget of one forward pass, padding included."""
    shard: bool | Literal["offload"] = False
    """With several processes: cut weights, gradients and moments over them (FSDP2). `offload`, also with one process:
    besides, on the host lie the moments (a step fetches those of one tensor at a time), and of modules that are not cut
    the reference policy until it scores, and the weights while a vLLM in this process plays."""


class EvalConfig(Section):
    """Evaluation on held-out tasks."""

    every: int = Field(0, ge=0)
    """Rollout batches between evaluations; 0: only before and after the run."""
    tasks: int | None = Field(None, ge=1)
    """Tasks, each played exactly once per evaluation; None plays all of the split (64 where it cannot be counted)."""
    temperature: float = Field(0.4, ge=0)
    """Sampling temperature; 0 is greedy."""
    samples: int | None = Field(None, ge=1)
    """Episodes per task, for mean@k; None: 1 while training, in `agentrl.evaluate` the benchmark's usual number."""


class CheckpointConfig(Section):
    """Saving."""

    every: int = Field(25, ge=0)
    """Rollout batches between checkpoints; 0: only at the end."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""


class TrackingConfig(Section):
    """What a run writes."""

    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default=["tensorboard"])
    """Where curves go beside metrics.jsonl. All but the first are extras, whose project is `agentrl`, or what
    WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME or TRACKIO_PROJECT says; wandb gets tables of held-out episodes too."""
    trajectories_every: int = Field(1, ge=0)
    """Rollout batches between stored trajectory files; 0 stores none."""
    divergence_every: int = Field(10, ge=0)
    """Rollout batches between measurements of the relative weight change per group of layers; 0: never."""
    head_bound: bool = False
    """Log c_max of Theorem 2 at every gradient (costs about a tenth of the head's backward pass)."""


if TYPE_CHECKING:  # one of many classes, told apart by `kind`
    AnyLossConfig = LossConfig
    AnyGateConfig = GateConfig
else:
    AnyLossConfig = union_of_kinds(LossConfig, default="clip")
    AnyGateConfig = union_of_kinds(GateConfig, default="dgg")


class Config(Section):
    """One experiment."""

    env: EnvConfig = EnvConfig()
    """Environment; of several (`[[env]]`) the first."""
    mixture: list[EnvConfig] = Field(default_factory=list, exclude=True)
    """All of them where there are several."""
    model: ModelConfig = ModelConfig()
    """Policy."""
    warmstart: WarmstartConfig = WarmstartConfig()
    """Imitation before RL."""
    rollout: RolloutConfig = RolloutConfig()
    """Episodes."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    advantage: AdvantageConfig = AdvantageConfig()
    """Credit."""
    loss: AnyLossConfig = ClipConfig()
    """Objective."""
    gate: AnyGateConfig = DggConfig()
    """Reuse gate."""
    learner: LearnerConfig = LearnerConfig()
    """Optimizer."""
    eval: EvalConfig = EvalConfig()
    """Evaluation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""
    tracking: TrackingConfig = TrackingConfig()
    """Logs."""

    @model_validator(mode="before")
    @classmethod
    def _expand_homes(cls, tree: Any) -> Any:
        """`~` in paths, which no shell replaces in a file or behind an equals sign."""
        places = {"model": ("path",), "warmstart": ("cache_dir",), "rollout": ("engine_options",)}
        found = {
            name: {**table, **{key: _expand_home(table[key]) for key in keys if key in table}}
            for name, keys in places.items()
            if isinstance(table := tree.get(name), dict)
        }
        return {**tree, **found}

    @model_validator(mode="before")
    @classmethod
    def _read_former_keys(cls, tree: Any) -> Any:
        """Run folders of earlier versions have `advantage.drop_equal`; where it is true, that is `train.refill = 1`."""
        advantage = tree.get("advantage")
        if not isinstance(advantage, dict) or "drop_equal" not in advantage:
            return tree
        rest = {key: value for key, value in advantage.items() if key != "drop_equal"}
        refill = {"refill": 1.0} if advantage["drop_equal"] else {}
        return {**tree, "advantage": rest, "train": {**refill, **tree.get("train", {})}}

    @model_validator(mode="before")
    @classmethod
    def _settle_defaults(cls, tree: Any) -> Any:
        """Defaults that depend on other keys become values, so that the run folder shows them."""
        return with_defaults(tree) if isinstance(tree, dict) else tree

    @model_validator(mode="before")
    @classmethod
    def _split_mixture(cls, tree: Any) -> Any:
        """`[[env]]`: a list of environments, which is how a config of several is written and stored too."""
        if not isinstance(tree, dict) or not isinstance(tree.get("env"), list) or not tree["env"]:
            return tree
        return {**tree, "env": tree["env"][0], "mixture": tree["env"] if len(tree["env"]) > 1 else []}

    @model_serializer(mode="wrap")
    def _join_mixture(self, handler: Any, info: SerializationInfo) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        if self.mixture:
            tree["env"] = [env.model_dump(exclude_unset=info.exclude_unset) for env in self.mixture]
        return tree

    def environments(self) -> dict[str, "Config"]:
        """Name -> this config with that environment alone; a single one has the name ""."""
        if not self.mixture:
            return {"": self}
        short = [re.split(r"[/:]", env.id)[-1] for env in self.mixture]
        names = [
            f"{name}#{short[: i + 1].count(name)}" if short.count(name) > 1 else name for i, name in enumerate(short)
        ]
        return {n: self.with_environments([env]) for n, env in zip(names, self.mixture, strict=True)}

    def with_environments(self, members: list[EnvConfig]) -> "Config":
        """The same with other environments."""
        return self.model_copy(update={"env": members[0], "mixture": members if len(members) > 1 else []})

    @property
    def title(self) -> str:
        """What a run is named after: its environments."""
        return "-".join(self.environments()) or self.env.id
