"""python -m tests.mutants [FILE...]: do the tests notice when the code is wrong?

Changes one operator, constant, comparison, condition or statement at a time and runs the tests that belong to the file,
in this process: they are collected once. A mutant that no test notices survives and is printed; `EXPLAINED` holds the
survivors that compute the same thing, each with its reason. Exit code 0: every survivor is explained and every
explanation is of a survivor; 1 otherwise; 2: the tests fail without any change. Runs by hand (`make evidence`).
"""

import argparse
import ast
import contextlib
import copy
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import hypothesis
import pytest
import torch
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "agentrl/learner/gates.py": ["tests/agentrl/test_gate.py"],
    "agentrl/learner/rate_gates.py": ["tests/agentrl/test_rate.py"],
    "agentrl/learner/loss_masks.py": ["tests/agentrl/test_masks.py"],
    "agentrl/learner/losses.py": ["tests/agentrl/test_loss.py", "tests/agentrl/test_masks.py"],
    "agentrl/learner/advantage.py": ["tests/agentrl/test_advantage.py"],
    "agentrl/model/head.py": ["tests/agentrl/test_lm_head.py"],
}
TIMEOUT_S = 60
"""CPU time; a mutant whose tests take longer loops for ever: noticed."""
_AT_THE_LIMIT = "at z = threshold the clipped norm, mean + std * threshold, is the norm itself"
_ALONE = "grpo of one return is 0 as well; the condition saves time"
_ROUNDING = "the same sum but for rounding"
_ONE_SOURCE = "both are made from the same list"
EXPLAINED: dict[str, list[tuple[str, str, str]]] = {
    "agentrl/learner/gates.py": [
        ("z_score > self.threshold else norm", "z_score >= self.threshold else norm", _AT_THE_LIMIT),
        ("z_score > self.threshold else 1.0", "z_score >= self.threshold else 1.0", _AT_THE_LIMIT),
    ],
    "agentrl/learner/loss_masks.py": [
        ("max()) + 1", "max()) + 2", "the further row has no token"),
        ("else 0", "else 1", "no token looks at the only row"),
    ],
    "agentrl/learner/losses.py": [
        ("advantages < 0", "advantages <= 0", "at A = 0 both losses are 0, and so are their gradients"),
        ("max()) + 1", "max()) + 2", "the further row has no token"),
        ("else 0", "else 1", "no token looks at the only row"),
        ("not len(candidates)", "False", "nothing is dropped from nothing; the condition saves time"),
        ("'truncate'", "'truncateX'", "whatever is not mask truncates"),
    ],
    "agentrl/learner/advantage.py": [
        ("len(places) > 1", "len(places) >= 1", _ALONE),
        ("len(places) > 1", "True", _ALONE),
        ("zip(places, values, strict=True)", "zip(places, values, strict=False)", _ONE_SOURCE),
        ("zip(groups, values, strict=True)", "zip(groups, values, strict=False)", _ONE_SOURCE),
        ("zip(turns, steps, strict=True)", "zip(turns, steps, strict=False)", _ONE_SOURCE),
        ("zip(turns, invalid, strict=True)", "zip(turns, invalid, strict=False)", _ONE_SOURCE),
    ],
    "agentrl/model/head.py": [
        ("probs.dtype == scaled.dtype == self.buffer.dtype", "False", "the same sum by one more [V, D]"),
        ("probs.dtype == scaled", "probs.dtype != scaled", "never true; the same sum by one more [V, D]"),
        ("run_check=False", "run_check=True", "only checks that the processes agree"),
        ("split(1 << 20)", "split(2 << 20)", _ROUNDING),
        ("split(1 << 20)", "split(1 << 21)", _ROUNDING),
        ("if pieces", "if True", "split gives one piece of nothing"),
        ("weight.is_leaf", "False", "backward of a leaf adds to its .grad too"),
        ("softmax(logits, -1", "softmax(logits, +1", "of two dimensions the last is number 1"),
        ("new_zeros(0)])[active]", "new_zeros(1)])[active]", "no token looks at the last one"),
        ("split(64)", "split(65)", "each row has its own entropy"),
        ("if kept is None else kept", "if True else kept", "a buffer that nothing is written to"),
        ("len(rows) == len(hidden)", "False", "the same rows, copied"),
        ("max(1, len(hidden))", "max(2, len(hidden))", "one token's buffer has a row more"),
        ("hidden.dtype == out.dtype", "False", "the same logits by one more [C, V]"),
        ("temperature == 1.0", "False", "division by 1 is exact"),
    ],
}
"""File -> (part of a statement, what a mutant makes of it, why no test can tell the two apart)."""

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.LShift: ast.RShift, ast.FloorDiv: ast.Mult,
}  # fmt: skip
_OPPOSITES: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    """Path from the root of the repository."""
    line: int
    """Where it changes."""
    source: str
    """The whole file afterwards."""
    before: str
    """The changed statement as it was."""
    after: str
    """The same statement, changed."""


def mutants(file: str) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    tree = ast.parse((ROOT / file).read_text())
    places = list(ast.walk(tree))
    skipped = {id(inner) for node in places for inner in _not_code(node)}
    statements = _statements(tree, places)
    for index, place in enumerate(places):
        for variant in range(2):
            if id(place) in skipped or index not in statements or not _mutate(copy.copy(place), variant):
                continue
            changed = copy.deepcopy(tree)
            nodes = list(ast.walk(changed))
            before = _show(places[statements[index]])
            _mutate(nodes[index], variant)
            after = _show(nodes[statements[index]])
            if before != after:
                source = ast.unparse(ast.fix_missing_locations(changed))
                yield Mutant(file, getattr(places[statements[index]], "lineno", 0), source, before, after)


def _not_code(node: ast.AST) -> Iterator[ast.AST]:
    """What no test should depend on: docstrings, annotations, texts of errors."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield from ast.walk(node)
    for name in ("annotation", "returns"):
        inner = getattr(node, name, None)
        if isinstance(inner, ast.AST):
            yield from ast.walk(inner)
    if isinstance(node, ast.Raise):
        yield from ast.walk(node)
    if isinstance(node, ast.Assert) and node.msg is not None:
        yield from ast.walk(node.msg)
    if isinstance(node, ast.ClassDef):
        yield from (inner for base in node.bases for inner in ast.walk(base))


def _mutate(node: Any, variant: int) -> bool:
    """Change a node in place; False where there is no such variant of it."""
    if variant == 0 and hasattr(node, "op") and type(node.op) in _SWAPS:
        node.op = _SWAPS[type(node.op)]()
    elif variant == 0 and isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    elif variant == 0 and isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif variant == 0 and isinstance(node, ast.Constant):
        return _mutate_constant(node)
    elif variant == 0 and isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.Constant(None)
    elif variant < 2 and isinstance(node, ast.Compare):
        table = _SWAPS if variant == 0 else _OPPOSITES
        if type(node.ops[0]) not in table:
            return False
        first: Any = table[type(node.ops[0])]()
        node.ops = [first, *node.ops[1:]]
    elif variant < 2 and isinstance(node, ast.If | ast.IfExp | ast.While):
        node.test = ast.Constant(variant == 0)
    else:
        return False
    return True


def _mutate_constant(node: ast.Constant) -> bool:
    if isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node.value, int | float):
        node.value += 1
    elif isinstance(node.value, str):
        node.value += "X"
    else:
        return False
    return True


def _statements(tree: ast.AST, nodes: list[ast.AST]) -> dict[int, int]:
    """Index of a node -> index of the innermost statement around it."""
    number = {id(node): index for index, node in enumerate(nodes)}
    found: dict[int, int] = {}

    def visit(node: ast.AST, statement: int | None) -> None:
        statement = number[id(node)] if isinstance(node, ast.stmt) else statement
        if statement is not None:
            found[number[id(node)]] = statement
        for child in ast.iter_child_nodes(node):
            visit(child, statement)

    visit(tree, None)
    return found


def _show(statement: ast.AST) -> str:
    """A statement, or the head of a compound one, on one line."""
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(statement)))
    return text.split("\n")[0] if hasattr(statement, "body") else text


class _LoopsForEver(BaseException):
    """Not an `Exception`, which Hypothesis would catch and look for a smaller example of."""


class _Jury:
    """A pytest plugin: instead of once, the collected tests run for every mutant, up to the first that fails."""

    def __init__(self, file: str) -> None:
        self.mutants = list(mutants(file))
        self.survivors: list[Mutant] | None = None
        """None where the tests fail without any change."""
        self._module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        self._failed = False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge all mutants; the tests run once before, which imports what they import."""
        items = sorted(session.items, key=lambda item: hasattr(getattr(item, "obj", None), "hypothesis"))
        if not session.testsfailed and items and not self._fails(items):
            bindings = list(_bindings(self._module, items))
            bar = track(self.mutants, description=self._module.__name__, console=Console(stderr=True))
            self.survivors = [mutant for mutant in bar if not self._notices(mutant, items, bindings)]
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Hears of every phase of every test."""
        self._failed |= report.failed

    def _fails(self, items: list[pytest.Item]) -> bool:
        self._failed = False
        for item in items:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            if self._failed:
                return True
        return False

    def _notices(
        self, mutant: Mutant, items: list[pytest.Item], bindings: list[tuple[dict[str, Any], str, str]]
    ) -> bool:
        name = self._module.__name__
        module = ModuleType(name)
        originals = [(names, key, names[key]) for names, key, _ in bindings]
        sys.modules[name] = module
        signal.setitimer(signal.ITIMER_PROF, TIMEOUT_S)
        try:
            exec(compile(mutant.source, mutant.file, "exec"), module.__dict__)
            for names, key, new in bindings:
                names[key] = getattr(module, new) if new else module
            return self._fails(items)
        except (Exception, _LoopsForEver):
            return True  # it cannot even be imported
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            sys.modules[name] = self._module
            for names, key, original in originals:
                names[key] = original


def _bindings(module: ModuleType, items: list[pytest.Item]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Where else the module's names are bound, by imports and parameters of tests: (names, key, name in the module).

    The last is empty where the module itself is bound.
    """
    own = {
        id(value): name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
    }
    own[id(module)] = ""
    imports = [vars(m) for n, m in list(sys.modules.items()) if n.startswith(("agentrl", "tests.")) and m is not module]
    parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
    for names in [*imports, *parameters]:
        for key, value in names.items():
            if id(value) in own:
                yield names, key, own[id(value)]
            elif vars(module).get(key, names) is value and not key.startswith("__"):
                yield names, key, key


def _stop(*_: object) -> NoReturn:
    raise _LoopsForEver


def judge(file: str) -> _Jury:
    """Run the tests of a file on all its mutants."""
    jury = _Jury(file)
    with contextlib.redirect_stdout(io.StringIO()):
        options = ["-p", "no:cacheprovider", "--assert=plain", "--tb=native", "-W", "ignore:Module already imported"]
        pytest.main([*options, *TESTS[file]], plugins=[jury])
    return jury


def report(jury: _Jury, file: str) -> bool:
    """Print what became of a file's mutants; whether all survivors, and nothing else, are explained."""
    survivors = jury.survivors or []
    entries = EXPLAINED.get(file, [])
    used = {entry for entry in entries for mutant in survivors if _explains(entry, mutant)}
    left = [mutant for mutant in survivors if not any(_explains(entry, mutant) for entry in entries)]
    stale = [entry for entry in entries if entry not in used]
    for mutant in left:
        print(f"{file}:{mutant.line}: survived: {mutant.before}\n    as: {mutant.after}")
    for part, changed, _ in stale:
        print(f"{file}: explained, but noticed or gone: {part}\n    as: {changed}")
    count = len(jury.mutants)
    equivalent = len(survivors) - len(left)
    print(
        f"{file}: {count} mutants, {count - len(survivors)} killed, {equivalent} equivalent and explained", flush=True
    )
    return not left and not stale


def _explains(entry: tuple[str, str, str], mutant: Mutant) -> bool:
    part, changed, _ = entry
    return part in mutant.before and mutant.before.replace(part, changed) == mutant.after


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("files", nargs="*", metavar="FILE", help="one or more of (default: all) " + ", ".join(TESTS))
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    options = parser.parse_args()
    unknown = set(options.files) - set(TESTS)
    if unknown:
        parser.error(f"no tests are named for {', '.join(sorted(unknown))}; known: {', '.join(TESTS)}")
    os.chdir(ROOT)
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _stop)
    quick = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile(
        "mutants",
        phases=quick,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutants")
    good = True
    for file in options.files or TESTS:
        if options.list:
            print(*(f"{file}:{m.line}: {m.before}\n    as: {m.after}" for m in mutants(file)), sep="\n")
            continue
        jury = judge(file)
        if jury.survivors is None:
            print(f"{file}: its tests fail without any change; nothing can be learned from mutants", file=sys.stderr)
            return 2
        good &= report(jury, file)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
