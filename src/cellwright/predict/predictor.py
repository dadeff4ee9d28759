"""From images to objects at the images' own resolution: a network with its input recipe, a segmenter with options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from cellwright.config.input_schema import InputConfig
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.network_input import resize_for_network
from cellwright.models.contract import Explains, Network, Segmenter
from cellwright.ops.batch import stack_images
from cellwright.predict.options import Outcome, PredictOptions, select


@dataclass(frozen=True, eq=False)
class NetworkSegmenter:
    """A `Network` and how its images are made: a `Segmenter`. All that the network finds is given.

    network: is put into evaluation mode for each call and left there; it must be on ``device``.
    input_config: channels, normalisation and size, as the network was trained.
    resize_rule: whose resize, "torchvision" or "detectron2" (the recipe's ``conventions``).
    batch_size: images of one forward pass. It does not change which objects a network finds beyond rounding.
    """

    network: Network
    input_config: InputConfig
    resize_rule: Literal["torchvision", "detectron2"] = "torchvision"
    device: torch.device | str = "cpu"
    batch_size: int = 1

    def predict(self, images: Sequence[Image]) -> list[Instances]:
        """One `Instances` an image at its own resolution, best first; no images, no results.

        Raises `InputError` where an image's channels do not fit the network.
        """
        self.network.eval()
        found: list[Instances] = []
        with torch.inference_mode():
            for start in range(0, len(images), self.batch_size):
                found.extend(self._detect(images[start : start + self.batch_size]))
        return found

    def candidates(self, image: Image, near_xyxy: np.ndarray) -> Instances | None:
        """What became of the network's candidates that overlap boxes (N, 4); None where it cannot tell.

        A column ``dropped_by`` says "threshold", "nms", "cap" or "kept" (see ``Explains``).
        """
        if not isinstance(self.network, Explains):
            return None
        self.network.eval()
        made = torch.from_numpy(resize_for_network(image, self.input_config, self.resize_rule))
        stacked, (input_hw,) = stack_images([made], self.network.stride)
        near = torch.as_tensor(near_xyxy, dtype=torch.float32, device=self.device)
        with torch.inference_mode():
            return self.network.candidates(stacked.to(self.device), input_hw, image.image_hw, near)

    def _detect(self, images: Sequence[Image]) -> list[Instances]:
        inputs = [torch.from_numpy(resize_for_network(image, self.input_config, self.resize_rule)) for image in images]
        stacked, input_hws = stack_images(inputs, self.network.stride)
        output_hws = [image.image_hw for image in images]
        return [one.by_score() for one in self.network.detect(stacked.to(self.device), input_hws, output_hws)]


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
        """As `predict`, with what the options and the model's cap left out."""
        return [select(found, self.options, self.model_cap) for found in self.segmenter.predict(images)]
