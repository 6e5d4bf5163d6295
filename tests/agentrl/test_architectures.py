"""One matrix of architectures: engine = learner = transformers' own log-probs, or one line at the start.

Tiny random checkpoints with the features of their configs switched on; rows are longer than any window.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from agentrl.config.schema import ModelConfig
from agentrl.errors import UserError
from agentrl.learner.learner import TorchLearner
from agentrl.model.fidelity import own_logprobs, probe_length
from agentrl.model.load import load_model
from agentrl.model.logprobs import row_logprobs
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.factory import make_engine
from agentrl.runs.checkpoint import save_model
from tests.agentrl.helpers import TEXTS, toy_config
from tests.agentrl.test_learner import assert_same_gradient, make_batch, random_rows

TOKENIZER = build_tokenizer(TEXTS)
IDS: dict[str, Any] = {
    "vocab_size": len(TOKENIZER), "bos_token_id": None,
    "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id,
}  # fmt: skip
S: dict[str, Any] = {
    **IDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
H = {**S, "head_dim": 8}
MHA = {**S, "num_key_value_heads": 4}
MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXED = ["sliding_attention", "full_attention"] * 2
MLA: dict[str, Any] = {
    **MHA, **MOE, "n_routed_experts": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 12, "qk_nope_head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 32, "factor": 16.0,
}  # fmt: skip
YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

# Families that are trained here, each with what its config can switch on.
# fmt: off
TRAINED: dict[str, Callable[[], Any]] = {
    "qwen2 sliding": lambda: T.Qwen2Config(**S, use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "qwen3 sliding": lambda: T.Qwen3Config(
        **H, use_sliding_window=True, sliding_window=8, max_window_layers=2, attention_bias=True
    ),
    "qwen3 yarn": lambda: T.Qwen3Config(**H, rope_parameters=YARN),
    "qwen2_moe": lambda: T.Qwen2MoeConfig(**S, **MOE, num_experts=4, shared_expert_intermediate_size=16),
    "qwen3_moe": lambda: T.Qwen3MoeConfig(**H, **MOE, num_experts=4, mlp_only_layers=[0], norm_topk_prob=True),
    "llama3": lambda: T.LlamaConfig(**S, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    "mistral": lambda: T.MistralConfig(**S, sliding_window=8),
    "ministral": lambda: T.MinistralConfig(**H, sliding_window=8, layer_types=MIXED),
    "mixtral": lambda: T.MixtralConfig(**S, sliding_window=8, num_local_experts=4),
    "gemma": lambda: T.GemmaConfig(**H, tie_word_embeddings=True),
    "gemma2": lambda: T.Gemma2Config(
        **H, sliding_window=8, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=16
    ),
    "gemma3": lambda: T.Gemma3TextConfig(**H, sliding_window=8, layer_types=MIXED, final_logit_softcapping=5.0),
    "phi": lambda: T.PhiConfig(**S, qk_layernorm=True, partial_rotary_factor=0.5),
    "phi3": lambda: T.Phi3Config(**S, sliding_window=8),
    "olmo": lambda: T.OlmoConfig(**S, clip_qkv=0.5),
    "olmo2": lambda: T.Olmo2Config(**S),
    "olmo3": lambda: T.Olmo3Config(**S, sliding_window=8, layer_types=MIXED),
    "olmoe": lambda: T.OlmoeConfig(**S, num_experts=4, num_experts_per_tok=2, clip_qkv=0.5),
    "smollm3": lambda: T.SmolLM3Config(
        **S, no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=8, layer_types=MIXED
    ),
    "glm4": lambda: T.Glm4Config(**H, partial_rotary_factor=0.5),
    "glm4_moe": lambda: T.Glm4MoeConfig(
        **H, **MOE, n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1, use_qk_norm=True
    ),
    "granite": lambda: T.GraniteConfig(
        **S, logits_scaling=8.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.3
    ),
    "granitemoe": lambda: T.GraniteMoeConfig(
        **S, num_local_experts=4, num_experts_per_tok=2, logits_scaling=4.0, embedding_multiplier=3.0
    ),
    "cohere": lambda: T.CohereConfig(**S, logit_scale=0.25, use_qk_norm=True),
    "cohere2": lambda: T.Cohere2Config(**S, logit_scale=0.25, sliding_window=8, layer_types=MIXED),
    "gpt2": lambda: T.GPT2Config(
        **IDS, n_embd=32, n_layer=3, n_head=4, n_positions=512, scale_attn_by_inverse_layer_idx=True
    ),
    "gpt_neox": lambda: T.GPTNeoXConfig(**S, rotary_pct=0.5),
    "gptj": lambda: T.GPTJConfig(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=512, rotary_dim=4),
    "opt": lambda: T.OPTConfig(
        **IDS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16
    ),
    "falcon": lambda: T.FalconConfig(**IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "stablelm": lambda: T.StableLmConfig(**MHA, use_qkv_bias=True),
    "starcoder2": lambda: T.Starcoder2Config(**S, sliding_window=8),
    "mpt alibi": lambda: T.MptConfig(**IDS, d_model=32, n_heads=4, n_layers=2, max_seq_len=512),
    "ernie4_5": lambda: T.Ernie4_5Config(**H),
    "deepseek_v2": lambda: T.DeepseekV2Config(**{k: v for k, v in MLA.items() if k != "n_group"}, n_group=1),
    "deepseek_v3": lambda: T.DeepseekV3Config(**MLA),
    "gpt_oss": lambda: T.GptOssConfig(**H, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "exaone4": lambda: T.Exaone4Config(**S, sliding_window=8, sliding_window_pattern=2),
    "seed_oss": lambda: T.SeedOssConfig(**H),
    "nemotron": lambda: T.NemotronConfig(**S),
    "llama4": lambda: T.Llama4TextConfig(
        **{**H, "num_hidden_layers": 4},
        intermediate_size_mlp=48,
        num_local_experts=2,
        attention_chunk_size=8,
        no_rope_layers=[1, 0, 1, 0],
    ),
    "minicpm3": lambda: T.MiniCPM3Config(
        **MHA, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8, dim_model_base=8
    ),
}
# Families whose state is no cache of attention, or that change with the length of the row.
REFUSED: dict[str, Callable[[], Any]] = {
    "mamba": lambda: T.MambaConfig(**IDS, hidden_size=32, num_hidden_layers=2),
    "mamba2": lambda: T.Mamba2Config(**IDS, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=1),
    "lfm2": lambda: T.Lfm2Config(**S, layer_types=["conv", "full_attention"] * 2),
    "qwen3_next": lambda: T.Qwen3NextConfig(
        **H,
        **MOE,
        num_experts=4,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "llama dynamic": lambda: T.LlamaConfig(
        **{**S, "max_position_embeddings": 32},
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    ),
    "phi3 longrope": lambda: T.Phi3Config(**{**S, "original_max_position_embeddings": 32}, rope_parameters=LONGROPE),
    "bloom alibi": lambda: T.BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4),
    "falcon alibi": lambda: T.FalconConfig(
        **IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "gpt_neo local": lambda: T.GPTNeoConfig(
        **IDS, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8
    ),
    "bert": lambda: T.BertConfig(
        **IDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
}
# fmt: on
FAST = {"qwen2 sliding", "gemma2", "gpt_oss", "olmo3", "deepseek_v3", "gpt2", "phi", "mamba", "phi3 longrope", "bert"}
CONFIG = toy_config(gate={"kind": "none"}, rollout={"max_context_tokens": 96, "max_new_tokens": 16})


def names(families: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in families]


def make(family: str) -> Any:
    logging.set_verbosity_error()
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config((TRAINED | REFUSED)[family]()).eval()
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1 and "norm" not in name:  # biases start at zero
            torch.nn.init.normal_(parameter, std=0.2)
    return module


def checked(folder: Path, family: str) -> tuple[Any, TorchLearner, Any]:
    """What a run does with a folder before its first batch."""
    save_model(folder, make(family), TOKENIZER)
    module, tokenizer = load_model(ModelConfig(path=str(folder)))
    return module, TorchLearner(module, CONFIG, pad_id=0), make_engine(CONFIG.rollout, module, tokenizer)


@pytest.mark.parametrize("family", names(TRAINED))
def test_engine_learner_and_transformers_agree_beyond_every_window(family: str, tmp_path: Path) -> None:
    module, learner, engine = checked(tmp_path, family)
    starts = [[5, 9, 30, 7], list(range(10, 50)), list(range(60, 72))]
    sampling = Sampling(max_new_tokens=12)

    async def play() -> tuple[list[tuple[int, Any]], list[list[int]]]:
        first = await asyncio.gather(
            *(engine.generate(ids, sampling, key=(i,), session=str(i)) for i, ids in enumerate(starts))
        )
        rows = [ids + turn.ids + [40, 41, 42] for ids, turn in zip(starts, first, strict=True)]
        second = await asyncio.gather(
            *(engine.generate(ids, sampling, key=(i, 1), session=str(i)) for i, ids in enumerate(rows))
        )
        return [
            (len(ids), turn) for ids, turn in [*zip(starts, first, strict=True), *zip(rows, second, strict=True)]
        ], [ids + turn.ids for ids, turn in zip(rows, second, strict=True)]

    turns, rows = asyncio.run(play())
    for index, row in enumerate(rows):
        own = own_logprobs(module, row, list(range(len(row) - 1))).gather(1, torch.tensor(row[1:])[:, None])[:, 0]
        assert row_logprobs(module, row, 1.0) == pytest.approx(own.tolist(), abs=2e-4)
        for start, turn in (turns[index], turns[index + 3]):
            assert turn.logprobs == pytest.approx(own[start - 1 : start - 1 + len(turn.ids)].tolist(), abs=2e-4)
    named = dict(learner.weights())
    assert set(named) >= {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("family", names(REFUSED))
def test_an_architecture_that_cannot_be_trained_is_refused_in_one_line(family: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path") as caught:
        checked(tmp_path, family)
    assert "\n" not in str(caught.value)
    assert "Take another model" in str(caught.value) or "Use rollout.engine" in str(caught.value)


@pytest.mark.parametrize("family", ["gemma2", "phi", pytest.param("granite", marks=pytest.mark.slow)])
def test_the_gradient_through_caps_scales_and_biases_is_plain_autograds(family: str) -> None:
    rows = random_rows(4)
    learner = TorchLearner(make(family).double(), CONFIG, pad_id=0)
    metrics, _ = learner.backward(learner.prepare(make_batch(rows))[0], 1)
    gradient = {n: p.grad.clone() for n, p in learner.module.named_parameters() if p.grad is not None}
    plain, total, entropy = make(family).double(), sum(int(row.trained.sum()) for row in rows), 0.0
    for row in rows:
        ids = torch.from_numpy(row.ids).long()[None]
        everything = plain(input_ids=ids).logits[0, :-1].log_softmax(-1)
        logprobs = everything.gather(1, ids[0, 1:, None])[:, 0]
        (-(logprobs - logprobs.detach()).exp() * torch.from_numpy(row.advantages[1:]) / total).sum().backward()
        everything = everything.detach()
        entropy += float(-(everything.exp() * everything).sum(-1)[torch.from_numpy(row.trained[1:])].sum())
    assert_same_gradient(gradient, {n: p.grad for n, p in plain.named_parameters() if p.grad is not None})
    assert metrics["entropy"] == pytest.approx(entropy / total)


def test_the_probe_is_longer_than_any_window_but_not_than_the_rows_of_the_run() -> None:
    config = T.MistralConfig(**S, sliding_window=50)
    assert probe_length(config, 96) == 58
    assert probe_length(config, 40) == 24
    assert probe_length(config, 20) == 20
    assert probe_length(T.Qwen3Config(**{**S, "max_position_embeddings": 64}), 96) == 72
