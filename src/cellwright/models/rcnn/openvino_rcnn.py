"""Mask R-CNN on the CPU, its convolutional parts in OpenVINO; proposals, pooling and pasting stay in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cellwright.config.conventions import Conventions
from cellwright.config.model_rcnn import MaskRCNNConfig
from cellwright.models.openvino_graph import CompiledGraph, Nodes
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.openvino_parts import Parts
from cellwright.models.rcnn.rpn import RPN


class OpenVINOMaskRCNN(MaskRCNN):
    """`MaskRCNN` in evaluation mode, without parameters. OpenVINO is imported when it is first used.

    Args:
        config: one that `openvino_parts` supports.
        arrays: of a model folder, by the names of `MaskRCNN`, which must be those of this network.
        threads: see `CompiledGraph`.
    """

    backend = "openvino"

    def __init__(
        self,
        config: MaskRCNNConfig,
        conventions: Conventions,
        arrays: Mapping[str, np.ndarray],
        *,
        in_channels: int,
        n_classes: int,
        threads: int | None = None,
    ) -> None:
        nn.Module.__init__(self)  # the parts are not those of `MaskRCNN`
        config = config.resolved(conventions)
        self.config, self.conventions, self.n_classes = config, conventions, n_classes

        def part(make: Callable[[Parts], Nodes]) -> _Part:
            return _Part(CompiledGraph(lambda: make(Parts(config, arrays, in_channels)), threads))

        self.trunk = part(Parts.trunk)
        self.rpn = RPN(config, conventions, config.fpn.channels, _RPNHead(part(Parts.rpn_head)))
        self.box_head = nn.ModuleList([part(Parts.box_head)])
        self.mask_head = _MaskHead(part(Parts.mask_head))

    def features(self, images: Tensor) -> list[Tensor]:
        """See `MaskRCNN.features`."""
        return self.trunk(images)


class _Part(nn.Module):
    """A graph of OpenVINO as a module: FloatTensor[N,...] -> FloatTensor[N,...] each; N may be 0."""

    def __init__(self, graph: CompiledGraph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> list[Tensor]:
        if not len(x):  # OpenVINO takes no empty batch
            return [result[:0] for result in self(x.new_zeros((1, *x.shape[1:])))]
        return [torch.from_numpy(result) for result in self.graph(x.numpy())]


class _RPNHead(nn.Module):
    """See `RPNHead`."""

    def __init__(self, part: _Part) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = zip(*(self.part(feature) for feature in features), strict=True)
        return list(logits), list(deltas)


class _MaskHead(nn.Module):
    """See `MaskHead`."""

    def __init__(self, part: _Part) -> None:
        super().__init__()
        self.part = part

    def forward(self, pooled: Tensor) -> Tensor:
        (logits,) = self.part(pooled)
        return logits
