"""A tiny model with a tokenizer of its own, where no pretrained one is at hand."""

import re
from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from agentrl.config.schema import TinyModelConfig

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
_ENTITIES = r" ?\p{L}+ \d{1,2}(?!\d)|" + _WORDS


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
        initializer_range=shape.init_std or shape.hidden_size**-0.5,
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
