"""Module and tokenizer of a policy: from a folder, a hub name, or a tiny shape with a tokenizer of its own."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from agentrl.config import Config, ModelConfig, TinyModelConfig
from agentrl.errors import UserError

# A chat template that only ever appends: a rendered conversation is a prefix of every longer one.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] != 'user' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

# Words with their leading space, single digits, single other characters. With entity names, a word keeps the number
# behind it ("cabinet 13"): one token to copy instead of two or three.
_WORDS = r" ?\p{L}+| ?\d| ?[^\s\p{L}\d]|\s"
_SMALL_BYTES = 100 * 2**20  # weights on disk below which one thread is the fastest
_ENTITIES = r" ?\p{L}+ \d{1,2}(?!\d)|" + _WORDS


def load_model(config: ModelConfig, *, texts: Iterable[str] | None = None, seed: int = 0) -> tuple[Any, Any]:
    """(module, tokenizer) of a policy, on the CPU, in evaluation mode (no dropout).

    `module.compute_dtype` tells whoever runs it the type of its matrix products (`weights.computing`).

    Args:
        config: what to load.
        texts: corpus for the tiny model's vocabulary; ignored for pretrained models.
        seed: initial weights of the tiny model.

    Raises:
        UserError: the folder or name holds no causal LM.
    """
    if config.path == "tiny":
        tokenizer = build_tokenizer(texts or (), entity_names=config.tiny.entity_names)
        module = build_tiny_model(config.tiny, tokenizer, seed=seed)
    else:
        module, tokenizer = _load_pretrained(os.path.expanduser(config.path))
    weights, products = ("float32", "bfloat16") if config.dtype == "mixed" else (config.dtype, config.dtype)
    module.to(getattr(torch, weights))
    module.compute_dtype = getattr(torch, products)
    if config.gradient_checkpointing:
        recompute_activations(module)
    return module.eval(), tokenizer


def recompute_activations(module: Any) -> None:
    """Keep no activations inside the blocks; backward computes them again."""
    # The method's name before and since transformers 5.2x; both take the keyword arguments first.
    enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def build_tokenizer(
    texts: Iterable[str], *, max_words: int = 4096, min_count: int = 3, entity_names: bool = True
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with byte fallback: any text survives encode and decode unchanged.

    Args:
        texts: corpus whose frequent words become tokens.
        max_words: most words kept, by count.
        min_count: least count of a kept word.
        entity_names: whether a word and a number behind it form one token (`cabinet 13`).
    """
    to_byte_characters = {byte: char for char, byte in _byte_characters().items()}
    split = re.compile(_to_python_regex(_ENTITIES if entity_names else _WORDS))
    counts = Counter(word for text in texts for word in split.findall(text))
    kept = [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= min_count]
    words = ["".join(to_byte_characters[byte] for byte in word.encode()) for word in kept[:max_words]]
    alphabet = [to_byte_characters[byte] for byte in range(256)]
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *alphabet, *words]))
    # No merges: a word of the vocabulary is one token, any other word falls apart into its bytes.
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_ENTITIES if entity_names else _WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_tiny_model(shape: TinyModelConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> Qwen3ForCausalLM:
    """A Qwen3 model of the given shape with random weights.

    The embedding of an entity token (`cabinet 13`) starts as the sum of its class's and its number's, and the class's
    own word starts as that class: what is learned about one cabinet holds for all.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.hidden_size // shape.num_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Qwen3ForCausalLM(config)
        module.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        _share_entity_embeddings(module, tokenizer)
    return module


def set_threads(config: Config, path: str | None = None) -> None:
    """CPU threads of torch: `train.num_threads`, else 1 for small models, which more threads only slow down.

    Args:
        config: the experiment.
        path: the model, if not `config.model.path`.
    """
    if config.train.num_threads is not None or _is_small(path or config.model.path):
        torch.set_num_threads(config.train.num_threads or 1)


def _is_small(path: str) -> bool:
    files = list(Path(path).expanduser().glob("*.safetensors"))
    return path == "tiny" or 0 < sum(file.stat().st_size for file in files) < _SMALL_BYTES


def stop_token_ids(tokenizer: Any, module: Any) -> list[int]:
    """Ids that end a turn: the tokenizer's end of sequence and those of the generation config."""
    ids = {tokenizer.eos_token_id}
    configured = getattr(module.generation_config, "eos_token_id", None)
    ids.update(configured if isinstance(configured, list) else [configured])
    return sorted(i for i in ids if i is not None)


@torch.no_grad()
def _share_entity_embeddings(module: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    names = {tokenizer.convert_tokens_to_string([token]): index for token, index in tokenizer.get_vocab().items()}
    entities = {name: match.groups() for name in names if (match := re.fullmatch(r"(\s?\w+) (\d+)", name))}
    parts = sorted({part for pair in entities.values() for part in pair})
    for matrix in {module.get_input_embeddings().weight, module.get_output_embeddings().weight}:
        drawn = torch.randn(len(parts), matrix.shape[1]) * module.config.initializer_range
        vectors = dict(zip(parts, drawn, strict=True))
        for name, (kind, number) in entities.items():
            matrix[names[name]] = vectors[kind] + vectors[number]
        for part in parts:  # the word itself: what "find a mug" names is close to every mug
            if part in names:
                matrix[names[part]] = vectors[part]


def _load_pretrained(path: str) -> tuple[Any, Any]:
    transformers_logging.disable_progress_bar()
    if os.sep in path and not Path(path).is_dir():
        raise UserError(f'model.path: no folder at {path}. Give a folder with config.json, a hub name, or "tiny".')
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        module = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa")
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model.path: cannot load a causal LM from {path!r}: {reason}") from None
    if tokenizer.chat_template is None:
        raise UserError(f"model.path: the tokenizer of {path!r} has no chat template; use an instruct model.")
    return module, tokenizer


def _byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    for shift, byte in enumerate(byte for byte in range(256) if byte not in printable):
        table[chr(256 + shift)] = byte
    return table


def _to_python_regex(pattern: str) -> str:
    """Python's `re` has no `\\p{L}`; letters are word characters without digits and underscore."""
    return pattern.replace(r"[^\s\p{L}\d]", r"[^\s\w]|_").replace(r"\p{L}", r"[^\W\d_]")
