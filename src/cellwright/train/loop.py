"""The training loop, top to bottom.

A run is a sequence of steps; each is a pure function of the state before it and of its number. That is why a run that
is killed goes on from its last checkpoint and ends in the same bits as one that was left alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import nn

from cellwright.config.train_schema import TrainConfig
from cellwright.core.errors import RecipeError, did_you_mean
from cellwright.core.files import write_json, write_text
from cellwright.models.contract import Network
from cellwright.ops.batch import Batch
from cellwright.train.environment import peak_memory_mb, reproducible
from cellwright.train.interrupt import Interruption, interruptible
from cellwright.train.log import StepLog
from cellwright.train.optimiser import build_optimiser
from cellwright.train.reporter import Reporter, SilentReporter, StepReport
from cellwright.train.run_folder import SCHEMA_VERSION, RunFolder
from cellwright.train.state import (
    Position,
    TrainState,
    check_finite,
    finite_or_none,
    initial_average,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from cellwright.train.step import StepOutcome, take_step


class Loader(Protocol):
    """Where batches come from: the batch of a step depends on its number alone."""

    @property
    def n_samples(self) -> int: ...

    def batches(self, first_step: int, total_steps: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Hooks:
    """What the loop is handed, because its house does not import it.

    Attributes:
        evaluate: scores the network (in eval mode; with the averaged weights where ``ema_decay`` is set) by metric
            name; None: nothing to evaluate on, and the last weights are the best.
        save_model: writes the network, as given, and the metrics as the run's best model, atomically.
        reporter: shows progress.
    """

    save_model: Callable[[Network, dict[str, float]], None]
    evaluate: Callable[[Network], dict[str, float]] | None = None
    reporter: Reporter = field(default_factory=SilentReporter)


@dataclass(frozen=True)
class TrainResult:
    """How a call to `train` ended. ``finished`` is False where ``max_minutes`` ended it before ``total_steps``."""

    step: int
    total_steps: int
    finished: bool
    metrics: dict[str, float]
    best_step: int
    best_metrics: dict[str, float]


@dataclass(frozen=True)
class _Job:
    """What stays the same throughout one call."""

    config: TrainConfig
    run: RunFolder
    hooks: Hooks
    device: torch.device
    total_steps: int
    log: StepLog
    interruption: Interruption


def train(
    network: Network,
    loader: Loader,
    config: TrainConfig,
    run: RunFolder,
    hooks: Hooks,
    *,
    device: torch.device | str = "cpu",
    max_minutes: float | None = None,
) -> TrainResult:
    """Train ``network`` (changed in place), going on from the newest checkpoint of ``run`` if there is one.

    Args:
        network: the initial weights; a resumed run replaces them.
        loader: batches for any step.
        config: optimiser, schedule, and how often to save and evaluate.
        run: an opened run folder; log.csv, metrics.json, checkpoints and, at the end, DONE are written there.
        hooks: evaluation, saving and progress.
        device: where to train.
        max_minutes: end this call (with evaluation and checkpoint) after the step during which they pass; calling
            again goes on. The schedule does not shrink to fit. The extra evaluation may find a new best model.

    Raises:
        TrainingDiverged: a loss, gradient or weight is not finite, or the gradient exceeds
            ``config.max_gradient_norm``. Nothing is written; the last checkpoint is sound.
        KeyboardInterrupt: after SIGINT or SIGTERM; a checkpoint of the last whole step has been saved (a second
            signal does not wait for it).
        OutputError, FormatError, InputError: the run folder, a checkpoint or a sample is at fault.
    """
    device = torch.device(device)
    assert isinstance(network, nn.Module)
    total_steps = config.total_steps(loader.n_samples)
    state = _initial_state(network.to(device), config)
    if (checkpoint := newest_checkpoint(run.checkpoints)) is not None:
        load_checkpoint(checkpoint, state)
    with (
        reproducible(state.position.threads, deterministic=config.deterministic and device.type == "cpu"),
        StepLog(run.log, state.position.step) as log,
        hooks.reporter,
        interruptible() as interruption,
    ):
        if checkpoint is not None:
            hooks.reporter.note(f"going on from step {state.position.step} ({checkpoint.name})")
        job = _Job(config, run, hooks, device, total_steps, log, interruption)
        try:
            _run_steps(state, loader, job, max_minutes)
        except KeyboardInterrupt:
            if not interruption.hurried:
                log.flush()
                save_checkpoint(run.checkpoints, state, config.keep_checkpoints)
            raise
    position = state.position
    finished = position.step >= total_steps
    if finished:
        write_text(run.done, f"{position.step} of {total_steps} steps\n")
    best = position.best_metrics
    return TrainResult(position.step, total_steps, finished, position.metrics, position.best_step, best)


def _run_steps(state: TrainState, loader: Loader, job: _Job, max_minutes: float | None) -> None:
    """Steps, and between them what is due: evaluation first, so that a checkpoint knows its outcome."""
    config, position = job.config, state.position
    deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
    batches = loader.batches(position.step, job.total_steps)
    pace = _Pace()
    while True:
        last = position.step >= job.total_steps or (position.step > 0 and time.monotonic() >= deadline)
        if last or _is_due(position.step, config.evaluate_every_steps):
            _evaluate_and_keep_best(state, job)
        if last or _is_due(position.step, config.checkpoint_every_steps):
            job.log.flush()
            save_checkpoint(job.run.checkpoints, state, config.keep_checkpoints)
        if last:
            return
        started = time.perf_counter()
        with job.interruption.allowed():
            batch = next(batches).to(job.device)
        data_s = time.perf_counter() - started
        outcome = take_step(state, batch, config, job.total_steps)
        step_s = time.perf_counter() - started
        _record(outcome, len(batch), data_s, step_s, pace.after(step_s), job)


def _evaluate_and_keep_best(state: TrainState, job: _Job) -> None:
    """Evaluate, log, and save the model if it is the best so far; without an evaluation, the newest is the best."""
    position, hooks, name = state.position, job.hooks, job.config.best_metric
    if position.step in (0, position.evaluated_step):
        return
    check_finite(state.network, position.step)
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    with state.evaluated_weights() as weighted:
        network = cast(Network, weighted)
        if hooks.evaluate is not None:
            with job.interruption.allowed():
                metrics = hooks.evaluate(network)
        if hooks.evaluate is not None and name not in metrics:
            remedy = did_you_mean(name, metrics)
            raise RecipeError(
                "the metric that picks the best model does not exist",
                where="train.best_metric",
                got=name,
                remedy=remedy,
            )
        if not metrics or _is_better(metrics[name], position.best_metrics.get(name)):
            hooks.save_model(network, metrics)
            position.best_step, position.best_metrics = position.step, metrics
    position.evaluated_step, position.metrics = position.step, metrics
    if metrics:
        job.log.add({"evaluate_s": round(time.perf_counter() - started, 3), **metrics})
        hooks.reporter.note(f"step {position.step}: " + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
    write_json(job.run.metrics, _metrics_json(position, name))


def _metrics_json(position: Position, best_metric: str) -> dict[str, object]:
    best_metrics = finite_or_none(position.best_metrics)
    best = {"step": position.best_step, "chosen_by": best_metric, "metrics": best_metrics}
    return {
        "schema_version": SCHEMA_VERSION,
        "step": position.step,
        "metrics": finite_or_none(position.metrics),
        "best": best,
    }


def _is_better(value: float, best: float | None) -> bool:
    """Whether ``value`` beats ``best``; anything beats no value, and NaN beats nothing but that."""
    return best is None or math.isnan(best) or value > best


def _is_due(step: int, every_steps: int) -> bool:
    return step > 0 and step % every_steps == 0


class _Pace:
    """Steps a second, smoothed: each step moves the mean by a tenth, the first sets it."""

    def __init__(self) -> None:
        self._mean_s: float | None = None

    def after(self, step_s: float) -> float:
        """Steps a second after one more step of ``step_s`` seconds."""
        self._mean_s = step_s if self._mean_s is None else 0.9 * self._mean_s + 0.1 * step_s
        return 1 / max(self._mean_s, 1e-9)


def _record(outcome: StepOutcome, n_images: int, data_s: float, step_s: float, pace: float, job: _Job) -> None:
    memory = peak_memory_mb(job.device)
    job.log.step(
        outcome.step,
        {
            "lr": outcome.lr,
            "loss": outcome.loss,
            **{name if name.startswith("loss_") else f"loss_{name}": value for name, value in outcome.losses.items()},
            "gradient_norm": outcome.gradient_norm,
            "step_s": round(step_s, 4),
            "data_s": round(data_s, 4),
            "samples_per_s": round(n_images / max(step_s, 1e-9), 3),
            "peak_memory_mb": None if memory is None else round(memory, 1),
        },
    )
    eta_s = (job.total_steps - outcome.step) / pace
    job.hooks.reporter.step(
        StepReport(
            step=outcome.step,
            total_steps=job.total_steps,
            loss=outcome.loss,
            losses=outcome.losses,
            lr=outcome.lr,
            gradient_norm=outcome.gradient_norm,
            step_s=step_s,
            steps_per_s=pace,
            eta_s=eta_s,
        )
    )


def _initial_state(network: nn.Module, config: TrainConfig) -> TrainState:
    averaged = None if config.ema_decay is None else initial_average(network)
    network.train()
    position = Position(threads=config.threads or torch.get_num_threads())
    return TrainState(network, build_optimiser(network, config), position, averaged)
