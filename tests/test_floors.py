"""An import goes to a lower floor or stays inside its own folder; never up."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tinytorch_gpu"
FLOORS = {
    "backend": 0, "devices": 0, "processors": 0, "toolchain": 0, "emulated": 0, "special": 0, "rng": 0, "nvtx": 0, "config": 0,
    "quantized": 0,
    "core.deferred": 1, "core.graph": 1, "core.mode": 1, "core.operators": 1, "core.tensor": 1, "core.op": 1, "weight": 1, "ops": 2, "cuda": 3, "native": 3, "host": 3, "core": 4,
    "generation": 5, "tokenizers": 5, "checkpoint": 5, "training": 5, "profiler": 6, "cli": 7,
    "__init__": 8, "__main__": 8,
}  # fmt: skip
# Imports inside functions that may go up: a method that hands itself over, a course name.
LAZY = {
    ("core.transformers", "checkpoint.load"),
    ("core.transformers", "generation"),
    ("core.attention", "generation.cache"),
    ("core.tokenization", "tokenizers"),
    ("core.transformers", "profiler.course"),
    ("core.attention", "profiler.course"),
    ("core.embeddings", "profiler.course"),
    ("core.tokenization", "profiler.course"),
}


def floor(module: str) -> int:
    parts = module.split(".")
    return next(FLOORS[".".join(parts[:n])] for n in (2, 1) if ".".join(parts[:n]) in FLOORS)


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module inside the package, whether inside a function) of each import of ``path``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree) if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }  # fmt: skip
    here, found = path.relative_to(PACKAGE).parent.parts, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                is_module = (PACKAGE / full.replace(".", "/")).with_suffix(".py").exists()
                is_module = is_module or (PACKAGE / full.replace(".", "/")).is_dir()
                found.append((full if is_module or not base else base, id(node) in inside))
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if "kernels" not in p.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for target, lazy in imports(path):
        if target in ("", "__version__") or (lazy and (module, target) in LAZY):
            continue
        assert floor(target) <= floor(module), f"{module} imports {target}, a floor above"


def test_every_folder_has_a_floor() -> None:
    for path in FILES:
        floor(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def test_operations_name_no_array_module() -> None:
    for path in (PACKAGE / "ops").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        assert not {"numpy", "cupy"} & set(names), path


def test_cupy_is_imported_only_when_asked_for() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            assert not (isinstance(node, ast.Import) and node.names[0].name.startswith("cupy"))
