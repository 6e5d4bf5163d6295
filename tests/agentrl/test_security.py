"""What a run may write, what it must not keep, and what no file of the product may call."""

import ast
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from agentrl import train
from agentrl.command.guard import main_guard
from agentrl.config.read import load_config
from agentrl.errors import ConfigError
from tests.agentrl.test_faults import SMALL
from tests.toy import ColourEnv

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for room in ("agentrl", "envs", "retriever") for path in sorted((ROOT / room).rglob("*.py"))]


class EscapingEnv(ColourEnv):
    """Names everything after a path outside of the run folder."""

    def _info(self) -> dict[str, Any]:
        name = "../../../escaped/\0<script>alert(1)</script>"
        return {**super()._info(), "task": name, "category": name, "anchor": name}


_written: list[str] | None = None


def _note_writes(event: str, arguments: tuple[Any, ...]) -> None:
    if _written is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        mode, flags = arguments[1], arguments[2]
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            _written.append(os.path.realpath(os.fsdecode(arguments[0])))
    elif event in ("os.mkdir", "os.rename", "shutil.rmtree"):
        _written.append(os.path.realpath(os.fsdecode(arguments[0])))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that Python code of this process opens for writing, makes, renames or clears."""
    global _written
    sys.addaudithook(_note_writes)  # stays for good, and does nothing after this test
    _written = found = []
    yield found  # type: ignore[misc]
    _written = None


def test_a_run_writes_into_its_folder_only_whatever_the_environment_says(tmp_path: Path, written: list[str]) -> None:
    words = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    words += ["--run-dir", str(tmp_path / "run"), "--tracking.trackers", '["tensorboard"]']
    assert main_guard(lambda: train.main(["--env.id", f"{__name__}:EscapingEnv", *words])) == 0
    inside = str(tmp_path / "run")
    # Python keeps compiled code beside the source, and libraries throw away what they say.
    outside = {p for p in written if not p.startswith(inside) and "__pycache__" not in p and not p.startswith("/dev/")}
    assert len(written) > 20
    assert outside <= {str(tmp_path)}, outside
    kinds = {path.suffix for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jinja"}


def test_a_run_keeps_no_secret_of_its_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "sesame-4711")
    words = [word for key, value in {**SMALL, "train.steps": 1}.items() for word in (f"--{key}", str(value))]
    assert main_guard(lambda: train.main(["--env.id", "tests.toy:ColourEnv", "--run-dir", str(tmp_path), *words])) == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sesame-4711" in path.read_bytes()]


@pytest.mark.parametrize("key", ["token", "api_key", "db.password", "hf_token"])
def test_a_secret_among_the_options_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match="looks like a secret") as caught:
        load_config(None, [f"--env.options.{key}", "sesame-4711"])
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("token_variable", "HF_TOKEN"), ("max_tokens", "5"), ("token", "7")])
def test_options_that_only_sound_like_secrets_are_accepted(key: str, value: str) -> None:
    assert key in load_config(None, [f"--env.options.{key}", value]).env.options


def test_no_file_calls_what_runs_or_loads_foreign_code_or_listens_to_other_machines() -> None:
    """Beside `eval`, `exec` and pickles, which tests/test_architecture.py forbids."""
    forbidden = {("torch", "load"), ("os", "system"), ("os", "popen"), ("yaml", "load"), ("subprocess", "getoutput")}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            place = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant):
                assert node.value not in ("0.0.0.0", "::"), place
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in forbidden, place
            elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle", "trust_remote_code"):
                assert isinstance(node.value, ast.Constant), place
                assert not node.value.value, place
