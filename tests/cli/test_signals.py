"""A signal ends a command with one message and the line that resumes it, at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drawn import TINY, draw_mask_folder, run

from cellwright.__main__ import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGHUP")
DURING_AN_IMPORT = """
import signal, sys
_, module, number, *words = sys.argv
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            signal.raise_signal(int(number))
sys.meta_path.insert(0, Finder())
from cellwright.__main__ import main
sys.argv = ["cellwright", *words]
main()
"""
AS_ANOTHER_ERROR = """
import signal, sys
import cellwright.api.recipes
def plain_recipes(*_):
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException as error:
        raise ImportError("numpy failed to import") from error
cellwright.api.recipes.tables = plain_recipes
from cellwright.__main__ import main
sys.argv = ["cellwright", "recipes", "list"]
main()
"""


@pytest.mark.parametrize(
    ("module", "number"), [("cyclopts", signal.SIGINT), ("yaml", signal.SIGTERM), ("pydantic", signal.SIGHUP)]
)
def test_during_imports(module: str, number: signal.Signals) -> None:
    words = ["recipes", "list", "--log-format", "json"]
    command = [sys.executable, "-c", DURING_AN_IMPORT, module, str(int(number)), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, "")
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["text"].endswith("run again: cellwright recipes list --log-format json")
    assert (line["kind"], line["signal"], line["exit_code"]) == ("interrupted", number.name, 128 + number)


def test_a_library_that_turns_a_signal_into_another_error() -> None:
    done = subprocess.run([sys.executable, "-c", AS_ANOTHER_ERROR], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr == "\ninterrupted by SIGTERM; to resume, run again: cellwright recipes list\n"


def start(words: list[str], printed: Path) -> int:
    """Run ``cellwright words...`` in a process group of its own, forked since imports take seconds; the process id."""
    child = os.fork()
    if child == 0:
        code: object = 70
        try:
            os.setsid()
            with printed.open("w") as sys.stderr:
                sys.argv = ["cellwright", *words]
                main()
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code if isinstance(code, int) else 0 if code is None else 1)
    return child


def test_sigterm_to_training_and_its_loading_processes(tmp_path: Path) -> None:
    draw_mask_folder(tmp_path / "raw", 1)
    assert run("data", "convert", tmp_path / "raw", "--out", tmp_path / "data", "--quiet") == 0
    words = ["train", "synthetic/demo", "--data", tmp_path / "data", "--out", tmp_path / "run", "--device", "cpu"]
    more = ["--set=train.length=500 steps", "--set=data.workers=1", "--set=train.checkpoint_every=1000 steps"]
    training = start([*map(str, words), *TINY, *more], tmp_path / "printed.txt")
    while not (tmp_path / "run" / "log.csv").is_file() or len((tmp_path / "run" / "log.csv").read_text()) < 200:
        assert os.waitpid(training, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    os.killpg(training, signal.SIGTERM)
    _, status = os.waitpid(training, 0)
    assert os.waitstatus_to_exitcode(status) == 143
    text = (tmp_path / "printed.txt").read_text()
    assert text.splitlines()[-1].startswith("interrupted by SIGTERM; to resume, run again: cellwright train")
    assert "Traceback" not in text, text
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
