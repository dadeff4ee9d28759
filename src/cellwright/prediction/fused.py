"""Several models as one: each finds the objects of an image, and what they find is fused before it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.models.contract import Segmenter
from cellwright.prediction.diameter import Diameter, find
from cellwright.prediction.fusion import FusionOptions, fuse


@dataclass(frozen=True, eq=False)
class FusedSegmenter:
    """Members of any family with the same classes: a `Segmenter`.

    members: one at least; they should give all that they find, on calibrated scores where their families differ.
    options: ``options.weights`` is one a member. `UsageError` where it is not.
    """

    members: tuple[Segmenter, ...]
    options: FusionOptions

    def __post_init__(self) -> None:
        self.options.weights_of(len(self.members))

    def predict(self, images: Sequence[Image]) -> list[Instances]:
        """One `Instances` an image, best first; no images, no results. Raises what the members raise."""
        return [found for found, _ in self.find(images)]

    def find(self, images: Sequence[Image]) -> list[tuple[Instances, Diameter | None]]:
        """As `predict`, each with the diameter by which the first member that goes by one resized the image."""
        found = [find(member, images) for member in self.members]
        results: list[tuple[Instances, Diameter | None]] = []
        for of_image in zip(*found, strict=True):
            diameters = [diameter for _, diameter in of_image if diameter is not None]
            fused = fuse([instances for instances, _ in of_image], self.options)
            results.append((fused, diameters[0] if diameters else None))
        return results
