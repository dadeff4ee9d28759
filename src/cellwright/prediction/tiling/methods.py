"""Tiles of methods that are no networks (the classical one, a `Segmenter` of the user's own), and of ensembles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from cellwright.core.errors import FormatError, InputError
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.channels import is_stained
from cellwright.data.images.source import ImageSource
from cellwright.models.classical import (
    WHITE_PERCENT,
    ClassicalFacts,
    ClassicalSegmenter,
    Region,
    SignalFacts,
    opaque_channels,
)
from cellwright.prediction.fusion import fuse
from cellwright.prediction.options import PredictOptions, select
from cellwright.prediction.predictor import Choice, Ensemble, SegmenterPredictor
from cellwright.prediction.record import Prediction
from cellwright.prediction.tiling.cut import cut_to
from cellwright.prediction.tiling.facts import ImageFacts
from cellwright.prediction.tiling.grid import Grid, Tile, aligned_window
from cellwright.prediction.tiling.statistics import blocks, read_block, readable_blocks, values_of
from cellwright.prediction.tiling.work import TileModel

# The classical method: how far the surroundings count, in diameters, and the largest object with its neighbours.
REACH_DIAMETERS, OBJECT_DIAMETERS = 8, 4
# Facts of large images come from at most so many regions, evenly chosen, with a margin of so many px.
MAX_REGIONS, REGION_MARGIN_PX = 24, 256
# Margin of a method that is not known, px.
SEGMENTER_MARGIN_PX = 256
METHOD_BYTES_PER_PX = 200
SAMPLED = "the thresholds are those of a part of the image"
ON_WINDOWS = "a method of your own was applied to windows of the image"


@dataclass(frozen=True)
class _Windows:
    """What tiles share whose network pixels are those of the image."""

    bytes_per_px = whole_bytes_per_px = METHOD_BYTES_PER_PX

    def margin_px(self, facts: ImageFacts) -> int:
        """Around the core, px."""
        raise NotImplementedError

    def grid(self, facts: ImageFacts, core_px: int) -> Grid:
        """The tiles of an image, see `TileModel`."""
        return Grid(facts.source_hw, facts.source_hw, 1, core_px, self.margin_px(facts))

    def covering(self, facts: ImageFacts, core: Window, output: Window) -> Tile:
        """See `TileModel`."""
        window = aligned_window(output, facts.source_hw, facts.source_hw, 1, self.margin_px(facts))
        return Tile(0, 0, 0, core, window, output)


@dataclass(frozen=True)
class ClassicalTiles(_Windows):
    """The classical method, with the thresholds of the whole image."""

    segmenter: ClassicalSegmenter

    def margin_px(self, facts: ImageFacts) -> int:
        """By the diameter of the objects."""
        return math.ceil((REACH_DIAMETERS + OBJECT_DIAMETERS) * classical_facts(facts).diameter)

    def facts(self, source: ImageSource, *, track: Track = no_progress) -> ImageFacts:
        """The thresholds, from the whole image or, if it is large, from regions of it."""
        values = values_of(source, opaque_channels, (), (0, WHITE_PERCENT, 100), track=track)
        low, white, highest = values.pooled
        low = min(low, 0.0)
        regions, n_all = _regions(source)
        found = self.segmenter.facts(regions, (low, white if white > low else highest))
        notes = () if len(regions) == n_all else (Note(SAMPLED, f"they were found in {len(regions)} of {n_all} parts"),)
        return ImageFacts(source.image_hw, source.image_hw, notes=notes, method=asdict(found))

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """See `TileModel`."""
        found = self.segmenter.segment_part(read_block(source, tile.window), classical_facts(facts))
        return cut_to(found, tile.window, tile.output)


@dataclass(frozen=True)
class SegmenterTiles(_Windows):
    """A `Segmenter` of the user's own, applied to windows with a margin."""

    predictor: SegmenterPredictor

    def margin_px(self, facts: ImageFacts) -> int:
        """A generic one."""
        return SEGMENTER_MARGIN_PX

    def facts(self, source: ImageSource, *, track: Track = no_progress) -> ImageFacts:
        """None, with a note."""
        name = type(self.predictor.segmenter).__name__
        text = (
            f"{name} sees windows with a margin of {SEGMENTER_MARGIN_PX} px: what it derives from a whole image, such "
            "as a threshold, may differ between them"
        )
        return ImageFacts(source.image_hw, source.image_hw, notes=(Note(ON_WINDOWS, text),))

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """See `TileModel`."""
        (found,) = self.predictor.predict([read_block(source, tile.window)])
        return cut_to(found.instances, tile.window, tile.output)


class _Several:
    """Several models, which are applied one after the other."""

    members: tuple[TileModel, ...]

    @property
    def bytes_per_px(self) -> float:
        """That of the largest."""
        return max(member.bytes_per_px for member in self.members)

    @property
    def whole_bytes_per_px(self) -> float:
        """See `bytes_per_px`."""
        return max(member.whole_bytes_per_px for member in self.members)


@dataclass(frozen=True)
class EnsembleTiles(_Several):
    """Several models whose objects are fused in each tile; the tiles are those of the first.

    options: which objects of each member count.
    """

    ensemble: Ensemble
    members: tuple[TileModel, ...]
    options: tuple[PredictOptions, ...]

    def facts(self, source: ImageSource, *, track: Track = no_progress) -> ImageFacts:
        """Those of the first member, with those of the others."""
        first, *others = (member.facts(source, track=track) for member in self.members)
        notes = dict.fromkeys(note for facts in (first, *others) for note in facts.notes)
        return replace(first, notes=tuple(notes), members=tuple(others))

    def grid(self, facts: ImageFacts, core_px: int) -> Grid:
        """That of the first member."""
        return self.members[0].grid(facts, core_px)

    def covering(self, facts: ImageFacts, core: Window, output: Window) -> Tile:
        """See `TileModel`."""
        return self.members[0].covering(facts, core, output)

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """The fused objects, see `TileModel`."""
        core = Grid(facts.source_hw, facts.net_hw, 1, 1, 0).source_window(tile.core)
        found = []
        for k, (member, options) in enumerate(zip(self.members, self.options, strict=True)):
            own = facts if k == 0 else facts.members[k - 1]
            of_member = tile if k == 0 else member.covering(own, core, tile.output)
            objects = member.objects(source, own, of_member)
            found.append(select(Prediction.of(objects), options).instances)
        return fuse(found, self.ensemble.options)


@dataclass(frozen=True)
class ChoiceTiles(_Several):
    """Two networks, of which the image gets one; the facts say which."""

    choice: Choice
    members: tuple[TileModel, ...]

    def facts(self, source: ImageSource, *, track: Track = no_progress) -> ImageFacts:
        """Those of the network that the colours choose: a slide with stained regions has others that are only glass."""
        try:
            shown = (region.read() for region in _regions(source)[0])
        except InputError:  # what can be decoded is smaller than a region
            shown = (block for _, block in readable_blocks(source))
        names, k = self.choice.names, int(any(map(is_stained, shown)))
        return replace(self.members[k].facts(source, track=track), method={"network": names[k]})

    def grid(self, facts: ImageFacts, core_px: int) -> Grid:
        """See `TileModel`."""
        return self._chosen(facts)[1].grid(facts, core_px)

    def covering(self, facts: ImageFacts, core: Window, output: Window) -> Tile:
        """See `TileModel`."""
        return self._chosen(facts)[1].covering(facts, core, output)

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """See `TileModel`; scores are calibrated."""
        k, member = self._chosen(facts)
        return self.choice.options[k].calibrated(member.objects(source, facts, tile))

    def _chosen(self, facts: ImageFacts) -> tuple[int, TileModel]:
        name = facts.method.get("network")
        if name not in self.choice.names:
            remedy, expected = "start the job again in another folder", " or ".join(self.choice.names)
            raise FormatError("the facts of this image are damaged", got=name, expected=expected, remedy=remedy)
        k = self.choice.names.index(name)
        return k, self.members[k]


def classical_facts(facts: ImageFacts) -> ClassicalFacts:
    """The facts that `ClassicalTiles.facts` found. Raises `FormatError` if they are damaged."""
    try:
        values = dict(facts.method)
        signal = dict(values.pop("signal"))
        kind, level = signal.pop("kind"), values.pop("level")
        if kind not in ("stain", "bright", "dark"):
            raise ValueError(f"a signal of kind {kind!r}")
        numbers = {name: float(value) for name, value in values.items()}
        signal = SignalFacts(kind, **{name: float(value) for name, value in signal.items()})
        found = ClassicalFacts(signal, level=None if level is None else float(level), **numbers)
        if not 0 < found.diameter < math.inf:
            raise ValueError(f"a diameter of {found.diameter:g} px")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        remedy = "start the job again in another folder"
        raise FormatError("the facts of this image are damaged", got=str(error), remedy=remedy) from error
    return found


def _regions(source: ImageSource) -> tuple[Sequence[Region], int]:
    """Regions that cover an image, or evenly chosen ones, without those that cannot be decoded; how many there are."""
    windows = list(blocks(source.image_hw, source.tile_hw))
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(len(windows), MAX_REGIONS)).astype(int)).tolist()
    regions = []
    for window in (windows[k] for k in chosen):
        (height, width), margin = source.image_hw, REGION_MARGIN_PX
        y0, x0 = max(window.y0 - margin, 0), max(window.x0 - margin, 0)
        around = Window(y0, x0, min(window.y1 + margin, height), min(window.x1 + margin, width))
        inside = Window(window.y0 - y0, window.x0 - x0, window.y1 - y0, window.x1 - x0)
        read: Callable[[], Image] = partial(read_block, source, around)
        try:
            image = read()
        except FormatError:
            continue
        # A single region is kept; of several, none.
        regions.append(Region((lambda kept=image: kept) if len(windows) == 1 else read, inside))
    if not regions:
        remedy = "copy or download the file again"
        raise InputError("no part of this image can be decoded", where=source.path, remedy=remedy)
    return regions, len(windows)
