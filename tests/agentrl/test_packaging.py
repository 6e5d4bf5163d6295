"""The wheel is the product: built here, used in an environment of its own, among the user's own packages."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from agentrl.command.entry import COMMANDS
from agentrl.command.parsers import FIGURES, PARSERS
from agentrl.common.extras import MissingExtraError
from agentrl.common.installation import DISTRIBUTION, find_checkout, install_hint
from agentrl.config.shipped import find_config, list_configs, purpose, shipped_configs
from agentrl.errors import UserError
from agentrl.runs.software import own_commit

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("agentrl", "envs", "retriever", "configs")
SMALL = [
    "--train.steps=1", "--train.groups_per_step=2", "--train.group_size=2", "--eval.tasks=2",
    "--model.tiny.hidden_size=16", "--model.tiny.num_layers=1", "--rollout.env_workers=1", "--tracking.trackers=[]",
]  # fmt: skip
GAME = """
import gymnasium
from gymnasium.spaces import Text

import configs.mine, retriever.mine, tests.mine, tools.mine

assert {module.mine.WHOSE for module in (configs, retriever, tests, tools)} == {"the user's"}


class Game(gymnasium.Env):
    observation_space = action_space = Text(1000)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return f"Say {self.np_random.integers(9)}.", {"expert_action": "8", "category": "[/easy]"}

    def step(self, action):
        return "Thanks.", float("8" in action), True, False, {}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, the sdist, and the wheel of the sdist in `again/`."""
    source = tmp_path_factory.mktemp("source")
    for name in PRODUCT:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("built")
    build(source, "build_wheel", out)
    build(source, "build_sdist", out)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(source / "sdist", filter="data")
    build(next((source / "sdist").iterdir()), "build_wheel", out / "again")
    return out


def build(source: Path, what: str, out: Path) -> None:
    """What pip asks of the build backend, without the network that pip's own environment would need."""
    script = f"from setuptools import build_meta; build_meta.{what}({str(out)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel and our dependencies, and no checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    found = folder / "bin" / "python"
    places = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # One level of .pth files: those inside, an editable checkout's among them, are not read.
    (places / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    wheel = next(built.glob("*.whl"))
    install = [sys.executable, "-m", "pip", "-q", "--python", str(found), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder in which all of our names are the user's."""
    for name in ("envs", "retriever", "configs", "tests", "tools"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text('WHOSE = "the user\'s"\n')
    for name in ("envs", "tests"):  # packages of either kind
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "envs" / "my_game.py").write_text(GAME)
    return tmp_path


def call(folder: Path, *command: str | Path, code: int = 0) -> str:
    """Standard output and error of a command in a folder, without anything of this checkout on its path."""
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    surroundings |= {"HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=surroundings, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_wheel_and_sdist_hold_every_file_and_the_sdist_makes_the_same_wheel(built: Path) -> None:
    wheels = [next(folder.glob("*.whl")) for folder in (built, built / "again")]
    assert wheels[0].name.startswith("agentrl_dgg-")
    contents = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            contents.append({n: archive.read(n) for n in archive.namelist() if not n.endswith("RECORD")})
    assert contents[0] == contents[1]
    names = {name for name in contents[0] if ".dist-info/" not in name}
    assert all(name.startswith("agentrl/") for name in names), "one top-level name"
    code = {
        f"agentrl/{path.relative_to(ROOT / 'agentrl' if room == 'agentrl' else ROOT)}"
        for room in PRODUCT
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in (".md", ".pyc")
    }
    assert names == code


@pytest.mark.slow
def test_from_a_folder_of_the_users_own_packages_the_wheel_trains_evaluates_and_checks(
    home: Path, python: Path
) -> None:
    agentrl = python.with_name("agentrl")
    warm = ["--warmstart.episodes=8", "--warmstart.passes=1", "--warmstart.cache_dir=~/kept"]
    call(home, agentrl, "train", "--env.id", "envs.my_game:Game", "--run-dir=~/run", *SMALL, *warm)
    assert len(list((home / "kept").glob("Game-*"))) == 1
    assert (home / "run" / "versions.json").read_text().count('"git_commit": null') == 1
    out = call(home, python, "-m", "agentrl.evaluate", "run", "--json=~/new/result.json", "--eval.tasks", "3")
    assert "[/easy]" in out
    assert '"eval/tasks": 3' in (home / "new" / "result.json").read_text()
    out = call(home, agentrl, "check-env", "envs.my_game:Game", "--episodes", "5")
    assert "5 seeds repeat" in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_the_wheel_lists_its_configs_and_its_hints_name_the_distribution(home: Path, python: Path) -> None:
    out = call(home, python, "-m", "agentrl.train", "--list")
    assert "quickstart " in out
    assert "study/" not in out
    script = "from agentrl.common.extras import MissingExtraError as E; print(E('vllm', 'vllm', 'The engine'))"
    assert call(home, python, "-c", script).strip().endswith("pip install 'agentrl-dgg[vllm]'")
    call(home, python, "-c", "from agentrl.config.shipped import shipped_configs as s; open(s()['study/math'])")


HELP = """
import contextlib, io, json, runpy, sys

for form, name in json.loads(sys.argv[1]):
    out = io.StringIO()
    sys.argv = [name, *([] if form == "module" else [form]), "--help"]
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_module("agentrl" if form != "module" else name, run_name="__main__", alter_sys=True)
    print(json.dumps([name, out.getvalue()[:7], sorted({module.partition(".")[0] for module in sys.modules})]))
"""
HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "vllm",
    "faiss",
    "sentence_transformers",
    "scipy",
    "sympy",
    "pandas",
}


def test_help_of_every_command_loads_nothing_heavy() -> None:
    forms = [(name, name) for name in COMMANDS]
    forms += [
        ("module", COMMANDS[name][0].removesuffix(".__main__"))
        for name in COMMANDS
        if name.replace("-", "_") in PARSERS
    ]
    command = [sys.executable, "-W", "ignore", "-c", HELP, json.dumps(forms)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(forms)
    for name, start, loaded in map(json.loads, lines):
        assert start == "usage: ", name
        assert not HEAVY & set(loaded), name


@pytest.mark.parametrize("name", ["compare", "panels.__main__", "report.__main__", "report.page", "watch"])
def test_commands_that_only_read_results_load_neither_torch_nor_transformers(name: str) -> None:
    code = f"import json, sys, agentrl.{name}; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    loaded = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert not {"torch", "transformers"} & set(loaded)


def test_every_command_has_a_module_and_every_figure_a_function() -> None:
    from agentrl.report import plots as figures

    assert {name.replace("_", "-") for name in PARSERS} <= set(COMMANDS)
    assert list(FIGURES) == list(figures.FIGURES)


def test_shipped_configs_are_found_by_bare_name_unless_the_user_has_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = shipped_configs()["quickstart"]
    for name in ("quickstart", "quickstart.toml", "configs/quickstart.toml"):
        assert find_config(Path(name)) == there
    (tmp_path / "quickstart").mkdir()
    assert find_config(Path("quickstart")) == there
    (tmp_path / "quickstart.toml").touch()
    assert find_config(Path("quickstart.toml")) == Path("quickstart.toml")
    assert find_config(Path("no_such")) == Path("no_such")


def test_every_shipped_config_says_in_a_line_what_it_is_for() -> None:
    for name, path in shipped_configs().items():
        assert 10 < len(purpose(path)) < 150, name
    assert "Does gated reuse pay" in list_configs(studies=True)


def test_install_hints_suit_a_checkout_and_name_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_checkout() == ROOT
    monkeypatch.chdir(ROOT)
    assert install_hint("math") == "pip install -e '.[math]'"
    monkeypatch.chdir(tmp_path)
    assert str(MissingExtraError("peft", "lora", "x")).endswith(f"pip install -e '{ROOT}[lora]'")
    assert find_checkout(tmp_path) is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    assert find_checkout(tmp_path) is None


def test_no_text_of_the_product_tells_people_to_install_somebody_elses_project() -> None:
    for path in [ROOT / "README.md", *(p for room in PRODUCT for p in (ROOT / room).rglob("*") if p.is_file())]:
        if path.suffix in (".py", ".md", ".toml"):
            assert "'agentrl[" not in path.read_text(encoding="utf-8"), path


def test_the_commit_of_somebody_elses_repository_is_not_recorded(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    git("add", "-A")
    git("commit", "-qm", "x")
    assert own_commit(tmp_path) is None  # a copy of the package in their repository
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert own_commit(inside) is None  # an environment inside their repository
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{DISTRIBUTION}"\n')
    assert own_commit(tmp_path).endswith("+changes")  # type: ignore[union-attr]
    vendored = tmp_path / "vendored"
    vendored.mkdir()
    shutil.copy(tmp_path / "pyproject.toml", vendored)
    assert own_commit(vendored) is None


def test_a_config_that_is_nowhere_is_told_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentrl.config.read import load_config

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Did you mean quickstart"):
        load_config("quickstrat")
    with pytest.raises(UserError, match="train --list"):
        load_config("zzz")
