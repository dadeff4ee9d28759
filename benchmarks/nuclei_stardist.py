"""StarDist 0.9 trained from scratch, for `nuclei.py`; runs in its own environment.

The settings are those of its 2D example: percentiles 1 to 99.8 of each channel, 32 rays on a grid of (2, 2), flips,
rotations by 90 degrees, changes of intensity and noise, Adam at 0.0003, halved when the validation loss has not
improved for a tenth of the epochs (in the example 40 of 400), the weights of the best validation loss, and thresholds
from `optimize_thresholds`. Epochs have fewer than the 100 steps of the example, so that a small budget contains as
many epochs as the schedule needs.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf  # type: ignore[import-not-found]
from csbdeep.utils import normalize  # type: ignore[import-not-found]
from stardist.models import Config2D, StarDist2D  # type: ignore[import-not-found]

from nuclei_peer import Budget, Images, Segment, read_split, run_peer

STEPS_PER_EPOCH = 50
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


class Stop(tf.keras.callbacks.Callback):
    """Ends the training when the budget is used up; validation is not counted."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget
        self.steps = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self.budget.start = time.process_time()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        if self.budget.share() >= 1:
            self.model.stop_training = True

    def on_test_begin(self, logs: Any = None) -> None:
        self.budget.pause()

    def on_test_end(self, logs: Any = None) -> None:
        self.budget.resume()


def prepared(image: np.ndarray) -> np.ndarray:
    """The network input for an image (H, W, 3), float32."""
    return normalize(image, 1, 99.8, axis=(0, 1))


def augment(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As in the example: one of the eight symmetries, scale and shift of the intensity, noise."""
    if np.random.rand() < 0.5:
        image, labels = image.swapaxes(0, 1), labels.swapaxes(0, 1)
    for axis in (0, 1):
        if np.random.rand() < 0.5:
            image, labels = np.flip(image, axis), np.flip(labels, axis)
    image = image * np.random.uniform(0.6, 2.0) + np.random.uniform(-0.2, 0.2)
    return image + np.random.uniform(0, 0.02) * np.random.normal(size=image.shape), labels


def config(epochs: int) -> Config2D:
    return Config2D(
        n_rays=32,
        grid=(2, 2),
        n_channel_in=3,
        train_epochs=epochs,
        train_steps_per_epoch=STEPS_PER_EPOCH,
        train_reduce_lr={"factor": 0.5, "patience": max(1, round(epochs / 10)), "min_delta": 0},
        train_tensorboard=False,
    )


def seconds_per_step(train: Images, steps: int = 10) -> float:
    """CPU seconds of a training step, measured with a temporary model; the first steps compile and are not counted."""
    model = StarDist2D(config(1), name=None, basedir=None)
    data = {"X": [prepared(image) for image in train.images[:16]], "Y": train.labels[:16]}
    watch = {"validation_data": (data["X"][:1], data["Y"][:1]), "augmenter": augment, "epochs": 1}
    model.train(**data, **watch, steps_per_epoch=2)
    budget = Budget(float("inf"))
    model.callbacks.append(Stop(budget))
    model.train(**data, **watch, steps_per_epoch=steps)
    return budget.used() / steps


def train(folder: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    images, watched = read_split(folder, "train"), read_split(folder, "val")
    step = seconds_per_step(images)
    epochs = max(1, round(args.core_minutes * 60 / step / STEPS_PER_EPOCH))
    tf.keras.utils.set_random_seed(0)
    model = StarDist2D(config(epochs), name="model", basedir=str(out))
    model.prepare_for_training()
    stop = Stop(Budget(args.core_minutes * 60))
    model.callbacks.append(stop)
    history = model.train(
        [prepared(image) for image in images.images],
        images.labels,
        validation_data=([prepared(image) for image in watched.images], watched.labels),
        augmenter=augment,
        seed=0,
        epochs=2 * epochs,  # the budget ends the training
    ).history
    return {
        "core_minutes": args.core_minutes,
        "cpu_seconds": stop.budget.used(),
        "validation_cpu_seconds": stop.budget.paused,
        "steps": stop.steps,
        "crops": stop.steps * model.config.train_batch_size,
        "epochs": len(history["loss"]),
        "epochs_planned": epochs,
        "images": len(images.ids),
        "loss": [float(value) for value in history["loss"]],
        "val_loss": [float(value) for value in history["val_loss"]],
        "learning_rate": [float(value) for value in history["lr"]],
    }


def load(folder: Path, out: Path) -> tuple[Segment, dict[str, Any]]:
    model = StarDist2D(None, name="model", basedir=str(out))
    if not (out / "model" / "thresholds.json").exists():
        val = read_split(folder, "val")
        model.optimize_thresholds([prepared(image) for image in val.images], val.labels)

    def segment(image: np.ndarray) -> np.ndarray:
        return model.predict_instances(prepared(image), verbose=False)[0]

    return segment, {"prob_thresh": model.thresholds.prob, "nms_thresh": model.thresholds.nms}


if __name__ == "__main__":
    run_peer("stardist", train, load)
