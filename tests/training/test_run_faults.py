"""A run that is killed at a file operation, or whose files become empty, ends in the same bytes or with one error."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from tiny_run import draw_samples, tiny_config, tiny_train

from cellwright.core.dataset import Sample
from cellwright.core.errors import CellwrightError
from cellwright.training.run_folder import RunFolder
from cellwright.training.run_output import files_of

CONFIG = {
    "length": "6 steps",
    "warmup": "1 step",
    "evaluate_every": "2 steps",
    "checkpoint_every": "1 step",
    "ema_decay": 0.9,
}
NOT_COMPARED = ("log.csv", "environment.json")
OPERATIONS = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def result(run: Path) -> dict[str, bytes]:
    """All files of a run, without times and machines."""
    return {name: (run / name).read_bytes() for name in files_of(RunFolder(run)) if name not in NOT_COMPARED}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_samples(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert tiny_train(run, samples, tiny_config(**CONFIG)).finished
    return result(run)


def test_files_that_a_power_cut_emptied(tmp_path: Path, samples: list[Sample], finished: dict[str, bytes]) -> None:
    original, outcomes = tmp_path / "original", {}
    config = tiny_config(**CONFIG)

    class StopAfter:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def note(self, text: str, event: str = "note", fields: object = None) -> None: ...

        def step(self, report) -> None:
            if report.step == 5:
                raise SystemExit

    with pytest.raises(SystemExit):
        tiny_train(original, samples, config, reporter=StopAfter())  # type: ignore[arg-type]
    for path in sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file()):
        run = tmp_path / "run"
        shutil.copytree(original, run)
        (run / path).write_bytes(b"")
        try:
            assert tiny_train(run, samples, config).finished
            assert result(run) == finished, path
            outcomes[path.as_posix()] = "same"
        except CellwrightError as error:
            assert error.remedy
            outcomes[path.as_posix()] = "error"
        shutil.rmtree(run)
    assert len(outcomes) > 20
    assert [name for name, outcome in outcomes.items() if outcome == "error"] == [".cellwright/claim.json"]


@pytest.mark.slow  # in every run, tests/reliability/test_kills.py kills the command at some of these operations
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("overwrite", [False, True])
def test_kills_at_file_operations(
    tmp_path: Path, samples: list[Sample], finished: dict[str, bytes], overwrite: bool
) -> None:
    config, old = tiny_config(**CONFIG), tmp_path / "old"
    if overwrite:
        tiny_train(old, samples, tiny_config(**{**CONFIG, "length": "2 steps", "seed": 5}))

    def in_child(run: Path, last: int) -> tuple[int, int]:
        """Train in a child process that is killed before operation ``last``; its status, and the operations done."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            done = 0

            def hook(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal done
                if event in OPERATIONS and str(tmp_path) in str(arguments):
                    done += 1
                    if done == last:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            tiny_train(run, samples, config, overwrite=overwrite)
            os.write(writer, str(done).encode())
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reader) as file:
            return status, int(file.read() or 0)

    def start(name: str) -> Path:
        run = tmp_path / name
        if overwrite:
            shutil.copytree(old, run)
        return run

    status, n = in_child(start("whole"), 0)
    assert (status, result(tmp_path / "whole")) == (0, finished)
    assert n > 20
    for k in range(6):
        run = start(f"run{k}")
        status, _ = in_child(run, 1 + round(k * (n - 1) / 5))
        assert status == signal.SIGKILL
        assert in_child(run, 0)[0] == 0
        assert result(run) == finished, k
        left = [path.name for path in run.rglob("*") if "partial" in path.name]
        assert left == []
        assert {path.name for path in (run / ".cellwright").iterdir()} <= {"claim.json", "lock"}
