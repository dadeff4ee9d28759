"""Several models as one: each finds the objects of an image, and what they find is fused before it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.models.contract import Segmenter
from cellwright.predict.fusion import FusionOptions, fuse


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
        found = [member.predict(images) for member in self.members]
        return [fuse(of_image, self.options) for of_image in zip(*found, strict=True)]
