"""The dense family as one graph: images to maps before any activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.export.onnx import Axis, Graph


class _FullSize(nn.Module):
    def __init__(self, network: DenseNetwork) -> None:
        super().__init__()
        self.unet = network.unet

    def forward(self, images: Tensor) -> Tensor:
        return self.unet(images)[0]


def graph_of(network: DenseNetwork) -> Graph:
    """The whole network, in evaluation mode."""
    unet = network.unet
    sides = Axis("height", network.stride, 64), Axis("width", network.stride, 64)
    return Graph(
        name="maps",
        module=_FullSize(network),
        inputs={"images": (Axis("batch"), unet.in_channels, *sides)},
        outputs={"maps": ("batch", unet.out_channels, "height", "width")},
    )


def rules_of(network: DenseNetwork) -> dict[str, Any]:
    """What the maps are, in order."""
    classes = [f"class_{index}" for index in range(network.n_classes)] if network.n_classes > 1 else []
    return {
        "stride": network.stride,
        "channels": [*network.target.channels, *classes],
        "steps": [
            "pad images right and below with zeros to a multiple of stride, run maps, cut the padding off",
            "flow channels are values; every other map goes through a sigmoid, classes through a softmax",
            "make objects of the maps as docs/models.md describes for this target",
        ],
    }
