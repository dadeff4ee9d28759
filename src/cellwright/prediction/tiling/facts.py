"""What a network needs to know about a whole image before it sees any tile: found once, and stored with the job."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.errors import FormatError
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.masks import MAX_SIDE
from cellwright.core.notes import Note
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.pixels import finite_limits
from cellwright.data.images.source import ImageSource
from cellwright.data.network_input import (
    ResizeRule,
    limit_percents,
    limits_from,
    network_channels,
    network_hw,
    normalised,
    resampled,
    scaled,
    scaled_hw,
)
from cellwright.data.value_range import (
    OUTLIER_PERCENTILE,
    PERCENTILES,
    ImageValues,
    TrainingValues,
    input_for_values,
    outlier_notes,
)
from cellwright.prediction.diameter import Detect, Diameter, Estimate, estimate_diameter, estimate_notes, levels_of
from cellwright.prediction.tiling.statistics import FiniteSource, read_block, readable_blocks, values_of

# Up to this size the diameter is estimated on the whole image, as for small ones; above it on several regions.
WHOLE_ESTIMATE_PX = 2304 * 2304
REGION_PX = 1024
N_REGIONS = 7


@dataclass(frozen=True)
class ImageFacts:
    """The facts of one image.

    source_hw: (H, W). net_hw: (h, w) at the network's scale. full_range: ``input.full_range`` for this image. scale:
    ``input.scale`` for this image, if its pixel size decides it.
    limits: for percentile normalisation those of each network channel, see `Limits`; else ().
    finite: the values (low, high) of each channel that replace NaN and infinity; () if all pixels are finite.
    diameter: see `Diameter`; None for networks that do not use one. notes: what was assumed. method: facts of a method
    that is no network, as JSON values. members: of the second and other members of an ensemble.
    """

    source_hw: tuple[int, int]
    net_hw: tuple[int, int]
    full_range: float | None = None
    limits: tuple[tuple[float, ...], ...] = ()
    finite: tuple[tuple[float, float], ...] = ()
    scale: float | None = None
    diameter: Diameter | None = None
    notes: tuple[Note, ...] = ()
    method: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[ImageFacts, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ImageFacts:
        """The opposite of `to_dict`. Raises `FormatError` for missing or invalid values."""
        try:
            diameter = values["diameter"]
            (height, width), (h, w) = values["source_hw"], values["net_hw"]
            facts = ImageFacts(
                (int(height), int(width)),
                (int(h), int(w)),
                None if values["full_range"] is None else float(values["full_range"]),
                tuple((*map(float, (low, high, *base[:1])),) for low, high, *base in values["limits"]),
                tuple((float(low), float(high)) for low, high in values.get("finite", ())),
                None if values.get("scale") is None else float(values["scale"]),
                None if diameter is None else Diameter(**diameter),
                tuple(Note(**{name: str(text) for name, text in note.items()}) for note in values["notes"]),
                dict(values.get("method", {})),
                tuple(ImageFacts.from_dict(member) for member in values.get("members", ())),
            )
            sizes, numbers = (*facts.source_hw, *facts.net_hw), [facts.full_range or 1.0, facts.scale or 1.0]
            numbers += [*np.ravel(facts.limits), *np.ravel(facts.finite)]
            if facts.diameter is not None:
                numbers += [facts.diameter.px or 1.0, facts.diameter.scale, facts.diameter.requested_scale or 1.0]
            if min(sizes) < 1 or max(sizes) > 8 * MAX_SIDE or not np.isfinite(numbers).all():
                raise ValueError("a size or a number is out of range")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            remedy = "start the job again in another folder"
            raise FormatError("the facts of this image are damaged", got=str(error), remedy=remedy) from error
        return facts

    def config(self, config: InputConfig) -> InputConfig:
        """The network's input configuration, with the range and the scale of this image."""
        own = {"full_range": self.full_range, "scale": self.scale}
        return config.model_copy(update={name: value for name, value in own.items() if value is not None})

    def normalised(self, region: Image, config: InputConfig) -> np.ndarray:
        """A region (C, H, W) float32, with the normalisation of the whole image."""
        return normalised(network_channels(region, config), self.config(config), self.limits or None)

    def seen(self, source: ImageSource) -> ImageSource:
        """The source without NaN and infinity."""
        finite: Any = FiniteSource(source, self.finite)
        return finite if self.finite else source


def found_finite(source: ImageSource) -> tuple[ImageSource, ImageFacts, tuple[Note, ...]]:
    """The source without NaN and infinity, facts that say what replaces them, and a note; float32 is read for it.

    Raises `InputError` for a channel without a finite value.
    """
    regions = (region for _, region in readable_blocks(source)) if source.dtype.kind == "f" else ()
    finite, notes = finite_limits(regions)
    facts = ImageFacts(source.image_hw, source.image_hw, finite=finite)
    return facts.seen(source), facts, notes


def find_facts(
    source: ImageSource,
    config: InputConfig,
    rule: ResizeRule,
    detect: Detect,
    *,
    training: TrainingValues | None = None,
    diameter_px: float | None = None,
    trained_um: float | None = None,
    track: Track = no_progress,
) -> ImageFacts:
    """The facts of an image for a network; ``source`` has the channels that it sees, all finite.

    detect: the scored objects of a network input (C, h, w), for the estimate of the diameter. diameter_px: given by the
    user; None estimates it where ``config`` needs one. trained_um: pixel size of the training images, see `resampled`.

    Reads the image once (float32 twice), block by block. Raises `InputError` for channels that do not fit.
    """
    n_levels = math.inf
    facts, notes = ImageFacts(source.image_hw, source.image_hw), tuple[Note, ...]()
    if config.normalise == "percentile":
        percents = limit_percents(config)
        extremes = (0, 100, OUTLIER_PERCENTILE, 100 - OUTLIER_PERCENTILE)
        together = percents if config.percentiles_of == "image" else ()
        channels = partial(network_channels, config=config)
        values = values_of(source, channels, (*percents, *extremes), together, track=track)
        lowest, highest, *ends = np.array(values.percentiles, np.float32)[:, len(percents) :].T
        n_levels = levels_of(source.dtype, float(lowest.min()), float(highest.max()))
        limits = limits_from([values.pooled or p[: len(percents)] for p in values.percentiles], config)
        facts = replace(facts, limits=tuple((*map(float, row),) for row in limits))
        beyond = scaled(np.stack(ends, axis=1)[:, :, None], limits)
        notes = outlier_notes(max(float(beyond.max()), -float(beyond.min()) if config.background == "dark" else 0.0))
    else:
        values = values_of(source, lambda region: region.data, (), PERCENTILES, track=track)
        probe = ImageValues(str(source.dtype), values.highest, *values.pooled)
        own, range_notes = input_for_values(probe, config, training, source.path or "")
        notes = (*notes, *range_notes)
        facts = replace(facts, full_range=own.full_range)
    if config.diameter_px is None:
        sized, size_notes = resampled(config, source.pixel_size_um, trained_um)
        facts = replace(facts, scale=sized.scale if size_notes else None, notes=(*notes, *size_notes))
        return replace(facts, net_hw=network_hw(source.image_hw, sized, rule))
    estimate, estimated = Estimate(diameter_px), diameter_px is None
    if estimated:
        estimate = _estimate(source, facts, config, detect, n_levels)
    # Tiles are enlarged one by one, so that the limit for whole images does not apply.
    diameter = Diameter.of(estimate.px, (1, 1), config, estimated=estimated, is_noise=estimate.is_noise)
    notes = (*notes, *estimate_notes(estimate, n_levels=n_levels))
    net_hw = scaled_hw(source.image_hw, diameter.scale, config.resampling)
    return replace(facts, net_hw=net_hw, diameter=diameter, notes=notes)


def _estimate(source: ImageSource, facts: ImageFacts, config: InputConfig, detect: Detect, n_levels: float) -> Estimate:
    """The median diameter: of the whole image if it is small, else the median over several regions of it.

    Regions with a sure estimate count if there are any. The estimate is sure if at least half of those with objects
    are, and the image is noise only if all regions are.
    """
    assert config.diameter_px is not None
    height, width = source.image_hw
    is_small = height * width <= WHOLE_ESTIMATE_PX
    windows = [Window(0, 0, height, width)] if is_small else _varied_regions(source, config)
    estimates = []
    for window in windows:
        pixels = facts.normalised(read_block(source, window), config)
        estimates.append(estimate_diameter(pixels, config.diameter_px, detect, n_levels=n_levels))
    found = [estimate for estimate in estimates if estimate.px is not None]
    sure = [estimate for estimate in found if estimate.is_sure]
    px = float(np.median([estimate.px for estimate in sure or found])) if found else None
    is_noise = all(estimate.is_noise for estimate in estimates)
    return Estimate(px, is_noise=is_noise, is_sure=2 * len(sure) >= len(found))


def _varied_regions(source: ImageSource, config: InputConfig) -> list[Window]:
    """Regions of `REGION_PX`, evenly chosen among the fifth of the image in which brightness varies most."""
    height, width = source.image_hw
    spread: list[tuple[float, int, int]] = []
    for block, region in readable_blocks(source):
        grey = network_channels(region, config).mean(axis=2, dtype=np.float32)
        for y in range(0, max(grey.shape[0] - REGION_PX // 2, 1), REGION_PX):
            for x in range(0, max(grey.shape[1] - REGION_PX // 2, 1), REGION_PX):
                part = grey[y : y + REGION_PX : 2, x : x + REGION_PX : 2]
                low, high = np.percentile(part, (0.1, 99.9))
                spread.append((float(np.clip(part, low, high).std()), block.y0 + y, block.x0 + x))
    spread.sort(key=lambda one: (-one[0], one[1:]))
    varied = spread[: max(len(spread) // 5, N_REGIONS)]
    chosen = [varied[k * (len(varied) - 1) // max(N_REGIONS - 1, 1)] for k in range(N_REGIONS)]
    return [Window(y, x, min(y + REGION_PX, height), min(x + REGION_PX, width)) for _, y, x in dict.fromkeys(chosen)]
