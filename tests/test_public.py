"""The public names are pinned: a change here is a change for every user."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys

import pytest

import cellwright

PUBLIC = [
    "CellwrightError",
    "Dataset",
    "Format",
    "FormatError",
    "Image",
    "ImageSource",
    "InputError",
    "Instances",
    "Job",
    "MaskSet",
    "Model",
    "ModelError",
    "OutputError",
    "PlannedRecipe",
    "Prediction",
    "ReadOptions",
    "Reading",
    "RecipeError",
    "Report",
    "Run",
    "Sample",
    "Segmenter",
    "SoftMasks",
    "TrainingDiverged",
    "UsageError",
    "View",
    "WriteOptions",
    "evaluate",
    "fuse",
    "join_planes",
    "keep_freed_memory",
    "load_model",
    "measure",
    "open_image",
    "plan",
    "predict_folder",
    "predict_tiles",
    "read_dataset",
    "read_image",
    "read_instances",
    "save",
    "show",
    "train",
    "tune",
]


TYPES = [name for name in PUBLIC if inspect.isclass(getattr(cellwright, name))]
FUNCTIONS = [name for name in PUBLIC if name not in TYPES]
ERRORS = [name for name in TYPES if issubclass(getattr(cellwright, name), Exception)]


def test_the_public_names_are_these() -> None:
    assert cellwright.__all__ == PUBLIC
    assert set(PUBLIC) < set(dir(cellwright))
    with pytest.raises(AttributeError, match="no attribute 'predict_all'"):
        cellwright.predict_all  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    documentation = inspect.getdoc(getattr(cellwright, name)) or ""
    assert documentation
    assert name in ERRORS or ">>> " in documentation, f"{name} has no example"


@pytest.mark.parametrize("name", TYPES)
def test_types_show_their_public_name(name: str) -> None:
    """In tracebacks, reprs and help; and they can be pickled under it."""
    public_type = getattr(cellwright, name)
    assert public_type.__module__ == "cellwright"
    assert pickle.loads(pickle.dumps(public_type)) is public_type


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_name_public_types(name: str) -> None:
    """The types of cellwright in the signature of a public function are public, too."""
    annotations = inspect.get_annotations(getattr(cellwright, name))
    words = set(re.findall(r"[A-Za-z_]+", " ".join(map(str, annotations.values()))))
    imported = vars(sys.modules[getattr(cellwright, name).__module__])
    ours = {word for word in words if str(getattr(imported.get(word), "__module__", "")).startswith("cellwright.")}
    assert ours <= {"Recipe"}


def test_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", cellwright.__version__)


def test_the_command_line_loads_few_modules() -> None:
    """Counted, not timed: a timed test fails on a busy machine."""
    code = "import sys; from cellwright.cli.app import main; main(['--help'])"
    code = f"import atexit, sys; atexit.register(lambda: print(len(sys.modules))); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 800


def test_functions_named_like_packages_stay_functions() -> None:
    """Importing ``cellwright.training`` must not hide the function ``cellwright.train``."""
    import cellwright.evaluation.report as evaluation_report
    import cellwright.measurement.table as measurement_table
    import cellwright.training.loop as training_loop

    assert evaluation_report is not measurement_table is not training_loop
    assert all(callable(function) for function in (cellwright.train, cellwright.evaluate, cellwright.measure))
