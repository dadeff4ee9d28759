"""Real data for tests that ask for it; they skip with a reason where it is absent."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from blank_charts import blank_charts

# The same examples in every run, so that a change is judged and not a draw: HYPOTHESIS_PROFILE=random draws new ones.
settings.register_profile("fixed", derandomize=True, database=None)
settings.register_profile("random", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Temporary folders are in memory where there is room: the tests write, rename and remove very many small files.
MEMORY, ROOM = Path("/dev/shm"), 4 << 30
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# What takes long starts first, or one process would run it at the end while the others wait; so does what forks very
# often, while the process is still small.
LONGEST = (
    "tests/reliability",
    "tests/serve/test_jobs.py",
    "tests/core/test_output_folder.py",
    "tests/prediction/test_folder_faults.py",
    "tests with forked workers",
    "tests of ONNX",
    "tests/cli/test_channels_and_ranges.py",
    "tests/models/rcnn/test_torchvision_parity.py",
    "tests/test_stories.py",
    "tests/test_submissions.py",
    "tests/training/test_resume.py",
    "tests/cli/test_evaluate_verb.py",
    "tests/cli/test_tile_jobs.py",
    "tests/cli/test_signals.py",
    # Few tests, so that xdist would begin them last.
    "tests/training/test_team.py",
    "tests/api/test_train_devices.py",
    "tests/test_integrations.py",
    "tests/plugin_napari/test_napari.py",
    "tests/test_small_install.py",
)
# Files that one process runs, as they share what takes long to make or to import: the workshop, a server of forks, and
# PyTorch's exporter.
TOGETHER = {
    "tests/reliability": ("tests/reliability/",),
    "tests with forked workers": (
        "tests/cli/test_tile_jobs_dask.py", "tests/cli/test_many_images.py", "tests/prediction/test_runners.py",
    ),
    "tests of ONNX": (
        "tests/models/export/test_onnx.py", "tests/models/export/test_export_rcnn.py",
        "tests/models/dense/test_encoders.py", "tests/cli/test_export_model.py",
    ),
}  # fmt: skip

# Processes that tests start find compiled modules, and do not compile all of cellwright again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

REPOSITORY = Path(__file__).parents[1]
UNPACKED = REPOSITORY / ".cache" / "real"


def _rank(file: str) -> int:
    """The lower, the earlier a file is run; see `LONGEST`."""
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


def _shared() -> Path:
    """The folder of real data and reference vectors: ``CELLWRIGHT_DATA``, else ``../shared``."""
    given = os.environ.get("CELLWRIGHT_DATA")
    return Path(given) if given else REPOSITORY.parent / "shared"


def _unpack(name: str) -> Path:
    """``.cache/real/<name>``, unpacked from ``data/<name>.tar.xz`` the first time it is asked for."""
    folder = UNPACKED / name
    if folder.is_dir():
        return folder
    archive = _shared() / "data" / f"{name}.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not there: set CELLWRIGHT_DATA to the folder that holds data/")
    temporary = UNPACKED / f".{name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        # Of 31,000 files; `tarfile` takes more than twice as long.
        subprocess.run(["tar", "-xf", archive, "-C", temporary], check=True)
        (temporary / name).rename(folder)
    except OSError:
        if not folder.is_dir():  # else another test process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """What the tests import is a million objects, which the garbage collector would look through again and again."""
    gc.disable()
    yield
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_finish() -> None:
    """If `torch.export` ran before the first backward pass of a process, no process forked from it could train."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.ones(1, requires_grad=True).sum().backward()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Like ``--dist loadfile``, with the longest files first, and files of `TOGETHER` in one process."""
    from xdist.scheduler import LoadFileScheduling

    class LongestFirst(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((unit for unit, files in TOGETHER.items() if file.startswith(files)), file)

        def _assign_work_unit(self, node: object) -> None:
            first = min(self.workqueue, key=_rank)
            self.workqueue.move_to_end(first, last=False)
            super()._assign_work_unit(node)

    return LongestFirst(config, log)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> None:
    """A test cannot see whether a file is on the disk already, and waiting for it takes milliseconds per file."""
    os.fsync = lambda descriptor: None


@pytest.fixture(autouse=True, scope="session")
def options_are_resolved_once() -> None:
    """The annotations of the options, which are the same in each of the commands that one process runs."""
    import pydantic
    from cyclopts import field_info

    field_info.get_type_hints = functools.cache(field_info.get_type_hints)
    plain, cached = pydantic.TypeAdapter, functools.cache(pydantic.TypeAdapter)

    class Adapter(plain):
        def __new__(cls, annotation: Any, **options: Any) -> Any:
            try:
                return cached(annotation, **options)
            except TypeError:  # it cannot be hashed
                return plain(annotation, **options)

    pydantic.TypeAdapter = Adapter


@pytest.fixture(autouse=True, scope="session")
def charts() -> dict[str, Callable[..., object]]:
    """Charts stay blank; returns how they are drawn. See `real_charts`."""
    return blank_charts()


@pytest.fixture
def real_charts(charts: dict[str, Callable[..., object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are drawn, for tests of what they show."""
    for name, draw in charts.items():
        monkeypatch.setattr(name, draw)


@pytest.fixture(autouse=True, scope="session")
def no_closing_evaluation() -> Callable[..., object]:
    """Trainings end without the evaluation for their report; returns what it is. See `closing_evaluation`."""
    from cellwright.api import train

    close, train._close = train._close, lambda *arguments: None
    return close


@pytest.fixture
def closing_evaluation(no_closing_evaluation: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings end with the evaluation for their report."""
    monkeypatch.setattr("cellwright.api.train._close", no_closing_evaluation)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of `workers` and of Dask are forked off one that has imported what they need; they are else the same.

    A spawned process takes seconds to import it.
    """
    if sys.platform == "win32":
        return  # they are spawned, as always
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "cellwright.api.predict", "cellwright.report.overview", "distributed"])
    monkeypatch.setattr("cellwright.prediction.runners.multiprocessing.get_context", lambda method: context)


@pytest.fixture(scope="session")
def vrdl_root() -> Path:
    """The VRDL nuclei set: ``train/<id>/{images,masks}``, ``test/*.png``, ``test_img_ids.json``. Read only."""
    return _unpack("vrdl_nuclei")


@pytest.fixture(scope="session")
def dsb_root() -> Path:
    """The Data Science Bowl 2018 training set: ``<id>/{images,masks}``. Read only."""
    return _unpack("dsb2018_stage1_train")


@pytest.fixture(scope="session")
def readers_root() -> Path:
    """Files of other tools (OME-TIFF, OME-XML, ROIs, GeoJSON, slides); its README has a row for each. Read only."""
    return _unpack("readers")


@pytest.fixture(scope="session")
def samples_root() -> Path:
    """Zipped samples of other formats (``nycu2025_sample.zip``, ``monuseg_xml.zip``). Read only."""
    folder = _shared() / "data" / "samples"
    if not folder.is_dir():
        pytest.skip("data/samples is not there: set CELLWRIGHT_DATA to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def fixtures_root() -> Path:
    """Reference vectors, one folder a model; each has a README. Read only."""
    folder = _shared() / "fixtures"
    if not folder.is_dir():
        pytest.skip("fixtures/ is not there: set CELLWRIGHT_DATA to the folder that holds it")
    return folder
