"""What the maps of a dense network mean: one entry per ``model.target.kind``. NumPy only.

`semantic`, `watershed`, `flow` and `stars` each contain an encoder (labels to training maps) and a decoder (maps to
labels and scores), `cellpose` another decoder for `flow`. A `Target` bundles the two with the options of the recipe's
``model.target`` section.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cellwright.config.model_dense import (
    AnyTarget,
    CellposeTarget,
    FlowTarget,
    SemanticTarget,
    StarsTarget,
    WatershedTarget,
)
from cellwright.core.instances import Instances
from cellwright.models.dense import cellpose, flow, semantic, stars, watershed
from cellwright.models.dense.labels import Place, to_instances


@dataclass(frozen=True)
class Target:
    """What a network learns, and how its output becomes objects.

    Attributes:
        channels: names of the maps, in order. ``flow_y``, ``flow_x``, ``cellprob`` and ``ray_K`` are unbounded, all
            others lie in [0, 1]; rays are lengths in pixels of the maps.
        encode: labels (h, w) int, 0 for background -> maps (D, h, w) float32.
        decode: maps (D, h, w) float32 -> labels (h, w) int32, objects 1..N, and scores (N,) float32 in [0, 1].
        needs_place: whether ``decode`` takes ``place`` too, where the maps lie.
        antialias: whether maps that become smaller are resized with antialiasing.
    """

    channels: tuple[str, ...]
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[..., tuple[np.ndarray, np.ndarray]]
    needs_place: bool = False
    antialias: bool = True

    def stretch(self, maps: np.ndarray, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> None:
        """Adapt ``maps`` (D + K, h, w) that were resized, in place: rays are lengths in pixels of the maps.

        from_hw and to_hw: the size before and after; for a window, those of the whole image.
        """
        rays = [index for index, name in enumerate(self.channels) if name.startswith("ray_")]
        if rays and from_hw != to_hw:
            growth = np.divide(to_hw, from_hw)
            lengths = np.hypot(*(stars.directions(len(rays)) * growth).T).astype(np.float32)
            for index, length in zip(rays, lengths, strict=True):
                maps[index] *= length

    def instances(self, maps: np.ndarray, place: Place | None = None) -> Instances:
        """The objects of one image, highest score first.

        Args:
            maps: (D, h, w) float32, followed by K class probabilities where there are several classes. The class of an
                object is the one with the highest mean probability over its pixels.
            place: where they lie; None: they are those of the whole image.
        """
        depth = len(self.channels)
        where = {"place": place} if self.needs_place else {}
        labels, scores = self.decode(np.ascontiguousarray(maps[:depth]), **where)
        return to_instances(labels, scores, maps[depth:] if len(maps) > depth else None)


def target_of(config: AnyTarget) -> Target:
    """The target of a recipe's ``model.target`` section, whose fields are the decoder's keyword arguments."""
    options = config.model_dump(exclude={"kind"})
    match config:
        case SemanticTarget():
            return Target(semantic.CHANNELS, semantic.encode, partial(semantic.decode, **options))
        case WatershedTarget():
            return Target(watershed.CHANNELS, watershed.encode, partial(watershed.decode, **options))
        case FlowTarget():
            return Target(flow.CHANNELS, flow.encode, partial(flow.decode, **options))
        case StarsTarget():
            n_rays = options.pop("n_rays")
            encode = partial(stars.encode, n_rays=n_rays)
            return Target(stars.channels(n_rays), encode, partial(stars.decode, **options), needs_place=True)
        case CellposeTarget():
            decode = partial(cellpose.decode, **options)
            return Target(cellpose.CHANNELS, flow.encode, decode, needs_place=True, antialias=False)
