"""Cellpose 3.1 trained from scratch, for `nuclei.py`; runs in its own environment.

The network gets all three channels, as with ``--all_channels``. Training uses Cellpose's own function: random rotation,
flip and scale, objects resized to ``--diameter``, batches of 8 crops of 224 px. The learning rate follows the schedule
of its 500 epochs (warm-up over the first 2 %, halved ten times over the last 20 %), stretched to the CPU time of the
budget and set before each step. Its size model is trained on the split train and estimates the diameter of each image,
as in the published models; flow and cell probability thresholds are chosen from a small grid on val.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from cellpose import dynamics, models  # type: ignore[import-not-found]
from cellpose import train as cellpose_train  # type: ignore[import-not-found]
from cellpose.metrics import average_precision  # type: ignore[import-not-found]
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nuclei_peer import Budget, Images, Segment, read_split, run_peer, write_json

torch.set_num_threads(1)
MANY_EPOCHS = 100_000
RISE, FALL = 0.02, 0.2
SIZE_EPOCHS = 2
GRID = {"cellprob_threshold": (-1.0, 0.0, 1.0), "flow_threshold": (0.2, 0.4, 0.8)}
EVALUATED_AT = [0.5, 0.75, 0.9]


class OutOfBudgetError(Exception):
    """The budget of a training is used up."""


class Schedule:
    """Sets the learning rate before each step from the used share of the budget, and stops at its end."""

    def __init__(self, budget: Budget, top: float) -> None:
        self.budget = budget
        self.top = top
        self.steps = 0

    def rate(self, share: float) -> float:
        """The learning rate for a used share of the budget."""
        if share < RISE:
            return self.top * share / RISE
        fall = (share - (1 - FALL)) / FALL
        return self.top if fall <= 0 else self.top * 0.5 ** (1 + int(min(fall, 0.999) * 10))

    def __call__(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        share = self.budget.share()
        if share >= 1:
            raise OutOfBudgetError
        self.steps += 1
        for group in optimiser.param_groups:
            group["lr"] = self.rate(share)


def train(folder: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    images = read_split(folder, "train")
    start = time.process_time()
    data = {
        "train_data": [image.transpose(2, 0, 1) for image in images.images],
        "train_labels": dynamics.labels_to_flows(images.labels, device=torch.device("cpu")),
        "rgb": True,
        "min_train_masks": 1,
    }
    prepared = time.process_time() - start
    torch.manual_seed(0)
    net = models.CellposeModel(pretrained_model=False, diam_mean=args.diameter, nchan=3).net
    schedule = Schedule(Budget(args.core_minutes * 60), args.learning_rate)
    hook = register_optimizer_step_pre_hook(schedule)
    optimiser = {"SGD": bool(args.sgd), "learning_rate": args.learning_rate, "n_epochs": MANY_EPOCHS}
    try:
        schedule.budget.start = time.process_time()
        cellpose_train.train_seg(net, **data, **optimiser, save_path=out, model_name="network")
    except OutOfBudgetError:
        pass
    finally:
        used = schedule.budget.used()
        hook.remove()
    path = out / "models" / "network"
    net.save_model(path)
    start = time.process_time()
    cellpose_train.train_size(net, path, **data, n_epochs=SIZE_EPOCHS, batch_size=8, bsize=224)
    return {
        "core_minutes": args.core_minutes,
        "cpu_seconds": used,
        "preparation_cpu_seconds": prepared,
        "size_model_cpu_seconds": time.process_time() - start,
        "steps": schedule.steps,
        "crops": schedule.steps * 8,
        "epochs": schedule.steps * 8 / len(images.ids),
        "images": len(images.ids),
        "optimiser": "SGD" if args.sgd else "AdamW",
        "learning_rate": args.learning_rate,
        "diameter_px": args.diameter,
    }


def load(folder: Path, out: Path) -> tuple[Segment, dict[str, Any]]:
    path = str(out / "models" / "network")
    model = models.CellposeModel(pretrained_model=path, nchan=3)
    size = models.SizeModel(model, pretrained_size=path + "_size.npy")
    if not (out / "thresholds.json").exists():
        write_json(out / "thresholds.json", tuned(model, size, read_split(folder, "val")))
    thresholds = json.loads((out / "thresholds.json").read_text())

    def segment(image: np.ndarray, diameter_px: float | None = None) -> np.ndarray:
        diameter = diameter_of(size, image) if diameter_px is None else diameter_px
        return model.eval(image, channel_axis=2, diameter=diameter, **thresholds)[0]

    return segment, thresholds


def diameter_of(size: models.SizeModel, image: np.ndarray) -> float:
    """The diameter that the size model estimates, px."""
    return float(size.eval(image, channel_axis=2)[0])


def tuned(model: models.CellposeModel, size: models.SizeModel, val: Images) -> dict[str, float]:
    """The pair of thresholds with the best mean average precision, computed by Cellpose at our IoU thresholds."""
    maps = []
    for image in val.images:
        diameter = diameter_of(size, image)
        flows, probability = model.eval(image, channel_axis=2, diameter=diameter, compute_masks=False)[1][1:]
        maps.append((flows, probability, diameter / model.diam_mean * 200))
    scores = {}
    for pair in itertools.product(*GRID.values()):
        thresholds = dict(zip(GRID, pair, strict=True))
        predictions = [
            dynamics.resize_and_compute_masks(flows, probability, niter=steps, device=model.device, **thresholds)
            for flows, probability, steps in maps
        ]
        scores[pair] = float(average_precision(val.labels, predictions, threshold=EVALUATED_AT)[0].mean())
    return dict(zip(GRID, max(scores, key=lambda pair: scores[pair]), strict=True))


if __name__ == "__main__":
    run_peer(
        "cellpose",
        train,
        load,
        [("--diameter", float, 17.0), ("--learning-rate", float, 0.005), ("--sgd", int, 0)],
    )
