"""A run that was interrupted and resumed ends bit-identical to a run that was never interrupted."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path

import pytest
from tiny_run import (
    draw_samples,
    forked,
    kill_again_and_again,
    long_config,
    n_lines,
    tiny_config,
    tiny_train,
    weight_sum,
)

from cellwright.config.input import DataConfig
from cellwright.core import interrupts

STEPS = 40


def bits(run: Path) -> dict[str, bytes]:
    """The content of every file that must not depend on interruptions."""
    newest = max((run / "checkpoints").iterdir())
    files = [*newest.rglob("*"), run / "metrics.json", *(run / "model").iterdir()]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if file.is_file()}


def losses(run: Path) -> list[tuple[str, ...]]:
    """Step, losses and metrics of every row, without times, which differ between runs."""
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [tuple(row[name] for name in ("step", "lr", "loss", "gradient_norm", "score")) for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An uninterrupted run of ``STEPS`` steps, and its data."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = tiny_config(length=f"{STEPS} steps", ema_decay=0.9)
    tiny_train(folder / "run", draw_samples(folder / "data"), config)
    return folder / "run", folder / "data"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_killed_run_with_loader_processes_resumes(tmp_path: Path, uninterrupted: tuple[Path, Path]) -> None:
    (expected, data), workers, kill_after = uninterrupted, 2, 15
    run, config = tmp_path / "run", tiny_config(length=f"{STEPS} steps", ema_decay=0.9)
    killed = forked(lambda: tiny_train(run, draw_samples(data), config, data=DataConfig(workers=workers)))
    # The exact moment does not matter.
    until = time.monotonic() + 60
    while n_lines(run / "log.csv") <= kill_after:
        assert os.waitpid(killed, os.WNOHANG) == (0, 0)
        assert time.monotonic() < until
        time.sleep(0.002)
    os.kill(killed, signal.SIGKILL)
    _, status = os.waitpid(killed, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert not (run / "DONE").exists()
    again = tiny_train(run, draw_samples(data), config, data=DataConfig(workers=workers))
    assert again.finished
    assert bits(run) == bits(expected)
    assert losses(run) == losses(expected)
    assert [int(row[0]) for row in losses(run)] == list(range(1, STEPS + 1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("kills", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_kills_at_random_points(tmp_path: Path, kills: int) -> None:
    """With accumulation, Adam, averaging and patience; a kill may hit a step, an evaluation or a checkpoint."""
    tiny_train(tmp_path / "uninterrupted", draw_samples(tmp_path / "data"), long_config())
    ends = kill_again_and_again(tmp_path / "run", tmp_path / "data", kills)
    assert ends == [-signal.SIGKILL] * kills + [0]
    assert bits(tmp_path / "run") == bits(tmp_path / "uninterrupted")
    assert losses(tmp_path / "run") == losses(tmp_path / "uninterrupted")
    assert [int(row[0]) for row in losses(tmp_path / "run")] == list(range(1, 101))


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
def test_ctrl_c_after_a_step_or_during_evaluation(tmp_path: Path, changes: dict[str, object], stop_at: int) -> None:
    samples = draw_samples(tmp_path / "data")
    config = tiny_config(lr=0.01, **changes)
    tiny_train(tmp_path / "uninterrupted", samples, config)
    during_evaluation = stop_at == 6

    class PressCtrlC:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def note(self, text: str, event: str = "note", fields: object = None) -> None: ...

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
    assert bits(tmp_path / "run") == bits(tmp_path / "uninterrupted")
    assert losses(tmp_path / "run") == losses(tmp_path / "uninterrupted")


def test_a_second_ctrl_c_stops_at_once_without_another_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_SAME_S", 0)  # else signals at the same time count as one
    samples = draw_samples(tmp_path / "data")

    def evaluate(network):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny_train(tmp_path / "run", samples, tiny_config(), evaluate=evaluate)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step_00000004",
        "step_00000006",  # saved before the evaluation
    ]


def test_what_ends_an_evaluation_loses_no_step(tmp_path: Path) -> None:
    """Compiled code turns the exception of a signal into a SystemError."""
    samples, config = draw_samples(tmp_path / "data"), tiny_config()
    tiny_train(tmp_path / "uninterrupted", samples, config)

    def evaluate(network):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise SystemError("a result with an exception set") from error

    with pytest.raises(interrupts.Interrupted, match="SIGTERM"):
        tiny_train(tmp_path / "run", samples, config, evaluate=evaluate)
    assert (tmp_path / "run" / "checkpoints" / "step_00000006").is_dir()
    assert tiny_train(tmp_path / "run", samples, config).finished
    assert bits(tmp_path / "run") == bits(tmp_path / "uninterrupted")


def test_max_minutes_ends_a_call_and_the_next_call_resumes(tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "data")
    tiny_train(tmp_path / "uninterrupted", samples, tiny_config())
    first = tiny_train(tmp_path / "run", samples, tiny_config(), max_minutes=1e-9)
    assert (first.step, first.total_steps, first.finished) == (1, 12, False)
    assert first.metrics["score"] > 0
    assert not (tmp_path / "run" / "DONE").exists()
    second = tiny_train(tmp_path / "run", samples, tiny_config(), max_minutes=10)
    assert second.finished
    assert (tmp_path / "run" / "DONE").read_text() == "12 of 12 steps\n"
    newest = "checkpoints/step_00000012/weights.safetensors"
    assert (tmp_path / "run" / newest).read_bytes() == (tmp_path / "uninterrupted" / newest).read_bytes()


def test_a_run_killed_after_its_last_checkpoint_finishes(tmp_path: Path) -> None:
    """The kill comes between the last checkpoint and DONE."""
    samples = draw_samples(tmp_path / "data")
    tiny_train(tmp_path / "run", samples, tiny_config())
    expected = bits(tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    assert tiny_train(tmp_path / "run", samples, tiny_config()).finished
    assert bits(tmp_path / "run") == expected
