"""The training loop, top to bottom.

A run is a sequence of steps; each is a pure function of the state before it and of its number. That is why a run that
is killed goes on from its last checkpoint and ends in the same bits as one that was left alone.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import nn

from cellwright.config.training import TrainConfig
from cellwright.core.errors import RecipeError, did_you_mean
from cellwright.core.files import write_json, write_text
from cellwright.models.contract import Network
from cellwright.ops.batch import Batch
from cellwright.training.best import count_patience, is_better, is_out_of_patience
from cellwright.training.environment import peak_memory_mb, reproducible
from cellwright.training.interrupt import Interruption, interruptible
from cellwright.training.log import StepLog
from cellwright.training.optimiser import build_optimiser
from cellwright.training.reporter import Pace, Reporter, SilentReporter, StepReport
from cellwright.training.run_folder import SCHEMA_VERSION, RunFolder
from cellwright.training.schedule import Timeline, learning_rate
from cellwright.training.state import (
    Position,
    TrainState,
    check_finite,
    finite_or_none,
    initial_average,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from cellwright.training.step import StepOutcome, diverged, take_step
from cellwright.training.tensorboard import TensorBoardMirror, check_tensorboard


class Loader(Protocol):
    """Where batches come from: a batch depends on its number alone."""

    @property
    def n_samples(self) -> int: ...

    def batches(self, first: int, total: int, /) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Hooks:
    """What the loop is handed, because its house does not import it.

    Attributes:
        evaluate: scores the network (in eval mode; with the averaged weights where ``ema_decay`` is set) by metric
            name; None: nothing to evaluate on, and the last weights are the best.
        save_model: writes the network, as given, and the metrics as the run's best model, atomically.
        reporter: shows progress.
        headline: the metrics that it shows; empty: all.
    """

    save_model: Callable[[Network, dict[str, float]], None]
    evaluate: Callable[[Network], dict[str, float]] | None = None
    reporter: Reporter = field(default_factory=SilentReporter)
    headline: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainResult:
    """How a call to `train` ended. ``finished`` is False where ``max_minutes`` ended it before the run's own end."""

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
    timeline: Timeline
    log: StepLog
    interruption: Interruption


def check(network: Network, loader: Loader, config: TrainConfig, *, evaluates: bool, device: torch.device) -> None:
    """Raise the `RecipeError` that `train` would, before anything is written: the recipe does not fit the device, the
    network, the number of images, or the want of an evaluation."""
    assert isinstance(network, nn.Module)
    Timeline.of(config, loader.n_samples)
    if config.patience is not None and not evaluates:
        remedy = "add a validation split, or set train.patience to null"
        raise RecipeError("stopping early needs an evaluation", where="train.patience", remedy=remedy)
    if config.precision == "fp16" and device.type != "cuda":
        remedy = "choose bf16 or float32, or train with --device cuda:0"
        raise RecipeError("fp16 needs CUDA", where="train.precision", got=f"device {device}", remedy=remedy)
    if config.compile and not isinstance(getattr(network, "backbone", None), nn.Module):
        raise RecipeError("this network has no backbone", where="train.compile", remedy="set it to false")
    build_optimiser(network, config)
    if config.tensorboard:
        check_tensorboard()


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
            ``config.max_gradient_norm``. The log ends with that step; no weight is written, the last checkpoint is
            sound.
        RecipeError: the recipe does not fit the device, the network, or the want of an evaluation.
        KeyboardInterrupt: after SIGINT or SIGTERM; a checkpoint of the last whole step has been saved (a second
            signal does not wait for it).
        OutputError, FormatError, InputError: the run folder, a checkpoint or a sample is at fault.
    """
    device = torch.device(device)
    assert isinstance(network, nn.Module)
    check(network, loader, config, evaluates=hooks.evaluate is not None, device=device)
    timeline = Timeline.of(config, loader.n_samples)
    state = _initial_state(network.to(device), config)
    if (checkpoint := newest_checkpoint(run.checkpoints)) is not None:
        load_checkpoint(checkpoint, state)
    first = state.position.step
    with (
        reproducible(state.position.threads, deterministic=config.deterministic and device.type == "cpu"),
        StepLog(run.log, first, TensorBoardMirror(run.tensorboard, first) if config.tensorboard else None) as log,
        hooks.reporter,
        interruptible() as interruption,
    ):
        if checkpoint is not None:
            hooks.reporter.note(f"going on from step {first} ({checkpoint.name})")
        job = _Job(config, run, hooks, device, timeline, log, interruption)
        try:
            _run_steps(state, loader, job, max_minutes)
        except KeyboardInterrupt:
            if not interruption.hurried:
                log.flush()
                save_checkpoint(run.checkpoints, state, config.keep_checkpoints)
            raise
    position, total_steps = state.position, timeline.total_steps
    stopped_early = is_out_of_patience(position, config)
    finished = position.step >= total_steps or stopped_early
    if finished:
        reason = f"; nothing better than step {position.best_step}" if position.step < total_steps else ""
        write_text(run.done, f"{position.step} of {total_steps} steps{reason}\n")
    best = position.best_metrics
    return TrainResult(position.step, total_steps, finished, position.metrics, position.best_step, best)


def _run_steps(state: TrainState, loader: Loader, job: _Job, max_minutes: float | None) -> None:
    """Steps, and between them what is due: evaluation first, so that a checkpoint knows its outcome."""
    config, position, timeline = job.config, state.position, job.timeline
    deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
    # A step takes ``accumulate`` batches, so they are numbered that much faster.
    batches = loader.batches(position.step * config.accumulate, timeline.total_steps * config.accumulate)
    pace, first = Pace(), position.step
    while True:
        # Each call takes a step at least, so that calls of whatever length come to an end.
        out_of_time = position.step > first and time.monotonic() >= deadline
        last = position.step >= timeline.total_steps or out_of_time
        due = timeline.is_due(position.step, config.evaluate_every)
        if last or due:
            _evaluate_and_keep_best(state, job, due=due)
        last = last or is_out_of_patience(position, config)
        if last or timeline.is_due(position.step, config.checkpoint_every):
            job.log.flush()
            save_checkpoint(job.run.checkpoints, state, config.keep_checkpoints)
        if last:
            return
        started = time.perf_counter()
        with job.interruption.allowed():
            parts = [batch.to(job.device) for batch in itertools.islice(batches, config.accumulate)]
        data_s = time.perf_counter() - started
        outcome = take_step(state, parts, config, learning_rate(config, position.step, timeline))
        step_s = time.perf_counter() - started
        _record(outcome, sum(map(len, parts)), data_s, step_s, pace.after(step_s), job)
        if outcome.problem is not None:
            raise diverged(outcome, config)


def _evaluate_and_keep_best(state: TrainState, job: _Job, *, due: bool) -> None:
    """Evaluate, log, and save the model if it is the best so far; without an evaluation, the newest is the best.

    Only an evaluation that was ``due`` counts for early stopping.
    """
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
        if metrics and due:
            count_patience(position, name, metrics[name])
        if not metrics or is_better(name, metrics[name], position.best_metrics.get(name)):
            hooks.save_model(network, metrics)
            position.best_step, position.best_metrics = position.step, metrics
    position.evaluated_step, position.metrics = position.step, metrics
    if metrics:
        job.log.add({"evaluate_s": round(time.perf_counter() - started, 3), **metrics})
        shown = {key: metrics[key] for key in hooks.headline or metrics if key in metrics}
        hooks.reporter.note(f"step {position.step}: " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
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
    eta_s = (job.timeline.total_steps - outcome.step) / pace
    job.hooks.reporter.step(
        StepReport(
            step=outcome.step,
            total_steps=job.timeline.total_steps,
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
    if config.compile:
        cast(nn.Module, network.backbone).compile()  # in place: the names of its tensors stay
    network.train()
    return TrainState(
        network,
        build_optimiser(network, config),
        Position(threads=config.threads or torch.get_num_threads()),
        averaged=None if config.ema_decay is None else initial_average(network),
        scaler=torch.amp.GradScaler("cuda") if config.precision == "fp16" else None,
    )
