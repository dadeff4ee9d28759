"""From images to objects at the images' own resolution: a network with its input recipe, a segmenter with options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.input import InputConfig
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.network_input import rescale, resize_for_network, to_network
from cellwright.data.views import PLAIN, View
from cellwright.models.contract import DetectsViews, Explains, Network, Segmenter
from cellwright.ops.batch import stack_images
from cellwright.prediction.diameter import Diameter, estimate_diameter, find
from cellwright.prediction.fused import FusedSegmenter
from cellwright.prediction.options import Outcome, PredictOptions, select


@dataclass(frozen=True, eq=False)
class NetworkSegmenter:
    """A `Network` and how its images are made: a `Segmenter`. All that the network finds is given.

    network: is put into evaluation mode for each call and left there; it must be on ``device``.
    input_config: channels, normalisation and size, as the network was trained.
    resize_rule: whose resize, "torchvision" or "detectron2" (the recipe's ``conventions``).
    batch_size: images of one forward pass. It does not change which objects a network finds beyond rounding.
    diameter_px: median diameter of the images' objects, px of the image, for a network whose recipe sets
        ``input.diameter_px``; None estimates it for each image.
    views: in which it looks at each image. The plain one alone is the network as it was trained.
    """

    network: Network
    input_config: InputConfig
    resize_rule: Literal["torchvision", "detectron2"] = "torchvision"
    device: torch.device | str = "cpu"
    batch_size: int = 1
    diameter_px: float | None = None
    views: tuple[View, ...] = PLAIN

    def predict(self, images: Sequence[Image]) -> list[Instances]:
        """One `Instances` an image at its own resolution, best first; no images, no results.

        Raises `InputError` where an image's channels do not fit the network.
        """
        return [found for found, _ in self.find(images)]

    def find(self, images: Sequence[Image]) -> list[tuple[Instances, Diameter | None]]:
        """As `predict`, each with the diameter by which the image was resized; None for networks that ask for none."""
        self.network.eval()
        found: list[tuple[Instances, Diameter | None]] = []
        with torch.inference_mode():
            for start in range(0, len(images), self.batch_size):
                found.extend(self._find(images[start : start + self.batch_size]))
        return found

    def candidates(self, image: Image, near_xyxy: np.ndarray) -> Instances | None:
        """What became of the network's candidates that overlap boxes (N, 4); None where it cannot tell.

        A column ``dropped_by`` says "threshold", "nms", "cap" or "kept" (see ``Explains``).
        """
        if not isinstance(self.network, Explains):
            return None
        self.network.eval()
        near = torch.as_tensor(near_xyxy, dtype=torch.float32, device=self.device)
        with torch.inference_mode():
            stacked, (input_hw,) = self._stack([self._input(image)[0]])
            return self.network.candidates(stacked, input_hw, image.image_hw, near)

    def _find(self, images: Sequence[Image]) -> list[tuple[Instances, Diameter | None]]:
        if self.views != PLAIN:
            return [self._find_in_views(image) for image in images]
        inputs, diameters = zip(*(self._input(image) for image in images), strict=True)
        found = self.network.detect(*self._stack(inputs), [image.image_hw for image in images])
        return [(one.by_score(), diameter) for one, diameter in zip(found, diameters, strict=True)]

    def _find_in_views(self, image: Image) -> tuple[Instances, Diameter | None]:
        if not isinstance(self.network, DetectsViews):
            got = type(self.network).__name__
            raise UsageError("this network does not support views", where="views", got=got, remedy="omit `views`")
        resize, diameter = self._sized(image)
        resized: dict[object, np.ndarray] = {}

        def look(view: View) -> tuple[torch.Tensor, tuple[int, int]]:
            if view.size not in resized:  # views of one size stand together
                resized.clear()
                resized[view.size] = resize(view)
            stacked, (input_hw,) = self._stack([view.turn(resized[view.size])])
            return stacked, input_hw

        return self.network.detect_views(self.views, look, image.image_hw).by_score(), diameter

    def _input(self, image: Image) -> tuple[np.ndarray, Diameter | None]:
        """What the network sees of an image (C, h, w), and the diameter that this went by."""
        resize, diameter = self._sized(image)
        return resize(View()), diameter

    def _sized(self, image: Image) -> tuple[Callable[[View], np.ndarray], Diameter | None]:
        """What makes the input (C, h, w) at a view's size, not turned, and the diameter that this goes by."""
        config = self.input_config
        if config.diameter_px is None:
            return lambda view: resize_for_network(image, view.input_config(config), self.resize_rule), None
        pixels, px = to_network(image, config), self.diameter_px
        if px is None:
            px = estimate_diameter(pixels, config.diameter_px, self._look)

        def resize(view: View) -> np.ndarray:
            # To enlarge an image further is to take its objects for smaller ones; the same limits hold.
            seen = None if px is None else Diameter.of(px / view.scale, image.image_hw, config, estimated=False)
            return rescale(pixels, view.scale if seen is None else seen.scale)

        return resize, Diameter.of(px, image.image_hw, config, estimated=self.diameter_px is None)

    def _look(self, pixels: np.ndarray) -> Instances:
        """The objects of one network input (C, h, w), at its own size."""
        stacked, input_hws = self._stack([pixels])
        return self.network.detect(stacked, input_hws, input_hws)[0]

    def _stack(self, inputs: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        stacked, input_hws = stack_images([torch.from_numpy(one) for one in inputs], self.network.stride)
        return stacked.to(self.device), input_hws


@dataclass(frozen=True, eq=False)
class Predictor:
    """Any `Segmenter` with the options of a result: what a loaded model is, and a `Segmenter` itself.

    model_cap: the most objects that the segmenter gives for an image, None where it has no cap.
    """

    segmenter: Segmenter
    options: PredictOptions = field(default_factory=PredictOptions)
    model_cap: int | None = None

    def predict(self, images: Sequence[Image]) -> list[Instances]:
        """One `Instances` an image: best first, ids 1..N."""
        return [outcome.instances for outcome in self.outcomes(images)]

    def outcomes(self, images: Sequence[Image]) -> list[Outcome]:
        """As `predict`, with what the options and the model's cap left out, and the diameters of the images."""
        return [
            replace(select(found, self.options, self.model_cap), diameter=diameter)
            for found, diameter in find(self.segmenter, images)
        ]

    def find(self, images: Sequence[Image]) -> list[tuple[Instances, Diameter | None]]:
        """As `predict`, each with the diameter by which the image was resized; None where that was by none."""
        return [(outcome.instances, outcome.diameter) for outcome in self.outcomes(images)]

    def with_diameter(self, px: float) -> Predictor:
        """For images whose objects have the median diameter ``px``, pixels of the image.

        Raises `UsageError` where that is no size, and for a model that does not go by a diameter.
        """
        if not (px > 0 and math.isfinite(px)):
            raise UsageError("this is no diameter", where="diameter", got=px, expected="pixels of the image, above 0")
        segmenter = self.segmenter
        if not isinstance(segmenter, NetworkSegmenter) or segmenter.input_config.diameter_px is None:
            raise UsageError(
                "this model does not go by a diameter: it sees every image at one scale",
                where="diameter",
                got=f"{px:g} px",
                expected="a model whose recipe sets input.diameter_px, such as nuclei",
                remedy="leave the diameter out",
            )
        return replace(self, segmenter=replace(segmenter, diameter_px=px))

    def with_views(self, views: Sequence[View]) -> Predictor:
        """One that looks at every image in these views; of several models each one does.

        Raises `UsageError` for a method that has no views, and for short sides where a diameter decides the size.
        """
        return replace(self, segmenter=_with_views(self.segmenter, tuple(views)))


def _with_views(segmenter: Segmenter, views: tuple[View, ...]) -> Segmenter:
    match segmenter:
        case Predictor():
            return segmenter.with_views(views)
        case FusedSegmenter():
            return replace(segmenter, members=tuple(_with_views(member, views) for member in segmenter.members))
        case NetworkSegmenter():
            for view in views:
                view.input_config(segmenter.input_config)
            return replace(segmenter, views=views)
    raise UsageError(
        "only networks look at images in views; the classical method sees the same in each",
        where="views",
        remedy="leave the views out",
    )


def network_predictor(network: Network, recipe: Recipe, device: torch.device) -> Predictor:
    """A predictor that keeps everything the network finds; the network is moved to ``device``."""
    network.to(device)
    segmenter = NetworkSegmenter(network, recipe.input, CONVENTIONS[recipe.conventions].resize_rule, device)
    model_cap = recipe.model.box_head.detections_per_image if isinstance(recipe.model, RCNNConfig) else None
    return Predictor(segmenter, model_cap=model_cap)
