"""Pretrained policies by the name a user gives: a folder, a hub name, `name@revision`, or a LoRA adapter of one.

A folder that exists wins. A hub name is taken from the Hugging Face cache where it lies there whole, so that a run on a
machine without a network starts at once, and from the hub otherwise.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, errors, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from agentrl.common.extras import MissingExtraError
from agentrl.errors import UserError

_ADAPTER_FILE = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """Where a model lies."""

    name: str
    """Folder or hub name."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    is_folder: bool = False

    @classmethod
    def of(cls, path: str) -> "Source":
        """What `model.path` means.

        Raises:
            UserError: it is neither a folder nor can it be a hub name.
        """
        folder = Path(path).expanduser()
        if folder.is_dir():
            return cls(str(folder), is_folder=True)
        name, _, revision = path.partition("@")
        looks_local = path.startswith((".", "/", "~")) or path.endswith("/") or name.count("/") > 1 or "\\" in path
        if looks_local or folder.exists():
            what = "is a file" if folder.exists() else "does not exist"
            raise UserError(
                f"model.path: no folder at {path} (it {what}). Give a folder with config.json, a hub name such as "
                'Qwen/Qwen3-0.6B, or "tiny".'
            )
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise UserError(
                f"model.path: no folder at {path}, and {name!r} cannot be a hub name either. Give a folder with "
                'config.json, a hub name such as Qwen/Qwen3-0.6B or Qwen/Qwen3-0.6B@main, or "tiny".'
            ) from None
        return cls(name, revision or None)

    def read(self, load: Callable[..., _T]) -> _T:
        """`load(name, **options)`: of a hub name first from the cache alone, then with the network where allowed.

        Raises:
            UserError: there is no such model, or it holds nothing that can be loaded; with the remedy.
        """
        options: dict[str, Any] = {} if self.revision is None else {"revision": self.revision}
        snapshot = self._snapshot()
        tries: list[tuple[str, dict[str, Any]]] = [] if snapshot is None else [(snapshot, {})]
        if not self.is_folder and (snapshot is None or not constants.is_offline_mode()):
            tries.append((self.name, options))
        failure: Exception | None = None
        for name, more in tries:
            try:
                return load(name, **more)
            except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
                failure = error
        assert failure is not None
        raise UserError(f"model.path: {self._explain(failure)}") from None

    def find(self, file: str) -> str | None:
        """Path of one of its files, or None where it has none of that name."""
        snapshot = self._snapshot()
        if snapshot is not None:
            path = Path(snapshot) / file
            return str(path) if path.is_file() else None
        if constants.is_offline_mode():
            return None
        found: str | None = self.read(
            lambda name, **options: cached_file(name, file, _raise_exceptions_for_missing_entries=False, **options)
        )
        return found

    def place(self) -> dict[str, str | None]:
        """Where a program of somebody else's finds it: `model`, a folder or hub name, and its `revision`."""
        snapshot = self._snapshot()
        if snapshot is not None and any(Path(snapshot).glob("*.safetensors")):
            return {"model": snapshot, "revision": None}
        return {"model": self.name, "revision": self.revision}

    def _snapshot(self) -> str | None:
        """The folder itself, or that of the cache which has at least the model's config."""
        if self.is_folder:
            return self.name
        for file in ("config.json", _ADAPTER_FILE):
            path = try_to_load_from_cache(self.name, file, revision=self.revision)
            if isinstance(path, str):
                return str(Path(path).parent)
        return None

    def _explain(self, error: Exception) -> str:
        """One line: what was looked for, why it is not to be had, what to do."""
        reason = _first_line(error)
        if self.is_folder:
            return (
                f"cannot load a causal LM from {self.name!r}: {reason} Give a folder that "
                "AutoModelForCausalLM.from_pretrained loads, tokenizer included."
            )
        kinds = {type(cause) for cause in _causes(error)}
        name = self.name if self.revision is None else f"{self.name}@{self.revision}"
        download = f"hf download {self.name}" + (f" --revision {self.revision}" if self.revision else "")
        if _is_any(kinds, errors.GatedRepoError):
            return f"{name!r} is gated: ask for access on its page on the hub, then log in with `hf auth login`."
        if _is_any(kinds, errors.RevisionNotFoundError):
            return f"the hub's {self.name!r} has no revision {self.revision!r}: give a branch, tag or commit it has."
        if _is_any(kinds, errors.RepositoryNotFoundError):
            return (
                f"no folder at {self.name}, and the hub has no model {name!r} that you may read: check the spelling, "
                "or log in with `hf auth login` if it is private."
            )
        if _is_any(kinds, errors.LocalEntryNotFoundError, ConnectionError, errors.OfflineModeIsEnabled) or (
            constants.is_offline_mode() and isinstance(error, OSError)
        ):
            why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub cannot be reached"
            return (
                f"no folder at {self.name}, {name!r} is not (whole) in the Hugging Face cache "
                f"{constants.HF_HUB_CACHE}, and {why}. Run `{download}` where there is a network, set HF_HOME to a "
                "cache that has it, or give a folder."
            )
        return f"cannot load a causal LM from {name!r}: {reason} Take a text model that transformers itself ships."


def load_pretrained(path: str, *, dtype: torch.dtype, weights: bool = True) -> tuple[Any, Any]:
    """(module, tokenizer) of a folder or hub name, as transformers itself loads them; adapters are merged.

    Args:
        path: `model.path`.
        dtype: of the weights.
        weights: whether they are read; else the module is a shape on the device `meta`. An adapter's always are.

    Raises:
        UserError: not to be had, no causal LM, or one that cannot be trained; in one line.
        MissingExtraError: an adapter, and peft is not installed.
    """
    transformers_logging.disable_progress_bar()
    source = Source.of(path)
    adapter = source.find(_ADAPTER_FILE)
    base = source if adapter is None else _base_of(path, adapter)
    config = base.read(_auto(AutoConfig))
    _check_config(config, path)
    is_read = weights or adapter is not None
    module = base.read(_auto(AutoModelForCausalLM, dtype=dtype)) if is_read else _shape(base, config, dtype)
    if adapter is not None:
        module = _merge_adapter(module, source, base)
    if adapter is not None and not any(source.find(file) for file in _TOKENIZER_FILES):
        source = base
    tokenizer = source.read(_auto(AutoTokenizer))
    if not tokenizer.chat_template:
        raise UserError(
            f"model.path: the tokenizer of {path!r} has no chat template; use an instruct model, or save a template "
            "into its tokenizer (tokenizer.chat_template)."
        )
    _check_vocabulary(module, tokenizer, path)
    return module, tokenizer


def read_config(path: str) -> Any:
    """The Hugging Face config of a folder or hub name, read without weights; of an adapter, its base's."""
    source = Source.of(path)
    adapter = source.find(_ADAPTER_FILE)
    return (source if adapter is None else _base_of(path, adapter)).read(_auto(AutoConfig))


def _auto(kind: Any, **fixed: Any) -> Callable[..., Any]:
    """`kind.from_pretrained` that never runs code from the model's repository."""
    return lambda name, **options: kind.from_pretrained(name, trust_remote_code=False, **fixed, **options)


def _shape(source: Source, config: Any, dtype: torch.dtype) -> Any:
    """The module without weights; with what the model's folder says of how it generates."""
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    if source.find("generation_config.json"):
        module.generation_config = source.read(_auto(GenerationConfig))
    return module


def _base_of(path: str, adapter: str) -> Source:
    """The model that an adapter was trained on."""
    try:
        settings = json.loads(Path(adapter).read_text(encoding="utf-8"))
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model.path: {adapter} is no adapter config ({_first_line(error)}). Save it again.") from None
    beside = Path(adapter).parent / str(base)
    if not base:
        raise UserError(f"model.path: the adapter {path!r} names no base model. Merge it into its base and give that.")
    try:
        found = Source.of(str(beside) if not Path(base).is_dir() and beside.is_dir() else str(base))
    except UserError as error:
        raise UserError(
            f"model.path: {path!r} is an adapter whose base {str(base)!r} is not there. Put the base where "
            f"{_ADAPTER_FILE} says, or correct base_model_name_or_path in it. ({error})"
        ) from None
    return found if found.is_folder or not revision else Source(found.name, revision)


def _merge_adapter(module: Any, source: Source, base: Source) -> Any:
    """The base with a LoRA adapter added to its weights."""
    try:
        from peft import PeftModel
    except ImportError:
        raise MissingExtraError("peft", "lora", "a model.path that is an adapter") from None

    def merge(name: str, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
            wrapped = PeftModel.from_pretrained(module, name, **options)
        if not hasattr(wrapped, "merge_and_unload"):
            raise ValueError(f"{type(wrapped.base_model).__name__} cannot be merged into weights.")
        return wrapped.merge_and_unload()

    try:
        merged = source.read(merge)
    except UserError as error:
        raise UserError(
            f"model.path: the adapter {source.name!r} does not fit its base {base.name!r}, or is no LoRA. Merge it "
            f"into its base yourself and give that folder. ({error})"
        ) from None
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


def _check_config(config: Any, path: str) -> None:
    """Refuse what can be loaded and not trained."""
    method = getattr(config, "quantization_config", None)
    if method:
        kind = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", "")
        raise UserError(
            f"model.path: the weights of {path!r} are quantized ({kind}), which cannot be trained. Take the model's "
            "unquantized release."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"model.path: {path!r} is an encoder-decoder ({config.model_type}). Take a causal LM.")


def _check_vocabulary(module: Any, tokenizer: Any, path: str) -> None:
    """Refuse a tokenizer whose template writes ids that the model does not embed; unused ones may be beyond."""
    rows = module.get_input_embeddings().weight.shape[0]
    written = [*tokenizer.encode(tokenizer.chat_template, add_special_tokens=False), tokenizer.eos_token_id or 0]
    if max(written) >= rows:
        raise UserError(
            f"model.path: the chat template of {path!r} writes token {max(written)}, but the model only embeds {rows}. "
            "Save them together after model.resize_token_embeddings(len(tokenizer))."
        )


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _is_any(kinds: set[type], *wanted: type) -> bool:
    return any(issubclass(kind, wanted) for kind in kinds)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0].strip() or type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
