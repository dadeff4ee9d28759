"""The house rules that a machine can see: file and function sizes, what imports cost, what is public."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PYTHON_FILES = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def test_no_file_over_500_lines_and_median_under_200() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PYTHON_FILES}
    assert {name: n for name, n in lengths.items() if n > 500} == {}
    assert statistics.median(n for name, n in lengths.items() if name.startswith("src")) < 200


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_functions_are_under_60_lines_and_8_parameters(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body_start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.body[0].lineno
        length = (node.end_lineno or 0) - body_start + 1
        assert length < 60, f"{node.name} has {length} lines"
        args = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        args = [a for a in args if a not in ("self", "cls")]
        is_block = path.name.startswith("_") or "/cli/" in path.as_posix() or node.name == "__init__"
        assert is_block or len(args) <= 8, f"{node.name} has {len(args)} parameters"
        assert node.args.kwarg is None, f"{node.name} takes **{node.args.kwarg.arg}"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "module", ["cellwright", "cellwright.cli.app", "cellwright.core.masks", "cellwright.config.recipe"]
)
def test_light_imports_load_nothing_heavy(module: str) -> None:
    heavy = "torch", "torchvision", "numba", "cv2", "scipy", "pandas", "matplotlib", "skimage", "shapely"
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_path_of_a_machine_and_no_host_in_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = "pypi" + ".org", "files.python" + "hosted"
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".lock", ".json", "") and path.is_file():
            text = path.read_text(errors="ignore")
            assert not any(host in text for host in hosts), name
            assert "/work" + "/main" not in text, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_every_error_says_what_was_expected_or_what_to_do(path: Path) -> None:
    ours = {"InputError", "UsageError", "FormatError", "ModelError", "OutputError", "RecipeError"}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in ours:
            continue
        given = {keyword.arg for keyword in node.keywords}
        assert given & {"remedy", "expected", None}, f"line {node.lineno}: {node.func.id} leaves the user alone"
