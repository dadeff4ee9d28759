"""A run that is killed and started again ends in the same bits as one that was left alone."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import draw_samples, long_config, tiny_config, tiny_train, weight_sum

from cellwright.config.input import DataConfig

PROGRAM = Path(__file__).with_name("tiny_run.py")
STEPS = 90


def bits(run: Path) -> dict[str, bytes]:
    """Every file whose content must not depend on interruptions."""
    newest = max((run / "checkpoints").iterdir())
    files = [*newest.iterdir(), run / "metrics.json", run / "model" / "weights.safetensors"]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def losses(run: Path) -> list[tuple[str, ...]]:
    """Step, losses and metrics of every row; times differ from run to run."""
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [tuple(row[name] for name in ("step", "lr", "loss", "gradient_norm", "score")) for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of ``STEPS`` that nobody disturbs, and its data."""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_config(length=f"{STEPS} steps", ema_decay=0.9)
    tiny_train(folder / "run", draw_samples(folder / "data"), config)
    return folder / "run", folder / "data"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_kill_and_run_again_with_loading_processes(tmp_path: Path, whole: tuple[Path, Path]) -> None:
    (expected, data), workers, kill_after = whole, 2, 29
    run = tmp_path / "run"
    command = [sys.executable, str(PROGRAM), str(run), str(data), str(workers), str(STEPS)]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    # The moment is not exact, and need not be: any moment will do.
    until(lambda: (run / "log.csv").exists() and (run / "log.csv").read_text().count("\n") > kill_after, killed)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert killed.stderr is not None
    killed.stderr.close()
    assert not (run / "DONE").exists()
    again = tiny_train(
        run, draw_samples(data), tiny_config(length=f"{STEPS} steps", ema_decay=0.9), data=DataConfig(workers=workers)
    )
    assert again.finished
    assert bits(run) == bits(expected)
    assert losses(run) == losses(expected)
    assert [int(row[0]) for row in losses(run)] == list(range(1, STEPS + 1))


def until(condition, process: subprocess.Popen[bytes]) -> None:
    """Wait for ``condition()``, which ``process`` brings about."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("kills", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_ten_kills_at_random_points_of_two_hundred_steps(tmp_path: Path, kills: int) -> None:
    """With accumulation, Adam, averaging and patience; a kill may hit a step, an evaluation, a checkpoint's write."""
    tiny_train(tmp_path / "whole", draw_samples(tmp_path / "data"), long_config())
    command = [sys.executable, str(PROGRAM), str(tmp_path / "run"), str(tmp_path / "data"), str(kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    ends = [line.rpartition(" ")[2] for line in done.stdout.splitlines()]
    assert ends == [str(int(signal.SIGKILL))] * kills + ["0"], done.stdout + done.stderr
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert [int(row[0]) for row in losses(tmp_path / "run")] == list(range(1, 201))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "sgd"},
        {"optimiser": "adamw", "accumulate": 3},
        {"optimiser": "adam", "precision": "bf16", "patience": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("stop_at", [1, 4, 6, 11])
def test_ctrl_c_at_any_step_and_during_evaluation(tmp_path: Path, changes: dict[str, object], stop_at: int) -> None:
    samples = draw_samples(tmp_path / "data")
    config = tiny_config(lr=0.01, **changes)
    tiny_train(tmp_path / "whole", samples, config)
    during_evaluation = stop_at == 6

    class PressCtrlC:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def note(self, text: str) -> None: ...

        def step(self, report) -> None:
            if report.step == stop_at and not during_evaluation:
                signal.raise_signal(signal.SIGINT)

    def evaluate(network):
        if during_evaluation:
            signal.raise_signal(signal.SIGINT)
        return weight_sum(network)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tiny_train(tmp_path / "run", samples, config, reporter=PressCtrlC(), evaluate=evaluate)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "run" / "checkpoints" / f"step_{stop_at:08d}").is_dir()
    tiny_train(tmp_path / "run", samples, config)
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_second_ctrl_c_does_not_wait_and_saves_nothing(tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "data")

    def evaluate(network):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny_train(tmp_path / "run", samples, tiny_config(), evaluate=evaluate)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000004"]


def test_max_minutes_ends_a_call_and_the_next_goes_on(tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "data")
    tiny_train(tmp_path / "whole", samples, tiny_config())
    first = tiny_train(tmp_path / "run", samples, tiny_config(), max_minutes=1e-9)
    assert (first.step, first.total_steps, first.finished) == (1, 12, False)
    assert first.metrics["score"] > 0
    assert not (tmp_path / "run" / "DONE").exists()
    second = tiny_train(tmp_path / "run", samples, tiny_config(), max_minutes=10)
    assert second.finished
    assert (tmp_path / "run" / "DONE").read_text() == "12 of 12 steps\n"
    newest = "checkpoints/step_00000012/weights.safetensors"
    assert (tmp_path / "run" / newest).read_bytes() == (tmp_path / "whole" / newest).read_bytes()


def test_the_last_checkpoint_alone_is_enough_to_finish(tmp_path: Path) -> None:
    """A kill between the last checkpoint and DONE."""
    samples = draw_samples(tmp_path / "data")
    tiny_train(tmp_path / "run", samples, tiny_config())
    expected = bits(tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    assert tiny_train(tmp_path / "run", samples, tiny_config()).finished
    assert bits(tmp_path / "run") == expected
