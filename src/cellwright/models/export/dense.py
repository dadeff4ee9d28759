"""The dense family as one graph, images to maps, and what turns maps into objects: a program without cellwright."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.export.onnx import Axis, Graph
from cellwright.models.export.program import rules_of_maps


class Maps(nn.Module):
    """A dense network as a module: FloatTensor[B,C,H,W] -> FloatTensor[B,D+K,H,W], as `DensePrediction.maps`."""

    def __init__(self, network: DenseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.activated(self.network.unet(images)[0])


def graphs_of(network: DenseNetwork) -> list[Graph]:
    """The whole network, in evaluation mode."""
    unet = network.unet
    sides = Axis("height", network.stride, 64), Axis("width", network.stride, 64)
    return [
        Graph(
            name="maps",
            module=Maps(network),
            inputs={"images": (Axis("batch"), unet.in_channels, *sides)},
            outputs={"maps": ("batch", unet.out_channels, "height", "width")},
        )
    ]


def rules_of(network: DenseNetwork) -> dict[str, Any]:
    """See `rules_of_maps`."""
    return rules_of_maps(network)
