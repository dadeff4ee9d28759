"""Mask R-CNN on res4 alone (He et al. 2017, "C4"): no pyramid, and res5 runs on the pooled regions for both heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cellwright.config.conventions import Conventions
from cellwright.config.model_rcnn import C4BoxHeadConfig, C4Config
from cellwright.models.layers import init_normal
from cellwright.models.rcnn.heads import MaskHead
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.regions import BoxOutputs, RegionFeatures, pooling_of
from cellwright.models.rcnn.resnet import ResNet, reach_of
from cellwright.models.rcnn.rpn import RPN


class C4MaskRCNN(MaskRCNN):
    """`MaskRCNN` without a pyramid: proposals and regions come from res4, a single map of stride 16 px."""

    stride = 1

    def __init__(self, config: C4Config, conventions: Conventions, *, in_channels: int, n_classes: int) -> None:
        """``config`` must be resolved."""
        nn.Module.__init__(self)  # the parts are not those of `MaskRCNN`
        self.config, self.conventions, self.n_classes = config, conventions, n_classes
        n_rows = n_classes + conventions.background_rows
        self.backbone = ResNet(config.backbone, in_channels)
        res4_channels, res5_channels = self.backbone.out_channels[-2:]
        self.rpn = RPN(config, conventions, res4_channels)
        self.box_head = nn.ModuleList(
            [C4BoxHead(config.box_head, in_channels=res5_channels, n_classes=n_classes, n_rows=n_rows)]
        )
        self.mask_head = MaskHead(config.mask_head, in_channels=res5_channels, n_rows=n_rows)

    @property
    def window_stride(self) -> int:
        """That of res4."""
        return 16

    @property
    def reach_px(self) -> int:
        """Through res4 and the proposal network."""
        return reach_of(self.config.backbone, last_stage=4) + 16 * self.config.rpn.convs

    def features(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> [res4], FloatTensor[B,C',H/16,W/16]."""
        return [self.backbone(images, last_stage=4)[-1]]

    def region_features(self, features: Sequence[Tensor]) -> RegionFeatures:
        """Regions are pooled from res4, and res5 runs on what is pooled."""
        return RegionFeatures(features, pooling_of(self.config, self.conventions), self.backbone.res5)

    def mask_features(self, source: RegionFeatures, boxes: BoxOutputs) -> Tensor:
        """The box head's input: res5 runs once for both heads if both pool at the same resolution."""
        if self.config.box_head.resolution == self.config.mask_head.resolution:
            return boxes.pooled
        return super().mask_features(source, boxes)


class C4BoxHead(nn.Module):
    """The mean of res5's features of each region to class logits and box deltas."""

    def __init__(self, config: C4BoxHeadConfig, *, in_channels: int, n_classes: int, n_rows: int) -> None:
        """See `BoxHead`."""
        super().__init__()
        self.class_logits = nn.Linear(in_channels, n_classes + 1)
        self.deltas = nn.Linear(in_channels, 4 * (1 if config.class_agnostic else n_rows))
        init_normal(self.class_logits, std=0.01)
        init_normal(self.deltas, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """FloatTensor[R,C,M,M] -> class logits FloatTensor[R,K+1], deltas FloatTensor[R,n_boxes*4]; R may be 0."""
        mean = pooled.mean(dim=(2, 3))
        return self.class_logits(mean), self.deltas(mean)
