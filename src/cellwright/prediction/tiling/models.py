"""What predicts the tiles of an image with a predictor, and how that is opened in another process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cellwright.core.errors import UsageError
from cellwright.data.views import View
from cellwright.prediction.predictor import Ensemble, FilteredPredictor, Predictor, SegmenterPredictor

if TYPE_CHECKING:
    import torch

    from cellwright.prediction.tiling.work import TileModel

ONE_SCALE = 'use `tile="none"` with a smaller image'


def tile_model(predictor: Predictor) -> TileModel:
    """What predicts tiles with a predictor. Raises `UsageError` for one that cannot, with the reason."""
    from cellwright.models.dense.dense import DenseNetwork
    from cellwright.prediction.backends.torch import NetworkPredictor
    from cellwright.prediction.backends.torch_tiles import DenseTiles

    if isinstance(predictor, NetworkPredictor):
        _check_scale(predictor.views)
        if isinstance(predictor.network, DenseNetwork) and predictor.input_config.short_side is None:
            return DenseTiles(predictor)
    raise UsageError(
        "this model cannot predict images tile by tile",
        got=type(getattr(predictor, "network", predictor)).__name__,
        expected="nuclei, or another U-Net without input.short_side",
        remedy=ONE_SCALE,
    )


def device_of(predictor: Any) -> str:
    """The device of a predictor: of an ensemble that of the first network, "cpu" without networks."""
    if isinstance(predictor, Ensemble):
        return next((device for one in predictor.members if (device := device_of(one)) != "cpu"), "cpu")
    if isinstance(predictor, FilteredPredictor):
        return device_of(predictor.predictor)
    return str(getattr(predictor, "device", "cpu"))


def _check_scale(views: Sequence[View]) -> None:
    sides = [view.short_side for view in views if view.short_side is not None]
    if sides:
        raise UsageError(
            "views of a given short side cannot be predicted tile by tile",
            got=f"{sides[0]} px in `views`",
            expected="factors, which do not depend on the size of the image",
            remedy="use factors such as 0.8,1,1.25",
        )


@dataclass(frozen=True)
class _Named:
    """In place of a network that another process loads by the name of its model."""

    model: str


def without_networks(predictor: Any, names: Iterator[str]) -> Any:
    """A predictor that can be sent to another process: each network is replaced by the name of its model.

    names: of the models, in the order of the members of an ensemble.
    """
    match predictor:
        case Ensemble():
            return replace(predictor, members=tuple(without_networks(one, names) for one in predictor.members))
        case FilteredPredictor():
            return replace(predictor, predictor=without_networks(predictor.predictor, names))
        case SegmenterPredictor():
            next(names)
            return predictor
        case _:
            return replace(predictor, network=_Named(next(names)))


def with_networks(predictor: Any, device: torch.device) -> Any:
    """The opposite of `without_networks`, on a device of this machine."""
    from cellwright.models.weights.torch_io import load_network

    match predictor:
        case Ensemble():
            return replace(predictor, members=tuple(with_networks(one, device) for one in predictor.members))
        case FilteredPredictor():
            return replace(predictor, predictor=with_networks(predictor.predictor, device))
        case SegmenterPredictor():
            return predictor
        case _:
            network, _ = load_network(predictor.network.model)
            return replace(predictor, network=network.to(device), device=device)
