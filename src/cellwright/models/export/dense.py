"""The dense family as one graph: images to maps before any activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.prediction import RAY_UNIT_PX
from cellwright.models.export.onnx import Axis, Graph


class _FullSizeMaps(nn.Module):
    """The U-Net without the maps of coarser stages: FloatTensor[B,C,H,W] -> FloatTensor[B,D,H,W]."""

    def __init__(self, network: DenseNetwork) -> None:
        super().__init__()
        self.unet = network.unet

    def forward(self, images: Tensor) -> Tensor:
        return self.unet(images)[0]


def graphs_of(network: DenseNetwork) -> list[Graph]:
    """The whole network, in evaluation mode."""
    unet = network.unet
    sides = Axis("height", network.stride, 64), Axis("width", network.stride, 64)
    return [
        Graph(
            name="maps",
            module=_FullSizeMaps(network),
            inputs={"images": (Axis("batch"), unet.in_channels, *sides)},
            outputs={"maps": ("batch", unet.out_channels, "height", "width")},
        )
    ]


def rules_of(network: DenseNetwork) -> dict[str, Any]:
    """The names of the maps, in order, and the steps from an image to objects."""
    classes = [f"class_{index}" for index in range(network.n_classes)] if network.n_classes > 1 else []
    rays = f", ray channels times {RAY_UNIT_PX:g} px" if "ray_0" in network.target.channels else ""
    return {
        "stride": network.stride,
        "channels": [*network.target.channels, *classes],
        "steps": [
            "pad images with zeros at the right and bottom to a multiple of stride, run maps, remove the padding",
            f"flow channels are used as they are{rays}; apply a sigmoid to every other map, and a softmax to the class "
            "maps",
            "convert the maps to objects as docs/models.md describes for this target",
        ],
    }
