"""Training on several devices from a terminal: torchrun, and Ctrl-C, which reaches every process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.data.synthetic import write_demo_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="not tried there"),
]

CELLWRIGHT = (sys.executable, "-m", "cellwright")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SMALL = (
    *("train.warmup=null", "train.batch_size=2", "train.threads=1", "augment.crop_px=64"),
    *("model.backbone.width=8", "model.backbone.norm=group_norm", "model.fpn.channels=16"),
)


def words_of(data: Path, out: Path, n_steps: int) -> list[str]:
    sets = [f"--set={change}" for change in (*SMALL, f"train.length={n_steps} steps")]
    return ["train", "synthetic/demo", "--data", str(data), "--out", str(out), "--device", "cpu", *sets]


def write_data(folder: Path) -> Path:
    drawn = write_demo_dataset(folder / "drawn", splits=(("train", 3), ("val", 1)), image_hw=(64, 80), n_objects=5)
    FORMATS["coco"].write(drawn, folder, WriteOptions())
    return folder


def processes_of(session: int) -> list[str]:
    """The commands of the running processes of a session, apart from those nobody has waited for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(path.with_name("cmdline").read_text().replace("\0", " "))
    return found


def test_torchrun_gives_the_run_of_devices(tmp_path: Path) -> None:
    data, logs = write_data(tmp_path / "data"), []
    for name, start in (("torchrun", [*TORCHRUN, "-m", "cellwright"]), ("devices", CELLWRIGHT)):
        extra = ["--devices", "2"] if name == "devices" else []
        command = [*start, *words_of(data, tmp_path / name, 2), *extra]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("will write") == 1  # rank 0 alone speaks
        with (tmp_path / name / "log.csv").open() as file:
            header, *rows = [line.strip().split(",") for line in file]
        logs.append([[value for key, value in zip(header, row, strict=True) if "loss" in key] for row in rows])
    assert len(logs[0]) == 2
    assert logs[0] == logs[1]
    for name in ("weights.safetensors", "model.json"):
        assert (tmp_path / "torchrun" / "model" / name).read_bytes() == (
            tmp_path / "devices" / "model" / name
        ).read_bytes()


@pytest.mark.parametrize("start", [CELLWRIGHT, (*TORCHRUN, "-m", "cellwright")], ids=["devices", "torchrun"])
def test_ctrl_c_saves_the_step_and_ends_every_process(start: tuple[str, ...], tmp_path: Path) -> None:
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    words = words_of(data, run, 5000)
    words += ["--devices", "2"] if start == CELLWRIGHT else []
    text = (tmp_path / "err.txt").open("w+")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
    process = subprocess.Popen(
        [*start, *words],
        stderr=text,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 240
    while not (run / "log.csv").exists() or (run / "log.csv").read_text().count("\n") < 3:
        assert process.poll() is None, (tmp_path / "err.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(timeout=120)
    said = (tmp_path / "err.txt").read_text()
    text.close()
    if start == CELLWRIGHT:
        assert code == 130, said
        assert "Traceback" not in said
    assert said.count("interrupted") == 1, said
    assert "to resume, run again" in said
    while left := processes_of(process.pid):
        assert time.monotonic() < deadline + 60, left
        time.sleep(0.1)
    (checkpoint,) = sorted((run / "checkpoints").iterdir())[-1:]
    step = int(re.sub(r"\D", "", checkpoint.name))
    assert (run / "log.csv").read_text().count("\n") == 1 + step
