"""Every public symbol says what it is: modules, classes, functions, methods, config fields, the words of the house."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN_TYPES = {"Task", "Row", "Turn", "Status", "Trajectory"}
FILES = sorted(path for room in ("agentrl", "envs", "retriever") for path in (ROOT / room).rglob("*.py"))


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST, list[ast.stmt]]]:
    """(dotted name, definition, statements beside it) of everything public, inside public classes too."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node, body
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}{node.name}.")


def undocumented_fields(node: ast.ClassDef) -> list[str]:
    """Annotated public fields without a string behind them; types of our own are documented where they are defined."""
    following = zip(node.body, [*node.body[1:], None], strict=True)
    return [
        field.target.id
        for field, after in following
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and not field.target.id.startswith("_")
        and not OWN_TYPES & {n.id for n in ast.walk(field.annotation) if isinstance(n, ast.Name)}
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value)
    ]  # fmt: skip


def is_dataclass(node: ast.ClassDef) -> bool:
    names = [ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list]
    return "dataclass" in names or any(ast.unparse(base) == "Section" for base in node.bases)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_symbols_of_a_file_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path}: no module docstring"
    for name, node, _ in public_definitions(tree.body):
        assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        text = ast.get_docstring(node)
        assert text, f"{path}:{node.lineno} {name} has no docstring"
        if isinstance(node, ast.ClassDef) and is_dataclass(node) and path.name in ("types.py", "config.py"):
            assert not undocumented_fields(node), f"{path}:{node.lineno} {name}"
