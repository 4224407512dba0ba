"""Rules of the house that nothing else would notice."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {str(p.relative_to(ROOT)): p for top in ("dmftopt", "experiments") for p in sorted((ROOT / top).rglob("*.py"))}
SHARED = {"_checks", "_compiler", "_files", "_memory", "_register"}  # at the top of the package, for all of it


@pytest.mark.parametrize("name", FILES)
def test_nothing_outside_a_package_imports_its_private_names(name):
    """A private module is one of the importer's own folder or above it; a private name comes from a module of the same folder."""
    package = Path(name).parent.parts
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else ()
        target = (*base, *(node.module.split(".") if node.module else ()))
        if target[0] not in ("dmftopt", "experiments"):
            continue
        for alias in node.names:
            path = (*target, alias.name)
            private = [i for i, part in enumerate(path) if part.startswith("_") and not part.startswith("__")]
            for i in private:
                assert package[:i] == path[:i] or (package[0] == "dmftopt" and path[i] in SHARED), (
                    f"{name} imports {'.'.join(path)}"
                )


def test_functions_fit_a_screen():
    """Less than 75 lines, docstring apart."""
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = (first.end_lineno or 0) if documented else node.lineno
                assert (node.end_lineno or 0) - start < 75, f"{name}: {node.name}"
