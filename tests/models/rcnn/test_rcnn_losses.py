"""The R-CNN family's losses as pure functions, against torch's own and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cellwright.config.conventions import DETECTRON2
from cellwright.config.model_rcnn import MaskRCNNConfig
from cellwright.core.errors import RecipeError
from cellwright.models.build import build_mask_rcnn
from cellwright.models.rcnn.losses import class_loss, of_class, smooth_l1_sum


def test_class_weights_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((40, 4), generator=generator)
    class_ids = torch.randint(0, 4, (40,), generator=generator)
    weights = torch.tensor([2.0, 0.5, 1.0, 0.25])
    expected = F.cross_entropy(logits, class_ids, weight=weights)
    assert class_loss(logits, class_ids, weights).item() == pytest.approx(expected.item(), rel=1e-6)
    assert class_loss(logits, class_ids).item() == pytest.approx(F.cross_entropy(logits, class_ids).item(), rel=1e-6)
    equal = class_loss(logits, class_ids, torch.full((4,), 3.0))
    assert equal.item() == pytest.approx(class_loss(logits, class_ids).item(), rel=1e-6)
    nothing = class_loss(logits[:0].requires_grad_(), class_ids[:0], weights)
    assert nothing.item() == 0


def test_class_weights_must_match_the_classes() -> None:
    config = MaskRCNNConfig.model_validate({"box_head": {"class_weights": [1.0, 2.0]}})
    with pytest.raises(
        RecipeError, match=r"(?s)box_head.class_weights.*got: 2 weights.*expected: 4: one per class, background"
    ):
        build_mask_rcnn(config, DETECTRON2, in_channels=3, n_classes=3)


def test_smooth_l1_by_hand() -> None:
    """Half the square below 1, the distance minus a half above (Girshick 2015, equation 3); plain L1 at 0."""
    distance = torch.tensor([[0.5, -0.5, 2.0, 0.0]])
    assert smooth_l1_sum(distance, torch.zeros(1, 4), 1.0).item() == pytest.approx(0.125 + 0.125 + 1.5)
    assert smooth_l1_sum(distance, torch.zeros(1, 4), 0.0).item() == pytest.approx(3.0)


def test_of_class_selects_each_rows_class_or_the_only_column() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    assert of_class(values, torch.tensor([2, 0])).tolist() == [2.0, 3.0]
    assert of_class(values[:, :1], torch.tensor([2, 0])).tolist() == [0.0, 3.0]
