"""Views brought together: boxes of several views merged, maps of several views averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.models.dense import flow, semantic, watershed
from cellwright.models.dense.dense import DenseNetwork, DenseWeights, Target
from cellwright.models.dense.unet import UNet
from cellwright.models.rcnn.box_head import DetectionRules
from cellwright.models.rcnn.regions import Detections
from cellwright.ops.batch import stack_images
from cellwright.prediction.in_views import find_in_views, mean_maps, merge_detections
from cellwright.prediction.views import PLAIN, View, parse_views

RULES = DetectionRules(score_threshold=0.05, nms_iou=0.5, per_image=10, min_box_px=0.0)


def look_at(image: np.ndarray, stride: int) -> Callable[[View], tuple[Tensor, tuple[int, int]]]:
    def look(view: View) -> tuple[Tensor, tuple[int, int]]:
        stacked, (hw,) = stack_images([torch.from_numpy(view.turn(image))], stride)
        return stacked, hw

    return look


def found_in(network: DenseNetwork, views: tuple[View, ...], image: np.ndarray) -> Instances:
    with torch.inference_mode():
        return find_in_views(network, views, look_at(image, network.stride), image.shape[1:])  # type: ignore[arg-type]


def detections(*rows: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]).long())


def test_boxes_of_one_object_become_their_mean() -> None:
    first = detections(((0, 0, 10, 10), 0.9, 0), ((30, 30, 40, 40), 0.8, 1), ((60, 0, 70, 10), 0.06, 0))
    second = detections(((2, 0, 12, 10), 0.3, 0), ((30, 30, 40, 40), 0.4, 0))
    merged = merge_detections([first, second], RULES)
    assert merged.boxes[0].tolist() == pytest.approx([0.5, 0, 10.5, 10])
    assert merged.scores.tolist() == pytest.approx([0.6, 0.4, 0.2]), "one that a view does not show counts half"
    assert merged.class_ids.tolist() == [0, 1, 0], "classes do not meet; what scores .03 on average is gone"
    assert len(merge_detections([first, second], replace(RULES, per_image=1)).boxes) == 1


def test_merging_one_view_changes_nothing_and_none_is_legal() -> None:
    one = detections(((0, 0, 10, 10), 0.9, 0), ((4, 0, 14, 10), 0.8, 0), ((0, 0, 10, 10), 0.7, 1))
    merged = merge_detections([one], RULES)
    assert torch.equal(merged.boxes, one.boxes)
    assert torch.equal(merged.scores, one.scores)
    assert torch.equal(merged.class_ids, one.class_ids)
    assert merge_detections([detections(), detections()], RULES).boxes.shape == (0, 4)
    assert len(merge_detections([detections(((5, 5, 5, 9), 0.9, 0))], RULES).boxes) == 0, "no area"


TARGETS = {
    "semantic": Target(semantic.CHANNELS, semantic.encode, semantic.decode),
    "watershed": Target(watershed.CHANNELS, watershed.encode, watershed.decode),
    "flow": Target(flow.CHANNELS, flow.encode, partial(flow.decode, rules=flow.FlowRules())),
}


class Reads(nn.Module):
    """A U-Net that knows everything: its images show labels, its maps are the true ones of what it is shown."""

    stride = 8

    def __init__(self, target: Target, n_classes: int) -> None:
        super().__init__()
        self.target, self.n_classes = target, n_classes

    def forward(self, images: Tensor) -> list[Tensor]:
        labels = images[:, 0].round().int().numpy()
        maps = torch.from_numpy(np.stack([self.target.encode(one) for one in labels]))
        for index, name in enumerate(self.target.channels):
            if not name.startswith("flow"):
                maps[:, index] = torch.logit(maps[:, index], eps=1e-6)
        if self.n_classes == 1:
            return [maps]
        even = torch.from_numpy((labels % 2 == 0).astype(np.float32))[:, None]
        return [torch.cat([maps, 9 * even, 9 * (1 - even)], dim=1)]


def knowing(name: str, n_classes: int = 1) -> DenseNetwork:
    unet = UNet(in_channels=1, out_channels=1, width=4, depth=1, style="plain", norm="none", deep_supervision=False)
    weights = DenseWeights(cross_entropy=1.0, dice=1.0, flow=5.0, distance=1.0)
    network = DenseNetwork(unet, TARGETS[name], n_classes=n_classes, weights=weights)
    network.unet = Reads(network.target, n_classes)  # type: ignore[assignment]
    return network.eval()


def discs() -> np.ndarray:
    """(1, 61, 90) float32, shows labels 1..12."""
    labels = np.zeros((61, 90), np.float32)
    y, x = np.mgrid[:61, :90]
    for k in range(12):
        cy, cx = 10 + 20 * (k // 4), 11 + 22.3 * (k % 4)
        labels[(y - cy) ** 2 + ((x - cx) / 1.2) ** 2 <= 7.3**2] = k + 1
    return labels[None]


@pytest.mark.parametrize("name", TARGETS)
def test_true_maps_of_all_views_agree(name: str) -> None:
    """Flows that did not turn as vectors would cancel each other."""
    network, image = knowing(name, n_classes=2), discs()
    with torch.inference_mode():
        plain, mean = (
            mean_maps(network, views, look_at(image, 8), (61, 90)) for views in (PLAIN, parse_views("turns"))
        )
    # The source of a symmetric disc has no direction: rounding gives it one.
    assert (np.abs(mean - plain) > 1e-3).sum() <= 12
    found = found_in(network, parse_views("turns"), image)
    truth = MaskSet.from_label_map(image[0].astype(np.int32))[0]
    i, j, iou = truth.iou(found.masks)
    assert (iou > 0.99).sum() == len(found) == 12
    assert np.array_equal(found.class_ids[j[iou > 0.99]], i[iou > 0.99] % 2 == 0), "odd labels show class 1"


@pytest.mark.parametrize("name", TARGETS)
def test_one_plain_view_of_maps_is_the_network_itself(name: str) -> None:
    network, image = knowing(name), discs()
    stacked, hw = look_at(image, 8)(View())
    (expected,) = network.detect(stacked, [hw], [hw])
    found = found_in(network, PLAIN, image)
    assert found.masks == expected.masks
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert len(found_in(network, parse_views("turns"), np.zeros_like(image))) == 0


def test_views_of_other_sizes_are_averaged_at_the_output() -> None:
    """A view at half size is brought to the output's size before it counts."""
    network, image = knowing("semantic"), discs()

    def look(view: View) -> tuple[Tensor, tuple[int, int]]:
        shown = image[:, ::2, ::2] if view.scale == 0.5 else image
        return look_at(shown, 8)(view)

    with torch.inference_mode():
        mean = mean_maps(network, parse_views("0.5,1:mirror"), look, (61, 90))
    body = image[0] > 0
    assert mean.shape == (1, 61, 90)
    assert ((mean[0] > 0.5) == body).mean() > 0.95
    assert 0.01 < np.abs(mean[0] - body).mean() < 0.05


def test_other_networks_are_refused() -> None:
    class Fake(nn.Module):
        stride = 1

    with pytest.raises(UsageError, match="views"):
        find_in_views(Fake(), PLAIN, look_at(discs(), 1), (61, 90))  # type: ignore[arg-type]
