"""The training loop: validate, save a checkpoint, take a step, until the end.

Every step is a pure function of the state before it and of its number. A run that was killed therefore resumes from
its last checkpoint and ends bit-identical to a run that was never interrupted.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from cellwright.config.training import TrainConfig
from cellwright.core.errors import InputError, RecipeError, did_you_mean
from cellwright.core.files import remove, temporary_path, write_text
from cellwright.core.interrupts import Interrupted
from cellwright.core.staging import check_way, identities_below
from cellwright.core.text import count
from cellwright.data.loader import WORKER_REMEDY, is_worker_failure
from cellwright.models.contract import Network
from cellwright.models.layers import share_batch_norm
from cellwright.models.weights.model_folder import MODEL_FILES, ModelInfo
from cellwright.models.weights.torch_io import save_model
from cellwright.ops.batch import Batch
from cellwright.training.checkpoint import Resumed, resume, save_checkpoint
from cellwright.training.distributed import Team
from cellwright.training.environment import Interruption, interruptible, reproducible
from cellwright.training.logging import (
    Recorder,
    Reporter,
    SilentReporter,
    StepLog,
    TensorBoardLog,
    check_tensorboard,
)
from cellwright.training.optimiser import build_optimiser
from cellwright.training.pace import Budget
from cellwright.training.run_folder import Best, RunFolder, write_metrics
from cellwright.training.schedule import Timeline, learning_rate
from cellwright.training.slow_steps import Setting, StepWatch
from cellwright.training.state import Position, TrainState, check_finite
from cellwright.training.step import diverged, take_step
from cellwright.training.validation import Validation, count_patience, is_better, is_out_of_patience


class Loader(Protocol):
    """The source of training batches. A batch depends on its number alone."""

    @property
    def n_samples(self) -> int: ...

    def batches(self, first: int, total: int, /) -> Iterator[Batch]: ...


@dataclass(frozen=True, eq=False)
class Training:
    """What to train, on what, and where to write it.

    Attributes:
        network: its weights are changed in place; a resumed run replaces the initial ones.
        loader: batches for any step.
        config: optimiser, schedule, and how often to save and evaluate.
        run: a run that was started; log.csv, metrics.json, checkpoints, the best model and finally DONE are written.
        info: the ``model.json`` of the best model, without its metrics.
        validation: the evaluation; None if there are no validation images, in which case the last model is the best.
        reporter: shows progress.
        device: where to train.
        n_closing: evaluations that follow within the time limit, after the one at the end of `train`.
        threads: CPU threads, in place of those of the checkpoint; None: as there, or as the recipe says.
        team: the processes that train together; this one is rank 0, and the others are in `follow`.
        verify: raises `OutputError` if the folder of the run is no longer there; called before anything is written.
    """

    network: Network
    loader: Loader
    config: TrainConfig
    run: RunFolder
    info: ModelInfo
    validation: Validation | None = None
    reporter: Reporter = field(default_factory=SilentReporter)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    n_closing: int = 0
    threads: int | None = None
    team: Team = field(default_factory=Team)
    verify: Callable[[], None] = lambda: None

    def save_checkpoint(self, state: TrainState) -> None:
        """Write a checkpoint with the best model so far."""
        self.verify()
        best = self.run.model if state.position.best_step >= 0 else None
        save_checkpoint(self.run.checkpoints, state, self.config.keep_checkpoints, best)


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended; ``finished`` is False if ``max_minutes`` ended it before the end of the run."""

    step: int
    total_steps: int
    finished: bool
    metrics: dict[str, float]
    best_step: int
    best_metrics: dict[str, float]


def check(training: Training) -> None:
    """Raise the `RecipeError` that `train` would raise before its first step; nothing is written.

    The recipe may not fit the device, the network, the number of images, or the lack of validation images.
    """
    config, network, device = training.config, training.network, training.device
    assert isinstance(network, nn.Module)
    Timeline.of(config, training.loader.n_samples)
    if config.patience is not None and training.validation is None:
        remedy = "add a validation split, or set train.patience to null"
        raise RecipeError("early stopping needs validation images", where="train.patience", remedy=remedy)
    if config.precision == "fp16" and device.type != "cuda":
        remedy = "choose bf16 or float32, or train on a CUDA device"
        raise RecipeError("fp16 needs CUDA", where="train.precision", got=f"device {device}", remedy=remedy)
    if config.compile and not isinstance(getattr(network, "backbone", None), nn.Module):
        raise RecipeError("this network has no backbone", where="train.compile", remedy="set it to false")
    build_optimiser(network, config)
    if config.tensorboard:
        check_tensorboard()


def train(training: Training, *, max_minutes: float | None = None) -> TrainResult:
    """Train until the end of the run, starting from the newest checkpoint of the run folder if there is one.

    Args:
        training: what to train, on what, and where to write it.
        max_minutes: end this call, with an evaluation and a checkpoint, after the step in which this time runs out;
            another call resumes the run. The schedule is not shortened. The extra evaluation may find a new best model.

    Raises:
        TrainingDiverged: a loss, gradient or weight is not finite, or the gradient norm exceeds
            ``config.max_gradient_norm``. The log ends with that step; its weights are not written, and the last
            checkpoint is valid.
        RecipeError: the recipe does not fit the device, the network, or the lack of validation images.
        KeyboardInterrupt: after SIGINT, SIGTERM or SIGHUP, once a checkpoint of the last complete step has been saved
            (a second signal does not wait for it).
        OutputError, FormatError, InputError: the run folder, a checkpoint or a sample cannot be used.
    """
    check(training)
    config, run, reporter = training.config, training.run, training.reporter
    timeline = Timeline.of(config, training.loader.n_samples)
    state = TrainState.initial(training.network.to(training.device), config)
    resumed = resume(run.checkpoints, state, run.model)
    if training.threads is not None:
        state.position.threads = training.threads
    first = state.position.step
    with (
        reproducible(state.position.threads, deterministic=config.deterministic and training.device.type == "cpu"),
        StepLog(run.log, first, TensorBoardLog(run.tensorboard, first) if config.tensorboard else None) as log,
        reporter,
        interruptible() as interruption,
    ):
        _report_resume(resumed, state, log, reporter, training)
        n_due = partial(timeline.n_due, every=config.evaluate_every)
        recorder = Recorder(log, reporter, timeline.total_steps, n_due, training.device)
        estimate = partial(_expected_evaluation_s, training, state)
        budget = Budget(max_minutes, recorder.pace, estimate, time.monotonic, 1 + training.n_closing)
        try:
            _send_state(state, training.team)
            _run_steps(training, state, timeline, recorder, interruption, budget)
            training.team.send(_STOP)
        except KeyboardInterrupt:
            if not interruption.hurried:
                recorder.flush()
                training.save_checkpoint(state)
            raise
        except (RuntimeError, SystemError) as error:  # may come in the middle of a step, so the state is not saved
            is_of_worker = is_worker_failure(error)
            # The signal was meant for all processes; in compiled code, it becomes a SystemError.
            if interruption.received is not None and (is_of_worker or isinstance(error, SystemError)):
                raise Interrupted(interruption.received) from error
            if not is_of_worker:
                raise
            raise _worker_error(error) from error
    position, total_steps = state.position, timeline.total_steps
    finished = position.step >= total_steps or is_out_of_patience(position, config)
    if finished:
        reason = f"; nothing better than step {position.best_step}" if position.step < total_steps else ""
        write_text(run.done, f"{position.step} of {total_steps} steps{reason}\n")
    best = position.best_metrics
    return TrainResult(position.step, total_steps, finished, position.metrics, position.best_step, best)


def _worker_error(error: Exception) -> InputError:
    return InputError("a loading process ended", got=str(error).splitlines()[0], remedy=WORKER_REMEDY)


# --- several processes ------------------------------------------------------------------------------------------------

_STEP, _STOP = "step", "stop"  # what rank 0 sends


def _send_state(state: TrainState, team: Team) -> None:
    """Send members the weights and all else that a step depends on."""
    if team.place.n == 1:
        return
    share_batch_norm(state.network)
    scaler = None if state.scaler is None else state.scaler.state_dict()
    content = state.network.state_dict(), state.optimiser.state_dict(), scaler, state.position
    team.send(_to_cpu(content))


def _to_cpu(content: Any) -> Any:
    """Nested tuples, lists and dictionaries with all tensors on the CPU, as they can be sent."""
    match content:
        case Tensor():
            return content.cpu()
        case dict():
            return {key: _to_cpu(value) for key, value in content.items()}
        case list() | tuple():
            return [_to_cpu(value) for value in content]
        case _:
            return content


def follow(network: Network, loader: Loader, config: TrainConfig, device: torch.device, team: Team) -> None:
    """The part of a member in `train`: load this rank's images, and take the same steps, until rank 0 stops.

    Rank 0 decides about everything, and sends the state before the first step, so nothing is read or written here.
    """
    config = config.model_copy(update={"ema_decay": None})  # only rank 0 evaluates
    timeline = Timeline.of(config, loader.n_samples)
    state = TrainState.initial(network.to(device), config)
    share_batch_norm(state.network)
    weights, optimiser, scaler, state.position = team.receive()
    state.network.load_state_dict(weights)
    state.optimiser.load_state_dict(optimiser)
    if state.scaler is not None:
        state.scaler.load_state_dict(scaler)
    position, accumulate = state.position, config.accumulate
    with reproducible(position.threads, deterministic=config.deterministic and device.type == "cpu"):
        try:
            batches = loader.batches(position.step * accumulate, timeline.total_steps * accumulate)
            while True:
                own = [
                    batch.to(device) for batch in itertools.islice(batches, accumulate)
                ]  # while rank 0 loads its own
                if team.receive() == _STOP:
                    return
                take_step(state, team.share(own), config, learning_rate(config, position.step, timeline))
        except RuntimeError as error:
            if not is_worker_failure(error):
                raise
            raise _worker_error(error) from error


# --- the steps --------------------------------------------------------------------------------------------------------


def _run_steps(
    training: Training,
    state: TrainState,
    timeline: Timeline,
    recorder: Recorder,
    interruption: Interruption,
    budget: Budget,
) -> None:
    """Take steps; after a step, evaluate and then save a checkpoint with the result, whenever either is due.

    A checkpoint is saved before a scheduled evaluation too, which may take as long as many steps, and which a resumed
    run repeats.
    """
    config, position, team = training.config, state.position, training.team
    # Batches are numbered separately from steps, because a step takes ``accumulate`` of them.
    batches = training.loader.batches(position.step * config.accumulate, timeline.total_steps * config.accumulate)
    first, watch = position.step, _watch(training, state)
    while True:
        # Every call takes at least one step, so that repeated short calls reach the end.
        out_of_time = position.step > first and budget.is_spent()
        last = position.step >= timeline.total_steps or out_of_time
        due = timeline.is_due(position.step, config.evaluate_every)
        if last or due:
            if due and training.validation is not None and position.step not in (0, position.evaluated_step):
                recorder.flush()
                training.save_checkpoint(state)
            _evaluate_and_keep_best(training, state, recorder, interruption, due=due)
            # After an evaluation there may be no time for another step and the evaluation of that.
            last = last or (position.step > first and budget.is_spent())
        last = last or is_out_of_patience(position, config)
        if last or timeline.is_due(position.step, config.checkpoint_every):
            recorder.flush()
            training.save_checkpoint(state)
        if last:
            return
        started = time.perf_counter()
        with interruption.allowed():
            step_batches = [batch.to(training.device) for batch in itertools.islice(batches, config.accumulate)]
        data_s = time.perf_counter() - started
        with watch.step():
            team.send(_STEP)
            outcome = take_step(state, team.share(step_batches), config, learning_rate(config, position.step, timeline))
        n_images = team.place.n * sum(map(len, step_batches))
        recorder.step(outcome, n_images, data_s, time.perf_counter() - started)
        if outcome.problem is not None:
            raise diverged(outcome, config)


def _watch(training: Training, state: TrainState) -> StepWatch:
    """Warns of slow steps on a CPU, of one process alone; hooks of a compiled backbone would compile it again."""
    config, threads = training.config, state.position.threads
    is_watched = training.device.type == "cpu" and not config.compile and training.team.place.n == 1
    setting = Setting.of(config.precision, threads, training.device) if is_watched else None
    return StepWatch(state.network, setting, training.reporter.note)


def _expected_evaluation_s(training: Training, state: TrainState) -> float:
    """How long an evaluation will probably take, before the first one."""
    if training.validation is None:
        return 0.0
    with state.evaluated_weights() as module:
        return training.validation.expected_s(cast(Network, module))


def _evaluate_and_keep_best(
    training: Training, state: TrainState, recorder: Recorder, interruption: Interruption, *, due: bool
) -> None:
    """Evaluate the network, record the metrics, and save it if it is the best so far.

    Without validation images the latest network is the best. Only a scheduled evaluation (``due``) counts for early
    stopping.
    """
    position, validation, name = state.position, training.validation, training.config.best_metric
    if position.step in (0, position.evaluated_step):
        return
    check_finite(state.network, position.step)
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    shown: dict[str, float] = {}
    with state.evaluated_weights() as module:
        network = cast(Network, module)
        if validation is not None:
            with interruption.allowed():
                metrics = validation.metrics(network)
            _check_has_best_metric(name, metrics)
            shown = {key: metrics[key] for key in validation.headline or metrics if key in metrics}
            if due:
                count_patience(position, name, metrics[name])
        if not metrics or is_better(name, metrics[name], position.best_metrics.get(name)):
            finite = {key: value for key, value in shown.items() if math.isfinite(value)}
            training.verify()
            info = replace(training.info, metrics=finite)
            if position.best_step < 0:
                _check_model_way(training.run, network, info)
            save_model(training.run.model, network.state_dict(), info)
            position.best_step, position.best_metrics = position.step, metrics
    position.evaluated_step, position.metrics = position.step, metrics
    if metrics:
        recorder.evaluation(position.step, metrics, time.perf_counter() - started, shown)
    _write_metrics(training, position)


def _check_model_way(run: RunFolder, network: Network, info: ModelInfo) -> None:
    """Raise `OutputError` if files are in the place of the first model that this run did not write.

    A run that was killed before it recorded its first model writes the same one again.
    """
    if not any(os.path.lexists(run.model / name) for name in MODEL_FILES):
        return
    staging = temporary_path(run.checkpoints / "first_model")
    try:
        save_model(staging, network.state_dict(), info)
        check_way(run.model, identities_below(staging), {}, run.model)
    finally:
        remove(staging)


def _write_metrics(training: Training, position: Position) -> None:
    best = Best(position.best_step, training.config.best_metric, position.best_metrics)
    write_metrics(training.run, position.evaluated_step, position.metrics, best)


def _report_resume(resumed: Resumed, state: TrainState, log: StepLog, reporter: Reporter, training: Training) -> None:
    """Say where training goes on, and what is lost; ``metrics.json`` becomes that of this step."""
    for problem in resumed.damaged:
        reporter.note(f"warning: {problem}; it is removed")
    step = state.position.step
    if resumed.path is not None:
        reporter.note(f"resuming from step {step} ({resumed.path.name})")
    elif resumed.damaged:
        reporter.note("training starts again from the first step")
    if log.n_lost:
        reporter.note(f"warning: {log.path.name} lacks {count(log.n_lost, 'step')} of the {step} done before")
    if state.position.evaluated_step >= 0:
        _write_metrics(training, state.position)


def _check_has_best_metric(name: str, metrics: dict[str, float]) -> None:
    if name not in metrics:
        raise RecipeError(
            "the metric that selects the best model does not exist",
            where="train.best_metric",
            got=name,
            remedy=did_you_mean(name, metrics),
        )
