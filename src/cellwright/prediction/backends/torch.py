"""Prediction with a network of PyTorch, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cellwright.config.recipe import Recipe
from cellwright.core.errors import InputError, UsageError
from cellwright.data.value_range import TrainingValues
from cellwright.models.contract import Network
from cellwright.prediction.network import SMALLER, NetworkPredictor, settings_of


@dataclass(frozen=True, eq=False)
class TorchPredictor(NetworkPredictor):
    """A `NetworkPredictor` whose network takes tensors.

    network: a `Network` on ``device``; prediction puts it into evaluation mode and leaves it there.
    """

    network: Network
    device: torch.device | str = "cpu"

    @contextmanager
    def running(self, image_hws: Sequence[tuple[int, int]] = ()) -> Iterator[None]:
        """See `NetworkPredictor`. Raises `InputError` if the memory of the GPU does not suffice."""
        self.network.eval()
        try:
            with torch.inference_mode():
                yield
        except torch.OutOfMemoryError as error:
            height, width = max(image_hws, key=lambda hw: hw[0] * hw[1], default=(0, 0))
            raise InputError(
                f"an image of {height} x {width} pixels does not fit in the memory of the GPU",
                got=str(error).split(". ")[0],
                remedy=f'{SMALLER}, or use `device="cpu"`',
            ) from error

    def as_input(self, array: np.ndarray) -> Tensor:
        """See `NetworkPredictor`."""
        return torch.from_numpy(array).to(self.device)

    @property
    def is_on_cpu(self) -> bool:
        """See `NetworkPredictor`."""
        return torch.device(self.device).type == "cpu"


def network_predictor(
    network: Network,
    recipe: Recipe,
    device: torch.device,
    *,
    training: TrainingValues | None = None,
    trained_channels: tuple[str, ...] = (),
) -> TorchPredictor:
    """The predictor of a network in training, which is built from ``recipe``; it is moved to ``device``.

    training, trained_channels: see `NetworkPredictor`.
    """
    network.to(device)
    facts = settings_of(recipe) | {"training": training, "trained_channels": trained_channels}
    return TorchPredictor(network, device=device, **facts)


def resolve_device(device: str) -> torch.device:
    """The torch device; ``auto`` tries CUDA, then mps, then the CPU. `UsageError` if it is not available."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        remedy = 'use `device="cpu"`; cellwright doctor shows why there is no GPU'
        raise UsageError("this device is not available", got=f"{device}: {first}", remedy=remedy) from error
    return chosen
