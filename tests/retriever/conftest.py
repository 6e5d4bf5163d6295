"""A tiny encoder with random weights, and small corpora: no downloads, no packages beyond the extra [search]."""

import json
from pathlib import Path

import numpy as np
import pytest

from agentrl.retriever.encoder import EncoderSpec

TITLES = ("Emma", "Persuasion", "Middlemarch", "Dracula", "Ulysses", "Walden", "Beloved", "Dune")


class WordEncoder:
    """An encoder by hand: one dimension per word hash. Counts the texts it encodes."""

    def __init__(self, name: str = "words", dimension: int = 64, salt: int = 0) -> None:
        self.spec = EncoderSpec(name, "none")
        self.dimension, self.salt = dimension, salt
        self.num_encoded = 0

    def encode(self, texts, *, role):
        self.num_encoded += len(texts)
        vectors = np.full((len(texts), self.dimension), 1e-3, np.float32)
        for i, text in enumerate(texts):
            for word in text.lower().split():
                vectors[i, (sum(word.encode()) * 31 + len(word) + self.salt) % self.dimension] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def word_encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """40 passages in Search-R1's form."""
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"id": f"p{i}", "contents": f'"{title} {i}"\n{title} volume {i} is a novel number {i * 7}.'}
        for i, title in enumerate(TITLES * 5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with random weights and a word-level tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "passage", ":", "a", "b", "c", "d", "novel", "sea", "whale"]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny-bert")
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
