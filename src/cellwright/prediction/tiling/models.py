"""What predicts the tiles of an image with a predictor, and how that is opened in another process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cellwright.core.errors import UsageError
from cellwright.core.needs_torch import torch_is_installed
from cellwright.data.views import PLAIN
from cellwright.models.classical import ClassicalSegmenter
from cellwright.models.dense.prediction import DensePrediction
from cellwright.prediction.backends.load import backend_of, load_predictor
from cellwright.prediction.network import NetworkPredictor
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import Choice, Ensemble, FilteredPredictor, Predictor, SegmenterPredictor
from cellwright.prediction.tiling.methods import ChoiceTiles, ClassicalTiles, EnsembleTiles, SegmenterTiles
from cellwright.prediction.tiling.network_tiles import DenseTiles, FixedTiles

if TYPE_CHECKING:
    from cellwright.prediction.tiling.work import TileModel

AT_ONCE = 'use `tile="none"` with a smaller image'


def tile_model(predictor: Predictor) -> TileModel:
    """What predicts tiles with a predictor. Raises `UsageError` for one that cannot, with the reason."""
    if isinstance(predictor, NetworkPredictor):
        _check_scale(predictor)
        if isinstance(predictor.network, DensePrediction):
            is_tiled = hasattr(predictor.network, "region_maps")
            if is_tiled and predictor.views != PLAIN:
                raise UsageError(
                    "views of this network cannot be predicted tile by tile: it has tiles of its own",
                    got="`views`",
                    remedy=f"omit `views`, or {AT_ONCE}",
                )
            return FixedTiles(predictor) if is_tiled else DenseTiles(predictor)
        if torch_is_installed():
            from cellwright.models.rcnn.mask_rcnn import MaskRCNN
            from cellwright.prediction.backends.rcnn_tiles import RCNNTiles

            if isinstance(predictor.network, MaskRCNN):
                return RCNNTiles(predictor)
    if isinstance(predictor, SegmenterPredictor):
        segmenter = predictor.segmenter
        return ClassicalTiles(segmenter) if isinstance(segmenter, ClassicalSegmenter) else SegmenterTiles(predictor)
    if isinstance(predictor, Ensemble):
        return _ensemble_tiles(predictor)
    if isinstance(predictor, Choice):
        return ChoiceTiles(predictor, (tile_model(predictor.other), tile_model(predictor.stained)))
    raise UsageError(
        "this model cannot predict images tile by tile",
        got=type(getattr(predictor, "network", predictor)).__name__,
        expected="a U-Net, a network of the R-CNN family, or an object with predict(images)",
        remedy=AT_ONCE,
    )


def device_of(predictor: Any) -> str:
    """The device of a predictor: of an ensemble that of the first network, "cpu" without networks."""
    if isinstance(predictor, Ensemble):
        return next((device for one in predictor.members if (device := device_of(one)) != "cpu"), "cpu")
    if isinstance(predictor, FilteredPredictor):
        return device_of(predictor.predictor)
    if isinstance(predictor, Choice):
        return device_of(predictor.other)
    return str(getattr(predictor, "device", "cpu"))


def _ensemble_tiles(ensemble: Ensemble) -> TileModel:
    members, options = [], []
    for member in ensemble.members:
        is_filtered = isinstance(member, FilteredPredictor)
        members.append(tile_model(member.predictor if is_filtered else member))
        options.append(member.options if is_filtered else PredictOptions())
    return EnsembleTiles(ensemble, tuple(members), tuple(options))


def _check_scale(predictor: NetworkPredictor) -> None:
    """Raise `UsageError` for a network whose scale depends on the size of the whole image."""
    sides = [view.short_side for view in predictor.views if view.short_side is not None]
    if sides:
        raise UsageError(
            "views of a given short side cannot be predicted tile by tile",
            got=f"{sides[0]} px in `views`",
            expected="factors, which do not depend on the size of the image",
            remedy="use factors such as 0.8,1,1.25",
        )
    short_side = predictor.input_config.short_side
    if short_side is not None and predictor.scale is None:
        raise UsageError(
            "this model cannot predict images tile by tile: at which scale it was trained is not recorded",
            got=f"input.short_side {short_side} px, for whole images",
            expected="`scale` in its model.json: pixels of the network's input per pixel of the training images",
            remedy=f"add it, {short_side} / the short side of the training images; or {AT_ONCE}",
        )


@dataclass(frozen=True)
class _Named:
    """In place of a network that another process loads by the name of its model, with the same backend."""

    model: str
    backend: Any


def without_networks(predictor: Any, names: Iterator[str]) -> Any:
    """A predictor that can be sent to another process: each network is replaced by the name of its model.

    names: of the models, in the order of the members of an ensemble.
    """
    match predictor:
        case Ensemble():
            return replace(predictor, members=tuple(without_networks(one, names) for one in predictor.members))
        case FilteredPredictor():
            return replace(predictor, predictor=without_networks(predictor.predictor, names))
        case Choice():
            next(names)
            own = iter(predictor.names)
            other, stained = [without_networks(one, own) for one in predictor.members]
            return replace(predictor, other=other, stained=stained)
        case SegmenterPredictor():
            next(names)
            return predictor
        case _:
            return replace(predictor, network=_Named(next(names), backend_of(predictor)))


def with_networks(predictor: Any, device: str, threads: int | None = None) -> Any:
    """The opposite of `without_networks`, on a device of this machine. threads: see `load_predictor`."""
    match predictor:
        case Ensemble():
            return replace(predictor, members=tuple(with_networks(one, device, threads) for one in predictor.members))
        case FilteredPredictor():
            return replace(predictor, predictor=with_networks(predictor.predictor, device, threads))
        case Choice():
            other, stained = [with_networks(one, device, threads) for one in predictor.members]
            return replace(predictor, other=other, stained=stained)
        case SegmenterPredictor():
            return predictor
        case _:
            named = predictor.network
            own, _ = load_predictor(named.model, backend=named.backend, device=device, threads=threads)
            whole = replace(predictor, network=own.network, device=own.device)
            return whole if predictor.pruned_to is None else whole.with_pruned_to(predictor.pruned_to)
