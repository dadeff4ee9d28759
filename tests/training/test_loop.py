"""The files of a run, its best model, early stopping, and how a run ends when it fails."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import draw_samples, tiny_config, tiny_loader, tiny_network, tiny_train, weight_sum

from cellwright.config.input import DataConfig
from cellwright.core.dataset import Sample
from cellwright.core.errors import InputError, OutputError, RecipeError, TrainingDiverged
from cellwright.training.logging import LineReporter, SilentReporter, StepReport


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_samples(tmp_path_factory.mktemp("data"))


def test_files_of_a_run(tmp_path: Path, samples: list[Sample]) -> None:
    shown = io.StringIO()
    network = tiny_network()
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    result = tiny_train(tmp_path / "run", samples, tiny_config(), network=network, reporter=LineReporter(shown))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert result.finished
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        ".cellwright",
        "recipe.yaml",
        "environment.json",
        "log.csv",
        "metrics.json",
        "DONE",
        "checkpoints",
        "model",
    }
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints == ["step_00000008", "step_00000012"]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["threads"] == 1
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0] or environment["versions"]["torch"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["step"] == 12
    assert metrics["metrics"]["undefined"] is None
    assert metrics["best"]["chosen_by"] == "score"
    weights = load_file(tmp_path / "run" / "checkpoints" / "step_00000012" / "weights.safetensors")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in weights.items())
    lines = shown.getvalue().splitlines()
    assert lines[0].startswith("step 1/12  loss ")
    assert any(line.startswith("step 6: score ") for line in lines)


def test_the_log_has_one_row_per_step_and_metrics_after_evaluations(tmp_path: Path, samples: list[Sample]) -> None:
    tiny_train(tmp_path / "run", samples, tiny_config())
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [bool(row["score"]) for row in rows] == [step in (6, 12) for step in range(1, 13)]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["loss_foreground"]) + float(row["loss_size"]))
    assert {"lr", "gradient_norm", "step_s", "samples_per_s", "peak_memory_mb"} <= set(rows[0])


def test_training_reduces_the_loss(tmp_path: Path, samples: list[Sample]) -> None:
    tiny_train(
        tmp_path / "run",
        samples,
        tiny_config(length="60 steps", checkpoint_every="60 steps", evaluate_every="60 steps"),
    )
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_best_model_is_saved_not_the_last(tmp_path: Path, samples: list[Sample]) -> None:
    scores = iter([0.2, math.nan, 0.9, 0.4])
    config = tiny_config(evaluate_every="3 steps")
    network = tiny_network()
    result = tiny_train(tmp_path / "run", samples, config, network=network, evaluate=lambda _: {"score": next(scores)})
    assert (result.best_step, result.best_metrics, result.metrics) == (9, {"score": 0.9}, {"score": 0.4})
    saved = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    assert not all(torch.equal(value, network.state_dict()[name]) for name, value in saved.items())


def test_without_evaluation_the_last_model_is_saved(tmp_path: Path, samples: list[Sample]) -> None:
    network = tiny_network()
    result = tiny_train(tmp_path / "run", samples, tiny_config(), network=network, evaluate=None)
    assert (result.best_step, result.best_metrics) == (12, {})
    saved = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in saved.items())


def test_early_stopping_counts_evaluations_without_improvement(tmp_path: Path, samples: list[Sample]) -> None:
    scores = iter([0.2, 0.5, math.nan, 0.4, 0.6, 0.6, 0.1, 0.2, 0.9])
    config = tiny_config(length="20 steps", evaluate_every="2 steps", patience=3)
    result = tiny_train(tmp_path / "run", samples, config, evaluate=lambda _: {"score": next(scores)})
    assert (result.step, result.total_steps, result.finished, result.best_step) == (16, 20, True, 10)
    assert (tmp_path / "run" / "DONE").read_text() == "16 of 20 steps; nothing better than step 10\n"
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert json.loads((newest / "state.json").read_text())["patience_spent"] == 3
    (tmp_path / "run" / "DONE").unlink()  # as if killed just before the end
    again = tiny_train(tmp_path / "run", samples, config, evaluate=lambda _: {"score": 1.0})
    assert (again.step, again.finished) == (16, True)


def test_the_lowest_loss_is_the_best(tmp_path: Path, samples: list[Sample]) -> None:
    for name in ("loss", "score_calibration_error", "errors_missed/astro"):
        scores = iter([0.5, 0.2, 0.3, 0.2, 0.1])
        config = tiny_config(evaluate_every="2 steps", best_metric=name, patience=2)
        result = tiny_train(
            tmp_path / name, samples, config, evaluate=lambda _, name=name, scores=scores: {name: next(scores)}
        )
        assert (result.step, result.best_step, result.best_metrics) == (8, 4, {name: 0.2})


def test_extra_evaluations_of_max_minutes_do_not_count_for_early_stopping(
    tmp_path: Path, samples: list[Sample]
) -> None:
    config = tiny_config(length="8 steps", evaluate_every="4 steps", checkpoint_every="1 step", patience=1)
    scores = {1: 0.9, 2: 0.8, 3: 0.7, 4: 0.1, 5: 0.3, 8: 0.2}
    for step in (1, 2, 3, 4, 5):
        result = tiny_train(
            tmp_path / "run", samples, config, evaluate=lambda _, step=step: {"score": scores[step]}, max_minutes=1e-9
        )
        assert (result.step, result.finished) == (step, False)
    result = tiny_train(tmp_path / "run", samples, config, evaluate=lambda _: {"score": scores[8]})
    assert (result.step, result.finished, result.best_step) == (8, True, 1)


class FakeTime:
    """A clock that moves by 1 s per step and by 10 s per evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        loop = importlib.import_module("cellwright.training.loop")
        take_step = loop.take_step

        def slow_step(*arguments: object) -> object:
            self.now += 1
            return take_step(*arguments)

        monkeypatch.setattr(loop, "time", self)
        monkeypatch.setattr(loop, "take_step", slow_step)

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def evaluate(self, network: torch.nn.Module) -> dict[str, float]:
        self.now += 10
        return weight_sum(network)


@pytest.mark.parametrize(
    ("limit_s", "steps"),
    [
        (60, 38),  # two evaluations, after step 20 and at the end, after 48 s
        (36, 20),  # after the scheduled evaluation, 30 s, there is no time for a further one
        (15, 3),  # the first evaluation is announced to take 10 s
        (3, 1),  # at least one step, and always an evaluated model
    ],
)
def test_a_time_limit_counts_evaluations(
    limit_s: float, steps: int, tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeTime(monkeypatch)
    config = tiny_config(length="100 steps", evaluate_every="20 steps")
    result = tiny_train(
        tmp_path / "run", samples, config, evaluate=time.evaluate, evaluation_s=10, max_minutes=limit_s / 60
    )
    assert (result.step, result.finished) == (steps, False)
    assert result.metrics["score"] > 0
    assert (tmp_path / "run" / "model" / "model.json").is_file()
    assert time.now <= max(limit_s, 11)
    # A resumed call knows from the log how long steps and evaluations take.
    start = time.now
    again = tiny_train(tmp_path / "run", samples, config, evaluate=time.evaluate, evaluation_s=1e9, max_minutes=0.5)
    assert again.step > steps
    assert time.now <= start + 30


def test_the_remaining_time_is_right_at_once_after_a_resume(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step of a process takes much longer than the others."""
    time = FakeTime(monkeypatch)
    config = tiny_config(length="100 steps", evaluate_every="20 steps")
    tiny_train(tmp_path / "run", samples, config, evaluate=time.evaluate, evaluation_s=10, max_minutes=1)
    reports = []

    class Reports(SilentReporter):
        def step(self, report: StepReport) -> None:
            reports.append(report)

    loader = importlib.import_module("cellwright.data.loader")
    batches = loader.TrainingLoader.batches

    def slow_start(self: object, first: int, total: int) -> Iterator[object]:
        time.now += 500
        yield from batches(self, first, total)

    monkeypatch.setattr(loader.TrainingLoader, "batches", slow_start)
    tiny_train(tmp_path / "run", samples, config, evaluate=time.evaluate, reporter=Reports())
    assert (reports[0].step, reports[0].step_s, reports[-1].eta_s) == (39, 501, 10)
    # 61 steps of 1 s and evaluations after steps 40, 60, 80 and 100.
    assert reports[0].eta_s == pytest.approx(61 + 40)
    assert reports[1].eta_s == pytest.approx(60 + 40)


def test_a_recipe_that_does_not_fit_is_refused(tmp_path: Path, samples: list[Sample]) -> None:
    for changes, words in (
        ({"precision": "fp16"}, "fp16 needs CUDA"),
        ({"compile": True}, "no backbone"),
        ({"warmup": "12 steps"}, "warm-up is as long as the run"),
    ):
        with pytest.raises(RecipeError, match=words):
            tiny_train(tmp_path / "run", samples, tiny_config(**changes))
    with pytest.raises(RecipeError, match="early stopping needs validation images"):
        tiny_train(tmp_path / "run", samples, tiny_config(patience=3), evaluate=None)


def test_tensorboard_files_are_written_or_the_missing_package_is_named(tmp_path: Path, samples: list[Sample]) -> None:
    config = tiny_config(tensorboard=True)
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(RecipeError, match="TensorBoard is not installed") as caught:
            tiny_train(tmp_path / "run", samples, config)
        assert "pip install 'cellwright[tensorboard]'" in str(caught.value)
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny_train(tmp_path / "run", samples, config, max_minutes=1e-9)
    tiny_train(tmp_path / "run", samples, config)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"step"}
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(int(row["step"]), pytest.approx(float(row["loss"]))) for row in rows]
    assert [event.step for event in events.Scalars("score")] == [1, 6, 12]


@pytest.mark.slow
def test_a_compiled_backbone_trains_alike(tmp_path: Path, samples: list[Sample]) -> None:
    """Tensor names, averaging (a deep copy) and resuming work as without; the losses differ only by rounding."""

    class Compiled(type(tiny_network())):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = self.layers[0]

    def run(folder: Path, *, compiled: bool, **arguments: float) -> list[float]:
        torch.manual_seed(11)
        config = tiny_config(compile=compiled, ema_decay=0.9)
        tiny_train(folder, samples, config, network=Compiled(), **arguments)  # type: ignore[arg-type]
        with (folder / "log.csv").open(newline="") as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    plain = run(tmp_path / "plain", compiled=False)
    run(tmp_path / "compiled", compiled=True, max_minutes=1e-9)
    assert run(tmp_path / "compiled", compiled=True) == pytest.approx(plain, rel=1e-4)


def test_averaged_weights_are_evaluated_and_saved(tmp_path: Path, samples: list[Sample]) -> None:
    network, evaluated = tiny_network(), []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        assert not model.training
        evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        return weight_sum(model)

    config = tiny_config(ema_decay=0.9, evaluate_every="12 steps")
    tiny_train(tmp_path / "run", samples, config, network=network, evaluate=evaluate)
    averaged = load_file(tmp_path / "run" / "checkpoints" / "step_00000012" / "averaged.safetensors")
    assert all(torch.equal(value, averaged[name]) for name, value in evaluated[0].items())
    own = network.state_dict()
    assert not torch.equal(own["layers.0.weight"], averaged["layers.0.weight"])
    assert torch.equal(own["layers.1.running_mean"], averaged["layers.1.running_mean"])  # copied, not averaged


def test_an_unknown_best_metric_is_refused(tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(RecipeError, match="did you mean 'score'") as caught:
        tiny_train(tmp_path / "run", samples, tiny_config(best_metric="scor"))
    assert "train.best_metric" in str(caught.value)


def test_a_loss_that_is_not_finite_ends_the_run_without_writing_weights(tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        tiny_train(tmp_path / "run", samples, tiny_config(), network=tiny_network(spoil_at=6))
    message = str(caught.value)
    assert "training diverged at step 7: a loss is not finite" in message
    assert "foreground nan" in message
    assert "lower train.lr (now 0.05), lengthen train.warmup (now 3 steps)" in message
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        assert [row["loss_foreground"] == "nan" for row in csv.DictReader(file)] == [False] * 6 + [True]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step_00000004",
        "step_00000006",
    ]
    for file in tmp_path.rglob("*.safetensors"):
        assert all(torch.isfinite(value).all() for value in load_file(file).values())
    assert tiny_train(tmp_path / "run", samples, tiny_config()).finished


def test_an_exploding_gradient_ends_the_run(tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(TrainingDiverged, match=r"above train.max_gradient_norm \(100\)"):
        tiny_train(
            tmp_path / "run", samples, tiny_config(max_gradient_norm=100), network=tiny_network(gradient_factor=1e6)
        )


def test_too_high_a_learning_rate_ends_with_a_clear_error(tmp_path: Path, samples: list[Sample]) -> None:
    """The gradients explode on their own, as in a published run."""
    config = tiny_config(lr=10, warmup=None, clip_norm=None, length="60 steps", momentum=0.99)
    with pytest.raises(TrainingDiverged, match="training diverged at step") as caught:
        tiny_train(tmp_path / "run", samples, config)
    assert "lower train.lr (now 10), lengthen train.warmup (now none)" in str(caught.value)
    assert not (tmp_path / "run" / "DONE").exists()
    saved = sorted((tmp_path / "run").rglob("*.safetensors"))
    assert saved
    for file in saved:
        assert all(torch.isfinite(value).all() for value in load_file(file).values()), file
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert f"at step {rows[-1]['step']}:" in str(caught.value), "the log ends with the step that failed"


def test_weights_that_overflow_are_never_saved(tmp_path: Path, samples: list[Sample]) -> None:
    """The loss and gradient of the last step are finite, but the weights after it are not."""
    network = tiny_network()
    config = tiny_config(length="4 steps", warmup=None)

    def spoil(module: torch.nn.Module, inputs: object, output: object) -> None:
        if module.training and network.calls == 3:
            network.layers[1].running_var.fill_(math.inf)

    network.layers[0].register_forward_hook(spoil)
    with pytest.raises(TrainingDiverged, match="not finite") as caught:
        tiny_train(tmp_path / "run", samples, config, network=network)
    assert "layers.1.running_var" in str(caught.value)
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="permissions differ")
def test_a_run_folder_that_is_not_writable(tmp_path: Path, samples: list[Sample]) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(OutputError, match=r"cannot write this output|a file has its name") as caught:
        tiny_train(blocker / "run", samples, tiny_config())
    assert str(blocker) in str(caught.value)
    with pytest.raises(OutputError, match="the output folder is a file"):
        tiny_train(blocker, samples, tiny_config())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_reported(tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are written to a device that is always full: a clear error, and no incomplete checkpoint remains."""

    def to_full_device(path: Path, data: bytes) -> int:
        if path.suffix != ".safetensors":
            return write(path, data)
        write(path, data[:100])
        with Path("/dev/full").open("wb", buffering=0) as file:
            return file.write(b"x")

    write = Path.write_bytes

    monkeypatch.setattr(Path, "write_bytes", to_full_device)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        tiny_train(tmp_path / "run", samples, tiny_config())
    assert "step_00000004" in str(caught.value)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_run_keeps_the_number_of_threads_of_its_first_call(tmp_path: Path, samples: list[Sample]) -> None:
    threads = []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        threads.append(torch.get_num_threads())
        return weight_sum(model)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        config = tiny_config(threads=None)
        tiny_train(tmp_path / "run", samples, config, evaluate=evaluate, max_minutes=1e-9)
        torch.set_num_threads(1)
        tiny_train(tmp_path / "run", samples, config, evaluate=evaluate)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {2}
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["threads"] == 2


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "data")
    path = samples[3].image_path
    assert path is not None
    path.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"3\.png"):
        tiny_train(tmp_path / "run", samples, tiny_config(), data=DataConfig(workers=0))


def test_length_in_epochs(tmp_path: Path, samples: list[Sample]) -> None:
    config = tiny_config(length="2 epochs")
    assert tiny_loader(samples, config, DataConfig()).n_samples == 5
    assert tiny_train(tmp_path / "run", samples, config).step == 5
