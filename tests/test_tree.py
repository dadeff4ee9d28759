"""Rules about the source tree: sizes of files and functions, imports, and what error messages contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PYTHON_FILES = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def test_no_file_over_800_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PYTHON_FILES}
    assert {name: n for name, n in lengths.items() if n > 800} == {}


# Public functions whose parameters are the options of a verb (tests/api/test_same_options.py).
VERBS = ("evaluate", "fuse", "predict_folder", "predict_tiles", "read_dataset", "train", "tune", "with_options")


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
        is_block = is_block or (path.parent.name == "api" and node.name in VERBS)
        assert is_block or len(args) <= 8, f"{node.name} has {len(args)} parameters"
        assert node.args.kwarg is None, f"{node.name} takes **{node.args.kwarg.arg}"  # type: ignore[union-attr]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def imported_modules(name: str) -> set[str]:
    """The modules of cellwright that a module imports, inside functions too, but not for type checking only."""
    tree = ast.parse(MODULES[name].read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    imported = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                imported.add(submodule if submodule in MODULES else str(node.module))
    return (imported & MODULES.keys()) - {name}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (strongly connected components)."""
    reached = {name: set(targets) for name, targets in imports.items()}
    changed = True
    while changed:
        changed = False
        for name, targets in reached.items():
            further = targets.union(*(reached[target] for target in targets))
            changed |= further != targets
            reached[name] = further
    groups = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in reached if a in reached[a]}
    return [list(group) for group in sorted(groups)]


def test_circles_are_recognised() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_import_circles_among_files() -> None:
    assert circles({name: imported_modules(name) for name in MODULES}) == []


def texts(path: Path) -> list[tuple[str, str]]:
    """The strings of a file that may be shown to a user, each with its place: all but docstrings."""
    tree = ast.parse(path.read_text())
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    ]


def test_only_the_command_line_names_options() -> None:
    """Library messages write a parameter as `name` or `name=value`; the command line shows it as an option."""
    allowed = (
        "src/cellwright/training/environment.py",  # arguments of git
        "src/cellwright/models/weights/model_folder.py",  # the model card shows a command
        "src/cellwright/models/export/bioimageio.py",  # so does the README of a package
        "src/cellwright/models/export/standalone/",  # has a command line of its own
    )
    named = [
        f"{place}: {text}"
        for path in SOURCES
        if "cli" not in path.parts
        for place, text in texts(path)
        if re.search(r"(?<![\w-])--[a-z]", text) and "pip install" not in text and not place.startswith(allowed)
    ]
    assert named == []


def test_counts_have_the_right_number() -> None:
    """Messages say "1 image" and "2 images" (`core.text.count`), not "image(s)"."""
    assert [
        f"{place}: {text}" for path in SOURCES for place, text in texts(path) if re.search(r"[a-z]\(e?s\)", text)
    ] == []


@pytest.mark.parametrize(
    "module",
    [
        "cellwright",
        "cellwright.cli.app",
        "cellwright.core.masks",
        "cellwright.config.recipe",
        "cellwright.cli.evaluate_verb",
    ],
)
def test_light_imports_load_nothing_heavy(module: str) -> None:
    heavy = (
        "torch",
        "torchvision",
        "numba",
        "cv2",
        "scipy",
        "pandas",
        "matplotlib",
        "skimage",
        "shapely",
        "fastapi",
        "napari",
    )
    heavy += ("numpy",) if module == "cellwright.cli.app" else ()
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def tracked_files() -> list[str]:
    """The files in git; skips the test outside a checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_only_weights_are_large_files() -> None:
    large = [name for name in tracked_files() if (ROOT / name).stat().st_size > 1_000_000]
    assert [name for name in large if not name.endswith("weights.safetensors")] == []
    assert all((ROOT / name).stat().st_size < 6_000_000 for name in large)


def test_no_path_of_a_machine_and_no_host_in_the_tree() -> None:
    hosts = "pypi" + ".org", "files.python" + "hosted"
    for name in tracked_files():
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
        assert given & {"remedy", "expected", None}, (
            f"line {node.lineno}: {node.func.id} has neither remedy nor expected"
        )
