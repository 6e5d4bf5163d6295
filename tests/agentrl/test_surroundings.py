"""Consoles, terminals, homes, paths, copies: what surrounds a run must not end or spoil it."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentrl import evaluate, imitation, train
from agentrl.command.guard import main_guard
from agentrl.command.parsers import PARSERS
from agentrl.common.streams import Lasting, print_anything
from agentrl.config.read import build_config, load_config
from agentrl.config.schema import TinyModelConfig
from agentrl.console import say
from agentrl.errors import UserError
from agentrl.model.tiny import build_tiny_model, build_tokenizer
from agentrl.runs.checkpoint import checkpoints, newest_checkpoint, save_model
from agentrl.runs.folder import read_metrics
from agentrl.runs.outputs import given_back_if_empty, output_file
from agentrl.runs.writer import RunWriter
from tests.agentrl.test_faults import SMALL
from tests.toy import ColourEnv

ROOT = Path(__file__).resolve().parents[2]


class OddNames(ColourEnv):
    """Category and task are what markup and narrow consoles choke on."""

    def _info(self) -> dict[str, Any]:
        return {**super()._info(), "category": "[/easy] [bold]ж مرحبا :smile:", "task": "[/]"}


def words(**changes: Any) -> list[str]:
    settings = {**SMALL, "env.id": f"{__name__}:OddNames", "train.steps": 1, **changes}
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def small_run(folder: Path, **changes: Any) -> Path:
    assert main_guard(lambda: train.main([*words(**changes), "--run-dir", str(folder)])) == 0
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("finished") / "run", **{"train.steps": 3})


class Narrow(io.TextIOWrapper):
    """A console of an encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_run_is_told_to_its_end_whatever_the_console_and_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    out, err = Narrow(encoding), Narrow(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    small_run(tmp_path / "run")
    out.flush()
    text = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "[/easy] [bold]" in text
    assert ":smile:" in text
    assert ("ж" in text) == (encoding == "utf-8")
    assert str(tmp_path / "run") in text.replace("\n", "")


def test_a_line_with_markup_or_half_a_character_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say("runs/[red]x[/nothing] :smile: 100 [1, 2]")
    assert capsys.readouterr().out == "runs/[red]x[/nothing] :smile: 100 [1, 2]\n"


def test_print_anything_leaves_streams_that_say_how_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", chosen)
    monkeypatch.setattr(sys, "stderr", None)
    print_anything()
    assert chosen.errors == "backslashreplace"


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_log(tmp_path: Path) -> None:
    script = "import sys; from agentrl.command.guard import main_guard; from agentrl import train\n"
    script += "sys.exit(main_guard(lambda: train.main(sys.argv[1:]), outlives_readers=True))"
    arguments = [*words(**{"env.id": "tests.toy:ColourEnv", "eval.every": 1}), "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        process.stdout.close()  # before the first line
        assert process.wait() == 0
    assert read_metrics(tmp_path / "run")[-1]["final"]
    assert newest_checkpoint(tmp_path / "run").name == "step-000001"


def test_a_lasting_stream_lets_go_of_dead_readers_and_nothing_else() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Lasting(Full()).write("x")
    closed = io.StringIO()
    closed.close()
    assert Lasting(closed).write("four") == 4
    assert Lasting(sys.stdout).encoding == sys.stdout.encoding


def test_copies_beside_checkpoints_are_neither_deleted_nor_resumed_from(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    folder = run / "checkpoints"
    names = ["step-000001-best", "step-000003 (copy)", "step-999999", "best", "step-3", "step-000000.bak"]
    for name in names:  # one has even the form of a name of ours
        shutil.copytree(folder / "step-000003", folder / name)
    (run / "trajectories" / "step-000009-mine.jsonl").write_text("{}\n")
    assert newest_checkpoint(run).name == "step-000003"
    assert main_guard(lambda: train.main(["--resume", str(run), "--train.steps", "6"])) == 0
    assert [path.name for path in checkpoints(run)] == ["step-000005", "step-000006"]
    assert {path.name for path in folder.iterdir()} == {*names, "step-000005", "step-000006"}
    assert (run / "trajectories" / "step-000009-mine.jsonl").exists()


def test_two_runs_into_one_named_folder_leave_it_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config({})
    RunWriter.create(tmp_path / "run", config, tokenizer=None, command=[])
    monkeypatch.setattr("agentrl.runs.writer.require_empty", lambda folder: None)  # looked in the same moment
    with pytest.raises(UserError, match="is not empty"):
        RunWriter.create(tmp_path / "run", config, tokenizer=None, command=[])


def test_a_claimed_folder_goes_when_nothing_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main_guard(lambda: train.main(words(**{"env.id": "tests.toy:NoSuchEnv"}))) == 2
    assert "has no 'NoSuchEnv'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "samples.jsonl").touch()
    with pytest.raises(RuntimeError, match="late"), given_back_if_empty(kept):
        raise RuntimeError("late")
    assert kept.is_dir()


@pytest.mark.parametrize("place", ["file/x.json", "folder"])
def test_outputs_that_cannot_be_written_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(evaluate, "play_held_out", lambda *_: pytest.fail("it has played"))
    arguments = ["--policy", "expert", "--env", "tests.toy:ColourEnv", f"--json={tmp_path / place}"]
    assert main_guard(lambda: evaluate.main(arguments)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --json: cannot write {tmp_path / place}: ")
    assert len(err.splitlines()) == 1


def test_an_output_file_replaces_the_old_one_only_when_the_work_is_done(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "x.json"
    with output_file(file, "--json") as write:
        write("old")
    with pytest.raises(RuntimeError, match="on the way"), output_file(file, "--json"):
        raise RuntimeError("on the way")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]
    with output_file(None, "--json") as write:
        write("nowhere")
    with output_file(Path(os.devnull), "--json") as write:
        write("into a device")


@pytest.mark.parametrize("name", list(PARSERS))
def test_every_path_of_a_command_knows_the_home_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    actions = [action for action in PARSERS[name]()._actions if action.type is not None]
    paths = [action for action in actions if action.type not in (int, float, json.loads)]
    assert all(str(action.type("~/x")) == "/somewhere/x" for action in paths)  # type: ignore[operator]
    assert all(action.type("a~b") == Path("a~b") for action in paths)  # type: ignore[operator]


def test_paths_of_a_config_know_the_home_folder_and_texts_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "x.toml"
    file.write_text(
        '[env]\nsystem = "~ is home"\n[env.options]\nfiles = ["~/a", { deep = "~/b" }]\nroot = "~"\n'
        '[model]\npath = "~/m"\n'
        '[warmstart]\ncache_dir = "~/c"\n[rollout]\nstop = ["~/"]\nengine_options = { folder = "~/w" }\n'
    )
    config = load_config(Path("~/x.toml"))
    home = str(tmp_path)
    assert config.env.options == {"files": [f"{home}/a", {"deep": f"{home}/b"}], "root": home}
    assert (config.model.path, config.warmstart.cache_dir) == (f"{home}/m", f"{home}/c")
    assert config.rollout.engine_options == {"folder": f"{home}/w"}
    assert (config.env.system, config.rollout.stop) == ("~ is home", ["~/"])
    assert load_config(None, ["--model.path=~/m"]).model.path == f"{home}/m"


def test_data_of_every_environment_is_found_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentrl.envs.alfworld.sources import _source
    from agentrl.envs.math.problems import load_problems
    from agentrl.envs.search_qa.questions import load_questions
    from agentrl.envs.webshop.loading import find_source
    from agentrl.retriever.client import Client

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "q.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": 1, "contents": '"A"\nb'}) + "\n")
    assert len(load_problems("~/q.jsonl").problems) == 1
    assert len(load_questions({"x": "~/q.jsonl"}, split="test")) == 1
    assert Client("~/c.jsonl").search(["b"], topk=1)
    assert _source("~/alf") == str(tmp_path / "alf")
    monkeypatch.setenv("ALFWORLD_DATA", "~/more")
    assert _source(None) == str(tmp_path / "more")
    assert find_source("~/shop") == str(tmp_path / "shop")


def test_a_model_in_the_home_folder_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tokenizer = build_tokenizer(["red green"] * 3)
    save_model(tmp_path / "m", build_tiny_model(TinyModelConfig(hidden_size=16), tokenizer), tokenizer)
    result = evaluate.run("~/m", {**SMALL, "env.id": "tests.toy:ColourEnv", "tracking.trackers": [], "eval.tasks": 2})
    assert result.total.count == 2


WORDY = """
import pathlib
from tests.toy import ColourEnv

HELLO = "You see"

class Wordy(ColourEnv):
    def __init__(self, split="train", *, expert=None, data=None):
        super().__init__(split, expert=expert)
        self.extra = (pathlib.Path(__file__).parent / "beside.txt").read_text()
"""


@pytest.mark.slow
def test_a_warm_start_is_another_when_code_or_data_of_the_environment_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, beside, data, model = (tmp_path / name for name in ("wordy.py", "beside.txt", "data", "model"))
    module.write_text(WORDY)
    beside.write_text("1")
    data.mkdir()
    (data / "games.json").write_text("{}")
    model.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    options = {"env.id": "wordy:Wordy", "env.options.data": str(data), "model.path": str(model)}

    def name(**more: Any) -> str:
        return imitation.cache_name(load_config(None, {**options, **more}))

    names = [name()]
    assert name() == names[0]
    assert name(**{"env.eval_split": "x", "model.lora_rank": 4}) == names[0]
    for change in (
        lambda: module.write_text(WORDY.replace("You see", "You hear")),
        lambda: beside.write_text("2"),
        lambda: (data / "games.json").write_text("[]"),
        lambda: (data / "more.json").write_text("[]"),
        lambda: (model / "model.safetensors").write_text("weights"),
    ):
        change()
        names.append(name())
    assert len(set(names)) == len(names)
    sys.modules.pop("wordy", None)


def test_a_home_that_cannot_be_written_costs_a_note_and_the_warm_start_is_still_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").touch()  # a file: no folder can be made in it, whoever asks
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("XDG_CACHE_HOME", "AGENTRL_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    config = load_config(
        None,
        {**SMALL, "env.id": "tests.toy:ColourEnv", "tracking.trackers": [], "warmstart.episodes": 4},
    )
    made = imitation.warmstart(config)
    assert "warmstart.cache_dir names another folder" in capsys.readouterr().err
    assert made.is_relative_to(tmp_path / "temporary")
    assert imitation.warmstart(config) == made
    assert "(cached)" in capsys.readouterr().out


def test_no_folder_for_a_warm_start_is_told_before_the_expert_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    monkeypatch.setattr(imitation, "vocabulary_texts", lambda _: pytest.fail("it has played"))
    config = load_config(None, {"warmstart.cache_dir": str(tmp_path / "file" / "x"), "warmstart.episodes": 4})
    with pytest.raises(UserError, match=r"Set warmstart\.cache_dir to one that can"):
        imitation.warmstart(config)
