"""The convolutional parts of Mask R-CNN as OpenVINO's graphs, from the arrays of a model folder, without PyTorch.

They equal the modules of `resnet`, `fpn` and `heads` to rounding. `openvino_rcnn` puts them into the network, and says
why they are not all. Maps have channels last in memory between the parts.

Shape shorthand: B images, C channels, R regions, K classes, M side of pooled features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellwright.config.model_classical import ClassicalConfig
from cellwright.config.model_rcnn import BLOCKS_PER_STAGE, MaskRCNNConfig, RCNNConfig
from cellwright.config.section import decided
from cellwright.models.openvino_graph import Layers, Nodes


def why_not(config: RCNNConfig | ClassicalConfig) -> str | None:
    """Why this module cannot build a network, as text that follows "networks"; None if it can."""
    if not isinstance(config, MaskRCNNConfig):
        return f"of the kind {config.kind}"
    box_head, mask_head = config.box_head, config.mask_head
    norms = [config.backbone.norm, config.fpn.norm, box_head.norm if box_head.convs else "none"]
    if "group_norm" in (*norms, mask_head.norm if mask_head.convs else "none"):
        return "with group normalisation"
    if config.backbone.deformable_stages:
        return "with deformable convolutions"
    return None if config.mask_scoring is None else "with mask scoring"


class Parts(Layers):
    """Makes the graphs of the parts of a Mask R-CNN.

    Args:
        config: resolved.
        arrays: of a model folder, by the names of `MaskRCNN`; any floating-point type.
    """

    def __init__(self, config: MaskRCNNConfig, arrays: Mapping[str, np.ndarray], in_channels: int) -> None:
        super().__init__(arrays)
        self.config, self.in_channels = config, in_channels

    def trunk(self) -> Nodes:
        """(B, H, W, C) -> the maps of the pyramid (B, H, W, C), finest first; see `MaskRCNN.features`."""
        images, x = self._channels_last(self.in_channels)
        maps = self._pyramid(self._backbone(x))
        return [self.op.transpose(own, np.array([0, 2, 3, 1], np.int64)) for own in maps], images

    def box_head(self) -> Nodes:
        """(R, M, M, C) -> class logits (R, K+1) and deltas (R, n_boxes*4); see `BoxHead`."""
        config = self.config.box_head
        pooled, x = self._channels_last(self.config.fpn.channels, config.resolution)
        for k in range(config.convs):
            x = self.conv_norm(f"box_head.0.convs.{k}", x, relu=True)
        x = self.op.reshape(x, np.array([0, -1], np.int64), True)
        for k in range(config.fcs):
            x = self.op.relu(self.linear(f"box_head.0.fcs.{k}", x))
        return [self.linear(f"box_head.0.{name}", x) for name in ("class_logits", "deltas")], pooled

    def _channels_last(self, channels: int, side: int = -1) -> tuple[Any, Any]:
        """An input (N, H, W, C), and the same with channels first."""
        given = self.op.parameter([-1, side, side, channels], np.float32)
        return given, self.op.transpose(given, np.array([0, 3, 1, 2], np.int64))

    def _backbone(self, images: Any) -> list[Any]:
        """See `ResNet`."""
        config = self.config.backbone
        maps = [self.conv_norm("backbone.stem", images, stride=2, eps=config.norm_eps, relu=True)]
        x = self.max_pool(maps[0], 3)
        for stage, n_blocks in enumerate(BLOCKS_PER_STAGE[config.depth], 2):
            for k in range(n_blocks):
                x = self._block(f"backbone.res{stage}.{k}", x, stride=2 if stage > 2 and k == 0 else 1)
            maps.append(x)
        return maps

    def _block(self, name: str, x: Any, stride: int) -> Any:
        """See `BasicBlock` and `Bottleneck`."""
        config, hidden = self.config.backbone, x
        convs = [part for part in ("conv1", "conv2", "conv3") if f"{name}.{part}.conv.weight" in self.arrays]
        strided = "conv2" if len(convs) == 3 and not decided(config.stride_in_1x1) else "conv1"
        for part in convs:
            how = {"stride": stride if part == strided else 1, "groups": config.groups if part == "conv2" else 1}
            hidden = self.conv_norm(f"{name}.{part}", hidden, eps=config.norm_eps, relu=part != convs[-1], **how)
        if f"{name}.shortcut.conv.weight" in self.arrays:
            x = self.conv_norm(f"{name}.shortcut", x, stride=stride, eps=config.norm_eps, relu=False)
        return self.op.relu(self.op.add(hidden, x))

    def _pyramid(self, maps: Sequence[Any]) -> list[Any]:
        """See `FPN`."""
        n_levels = len(maps) + 1 - self.config.fpn.first_level
        pyramid, merged = [], None
        for level in reversed(range(n_levels)):
            own = self.conv_norm(f"fpn.lateral.{level}", maps[level - n_levels], relu=False)
            merged = own if merged is None else self.op.add(own, self._nearest(merged))
            pyramid.insert(0, self.conv_norm(f"fpn.output.{level}", merged, relu=False))
        return [*pyramid, self.max_pool(pyramid[-1], 1)]

    def _nearest(self, x: Any) -> Any:
        """Twice the size, each value four times."""
        twice, axes = np.array([2, 2], np.float32), np.array([2, 3], np.int64)
        how = {"mode": "nearest", "shape_calculation_mode": "scales", "coordinate_transformation_mode": "asymmetric"}
        return self.op.interpolate(x, twice, axes=axes, nearest_mode="floor", **how)
