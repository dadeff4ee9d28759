"""Mask R-CNN on the CPU: OpenVINO computes the trunk and the box head.

Proposals, pooling, suppression and pasting stay in PyTorch, and so do the heads of proposals and masks: by
`ops/winograd` they take three quarters of the time that they take in OpenVINO, which has only direct convolutions. In
bf16, all four are computed with numbers of 16 bits, and everything else in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellwright.config.conventions import Conventions
from cellwright.config.model_rcnn import MaskRCNNConfig
from cellwright.models.openvino_graph import CompiledGraph, Nodes, Precision
from cellwright.models.rcnn.heads import MaskHead
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.openvino_parts import Parts
from cellwright.models.rcnn.rpn import RPN, RPNHead

# Of an image; after a larger one, the memory of the trunk is freed.
KEPT_PX = 1 << 19


class OpenVINOMaskRCNN(MaskRCNN):
    """`MaskRCNN` in evaluation mode. OpenVINO is imported when it is first used.

    Args:
        config: one that `openvino_parts` supports.
        arrays: of a model folder, by the names of `MaskRCNN`, which must be those of this network.
        threads, precision: see `CompiledGraph`.
    """

    def __init__(
        self,
        config: MaskRCNNConfig,
        conventions: Conventions,
        arrays: Mapping[str, np.ndarray],
        *,
        in_channels: int,
        n_classes: int,
        threads: int | None = None,
        precision: Precision = "f32",
    ) -> None:
        nn.Module.__init__(self)  # the parts are not those of `MaskRCNN`
        config = config.resolved(conventions)
        self.config, self.conventions, self.n_classes = config, conventions, n_classes
        self.backend = "openvino" if precision == "f32" else "openvino-bf16"

        def part(make: Callable[[Parts], Nodes]) -> _Part:
            return _Part(CompiledGraph(lambda: make(Parts(config, arrays, in_channels)), threads, precision))

        def filled(name: str, head: nn.Module) -> nn.Module:
            own = {key.removeprefix(name): array for key, array in arrays.items() if key.startswith(name)}
            head.load_state_dict({key: _weight(array) for key, array in own.items()}, assign=True)
            head = head.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            return head if precision == "f32" else _InBf16(head)

        channels, n_anchors = config.fpn.channels, len(arrays["rpn.head.objectness.bias"])
        with torch.device("meta"):  # without weights
            rpn_head = RPNHead(channels, n_anchors, config.rpn.convs)
            mask_head = MaskHead(config.mask_head, in_channels=channels, n_rows=n_classes + conventions.background_rows)
        self.trunk, self.box_head = part(Parts.trunk), nn.ModuleList([part(Parts.box_head)])
        self.rpn = RPN(config, conventions, channels, filled("rpn.head.", rpn_head))
        self.mask_head = filled("mask_head.", mask_head)

    def features(self, images: Tensor) -> list[Tensor]:
        """See `MaskRCNN.features`."""
        return [own.permute(0, 3, 1, 2) for own in self.trunk(images)]


def _weight(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else array.dtype))


class _InBf16(nn.Module):
    """A head in bf16, with its inputs and results in float32."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head.to(torch.bfloat16)

    def forward(self, x: Any) -> Any:
        return _as_type(self.head(_as_type(x, torch.bfloat16)), torch.float32)


def _as_type(maps: Any, dtype: torch.dtype) -> Any:
    """A tensor, or all those in lists and tuples, in another type."""
    return maps.to(dtype) if isinstance(maps, Tensor) else [_as_type(own, dtype) for own in maps]


class _Part(nn.Module):
    """A graph of OpenVINO as a module; maps FloatTensor[N,C,H,W] have channels last in memory. N may be 0."""

    def __init__(self, graph: CompiledGraph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> list[Tensor]:
        if not len(x):  # OpenVINO takes no empty batch
            return [result[:0] for result in self(x.new_zeros((1, *x.shape[1:])))]
        results = self.graph(x.permute(0, 2, 3, 1).contiguous().numpy())
        if len(x) * x.shape[2] * x.shape[3] > KEPT_PX:
            self.graph.release_memory()
        return [torch.from_numpy(result) for result in results]
