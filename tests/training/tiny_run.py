"""A very small training: drawn images and a tiny network, with the real loader and loop."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cellwright.config.input import AugmentConfig, DataConfig, InputConfig
from cellwright.config.training import TrainConfig
from cellwright.core.dataset import Loaded, Sample
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.loader import LoaderConfig, TrainingLoader
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.ops.batch import Batch
from cellwright.training.distributed import Place, Team
from cellwright.training.environment import describe_environment
from cellwright.training.logging import Reporter, SilentReporter
from cellwright.training.loop import Training, TrainResult, train
from cellwright.training.run_output import RunOutput

ALONE = Place()
RECIPE = "name: tiny\n"
AUGMENT = AugmentConfig(
    crop_px=24, quarter_turns=True, scale_min=0.8, scale_max=1.25, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1
)


def draw_samples(folder: Path, n: int = 5) -> list[Sample]:
    """``n`` images with bright, overlapping squares, written to ``folder`` as PNG files."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for i in range(n):
        rng = np.random.default_rng(i)
        hw = (40 + i, 48 - i)
        corners = rng.integers(0, 34, (i + 2, 2))
        boxes = np.array([[x, y, min(x + 7, hw[1]), min(y + 6, hw[0])] for y, x in corners])
        masks = MaskSet.from_crops(boxes, [np.ones((y1 - y0, x1 - x0), bool) for x0, y0, x1, y1 in boxes], hw)
        image = rng.integers(0, 60, (*hw, 3), dtype=np.uint8)
        image[masks.foreground()] += 120
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), image)
        samples.append(Sample(str(i), path, hw, Loaded(Instances.from_masks(masks))))
    return samples


def tiny_loader(
    samples: list[Sample], config: TrainConfig, data: DataConfig, stride: int = 8, place: Place = ALONE
) -> TrainingLoader:
    """The real loader for ``samples``."""
    return TrainingLoader(
        samples,
        LoaderConfig(
            input=InputConfig(),
            augment=AUGMENT,
            data=data,
            resize_rule="torchvision",
            stride=stride,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=place.rank,
            n_ranks=place.n,
        ),
    )


class TinyNetwork(nn.Module):
    """Separates foreground from background, with batch normalisation, dropout and random draws.

    ``spoil_at`` makes the loss NaN at that call of this object; ``gradient_factor`` scales the gradients.
    """

    stride = 8

    def __init__(self, spoil_at: int = -1, gradient_factor: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(8, 1, 1)
        )
        self.spoil_at, self.gradient_factor, self.calls = spoil_at, gradient_factor, 0

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        noise = torch.randn(batch.images.shape, generator=batch.generator())
        logits = self.layers(batch.images + 0.1 * noise)[:, 0]
        target = torch.zeros_like(logits)
        for i, layers in enumerate(batch.layers):
            height, width = layers.shape[1:]
            target[i, :height, :width] = (layers > 0).any(dim=0).float()
        self.calls += 1
        factor = float("nan") if self.calls - 1 == self.spoil_at else self.gradient_factor
        return {
            "foreground": factor * nn.functional.binary_cross_entropy_with_logits(logits, target),
            "size": 0.01 * logits.square().mean(),
        }

    def detect(self, images: Tensor, image_hws: object, output_hws: object) -> list[Instances]:
        raise NotImplementedError("these tests do not predict")


def tiny_network(spoil_at: int = -1, gradient_factor: float = 1.0) -> TinyNetwork:
    """The same weights every time."""
    torch.manual_seed(11)
    return TinyNetwork(spoil_at, gradient_factor)


def tiny_config(**changes: object) -> TrainConfig:
    """Twelve steps with two images per step."""
    defaults = {
        "length": "12 steps",
        "batch_size": 2,
        "lr": 0.05,
        "warmup": "3 steps",
        "checkpoint_every": "4 steps",
        "evaluate_every": "6 steps",
        "best_metric": "score",
        "threads": 1,
        "precision": "float32",
    }
    return TrainConfig(**{**defaults, **changes})


def weight_sum(network: nn.Module) -> dict[str, float]:
    """A "metric" that any change of the weights changes."""
    total = sum(value.double().abs().sum() for value in network.state_dict().values())
    return {"score": float(total), "undefined": float("nan")}


@dataclass
class StubValidation:
    """Stands in for the evaluation on validation images."""

    metrics: Callable[[nn.Module], dict[str, float]]
    headline: tuple[str, ...] = ()
    evaluation_s: float = 0.0

    def expected_s(self, network: nn.Module) -> float:
        return self.evaluation_s


def tiny_train(
    root: Path,
    samples: list[Sample],
    config: TrainConfig,
    *,
    network: TinyNetwork | None = None,
    data: DataConfig | None = None,
    reporter: Reporter | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = weight_sum,
    evaluation_s: float = 0.0,
    max_minutes: float | None = None,
    overwrite: bool = False,
    team: Team | None = None,
) -> TrainResult:
    """Open the run at ``root`` and train."""
    team = team or Team()
    environment = describe_environment(torch.device("cpu"), config.threads, {"data": "drawn"}, n_devices=team.place.n)
    output = RunOutput(root, overwrite=overwrite)
    environment = output.examine(RECIPE, environment, None)
    with output.started(RECIPE, environment, None) as run:
        training = Training(
            network or tiny_network(),
            tiny_loader(samples, config, data or DataConfig(), place=team.place),
            config,
            run,
            ModelInfo(kind="tiny", recipe={}, class_names=("square",), normalisation={}),
            None if evaluate is None else StubValidation(evaluate, evaluation_s=evaluation_s),  # type: ignore[arg-type]
            reporter or SilentReporter(),
            verify=output.verify,
            team=team,
        )
        result = train(training, max_minutes=max_minutes)
        if result.finished:
            output.complete()
    return result


def forked(function: Callable[[], object]) -> int:
    """Call ``function`` in a child that can be killed; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def long_config() -> TrainConfig:
    """A hundred steps with every feature that keeps a state."""
    return tiny_config(
        length="100 steps",
        accumulate=2,
        optimiser="adam",
        lr=0.005,
        ema_decay=0.9,
        checkpoint_every="7 steps",
        evaluate_every="10 steps",
        patience=1000,
    )


def n_lines(log: Path) -> int:
    """0 while there is none, as when a run without a checkpoint is begun again."""
    with suppress(FileNotFoundError):
        return log.read_text().count("\n")
    return 0


def kill_again_and_again(root: Path, data: Path, kills: int) -> list[int]:
    """Train in a child process, kill it at a random point, resume in another one; the last one may finish.

    Returns how each ended: the exit code, or the signal as a negative number.
    """
    samples, config, rng = draw_samples(data), long_config(), random.Random(3)
    log, ends = root / "log.csv", []
    for point in [*sorted(rng.uniform(0, 95) for _ in range(kills)), None]:
        child = forked(lambda: tiny_train(root, samples, config))
        while point is not None and n_lines(log) <= point:
            time.sleep(0.001)
        if point is not None:
            time.sleep(rng.uniform(0, 0.03))  # hits a step, an evaluation, or the writing of a checkpoint
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        ends.append(os.waitstatus_to_exitcode(status))
    return ends
