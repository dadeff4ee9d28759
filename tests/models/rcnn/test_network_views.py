"""Test-time augmentation of every R-CNN: one view is the network itself, a turned view gives turned results."""

from __future__ import annotations

from collections.abc import Callable

import network_conformance as suite
import numpy as np
import pytest
import torch
from torch import Tensor

from cellwright.config.model_rcnn import BoxHeadConfig
from cellwright.core.instances import Instances
from cellwright.core.masks import SoftMasks
from cellwright.data.views import PLAIN, View, parse_views
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.pointrend import PointRend
from cellwright.models.rcnn.regions import Detections
from cellwright.models.rcnn.views import merge_detections
from cellwright.ops.batch import stack_images
from cellwright.ops.paste import PasteMean
from cellwright.testing.objects import check_equal

HW = (60, 90)
CONFIG = BoxHeadConfig(score_threshold=0.05, nms_iou=0.5, detections_per_image=10, min_box_px=0.0)
FAMILY = ("fpn_r18", "torchvision_v1", "c4_r50", "cascade_r50", "pointrend_x50", "mask_scoring")


@pytest.fixture(scope="module", params=FAMILY)
def rcnn(request: pytest.FixtureRequest) -> MaskRCNN:
    """A network with random weights whose masks are not all .5."""
    network = suite.build(suite.CASES[request.param].recipe()).eval()
    logits = (network.point_head if isinstance(network, PointRend) else network.mask_head).logits
    with torch.no_grad():
        logits.weight *= 300
    return network


def squares() -> np.ndarray:
    """Bright squares on noise, (3, 60, 90) float32."""
    (image,) = suite.draw_batch([suite.squares()]).images
    return image[:, :60, :90].numpy()


def rendered(image: np.ndarray, stride: int) -> Callable[[View], tuple[Tensor, tuple[int, int]]]:
    def render(view: View) -> tuple[Tensor, tuple[int, int]]:
        stacked, (hw,) = stack_images([torch.from_numpy(image)], stride)
        return torch.from_numpy(view.turn(stacked.numpy())), hw

    return render


def detected_in(network: MaskRCNN, views: tuple[View, ...], image: np.ndarray) -> Instances:
    with torch.inference_mode():
        return network.detect_views(views, rendered(image, network.stride), image.shape[1:])  # type: ignore[arg-type]


def soft_of(instances: Instances) -> SoftMasks:
    assert instances.soft_masks is not None
    return instances.soft_masks


def test_the_plain_view_alone_equals_detect(rcnn: MaskRCNN) -> None:
    image = squares()
    stacked, hw = rendered(image, rcnn.stride)(View())
    with torch.inference_mode():  # in which some layers are computed in another way
        (expected,) = rcnn.detect(stacked, [hw], [hw])
    instances = detected_in(rcnn, PLAIN, image)
    assert len(instances) > 5
    check_equal(instances, expected)
    assert soft_of(instances).threshold(0.5) == instances.masks


def test_a_turned_view_gives_the_turned_result(rcnn: MaskRCNN) -> None:
    """Of an image that needs no padding, which comes before turning."""
    image, view = squares()[:, :32, :64], View(horizontal_flip=True, quarter_turns=1)
    instances, turned = detected_in(rcnn, (view,), image), detected_in(rcnn, PLAIN, view.turn(image))
    assert len(instances) > 5
    np.testing.assert_allclose(instances.scores, turned.scores, atol=1e-6)
    np.testing.assert_allclose(view.turn_boxes(instances.boxes_xyxy, (32, 64)), turned.boxes_xyxy, atol=1e-4)
    if rcnn.config.mask_head.paste == "torchvision":
        return  # its paste cuts boxes towards zero, which no turn commutes with
    for i in range(len(instances)):
        there = soft_of(turned).crop(i).astype(int)
        assert np.abs(view.turn(soft_of(instances).crop(i)) - there).max() <= 1, i


def test_masks_are_the_mean_over_the_views(rcnn: MaskRCNN) -> None:
    """Against masks of the merged boxes computed from the features of each view, turned back, averaged and pasted."""
    image, views = squares(), parse_views("turns")[:3]
    instances = detected_in(rcnn, views, image)
    boxes, class_ids = torch.from_numpy(instances.boxes_xyxy), torch.from_numpy(instances.class_ids)
    total = torch.zeros(())
    for view in views:
        stacked, _ = rendered(image, rcnn.stride)(view)
        own = torch.from_numpy(view.turn_boxes(boxes.numpy(), view.turned_hw(tuple(stacked.shape[2:]))))
        (probs,) = rcnn.masks_for(rcnn.features(stacked), [own], [class_ids])
        total = total + torch.from_numpy(view.turn_back(probs.numpy()))
    mean = PasteMean(boxes, total.shape[-1], HW, rule=rcnn.config.mask_head.paste)
    mean.add(0, total / len(views))
    _, expected = mean.finish(1, threshold=0.5)
    soft = soft_of(instances)
    assert len(instances) > 1
    assert np.array_equal(soft.boxes, expected.boxes)
    assert np.abs(soft.probs.astype(int) - expected.probs).max() <= 1
    suite.check_detections(instances, HW)


def test_memory_depends_on_the_foreground() -> None:
    network = suite.build(suite.CASES["fpn_r18"].recipe()).eval()
    hw = (1080, 1620)
    with suite.largest_arrays() as sizes, torch.inference_mode():
        instances = network.detect_views(parse_views("mirror"), rendered(squares(), network.stride), hw)
    assert len(instances) > 5
    assert max(sizes) < len(instances) * hw[0] * hw[1] / 2, sizes


def test_an_image_without_detections(rcnn: MaskRCNN) -> None:
    kept = rcnn.config
    box_head = kept.box_head.model_copy(update={"score_threshold": 1.0})
    rcnn.config = kept.model_copy(update={"box_head": box_head})
    instances = detected_in(rcnn, parse_views("flips"), squares())
    rcnn.config = kept
    assert len(instances) == 0
    assert instances.scores is not None
    assert instances.image_hw == HW


def detections(*rows: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]).long())


def test_boxes_of_one_object_are_averaged() -> None:
    first = detections(((0, 0, 10, 10), 0.9, 0), ((30, 30, 40, 40), 0.8, 1), ((60, 0, 70, 10), 0.06, 0))
    second = detections(((2, 0, 12, 10), 0.3, 0), ((30, 30, 40, 40), 0.4, 0))
    merged = merge_detections([first, second], CONFIG)
    assert merged.boxes[0].tolist() == pytest.approx([0.5, 0, 10.5, 10])
    assert merged.scores.tolist() == pytest.approx([0.6, 0.4, 0.2]), "one that a view does not show counts half"
    assert merged.class_ids.tolist() == [0, 1, 0], "classes do not meet; what scores .03 on average is gone"
    assert len(merge_detections([first, second], CONFIG.model_copy(update={"detections_per_image": 1})).boxes) == 1


def test_merging_a_single_view_changes_nothing() -> None:
    single = detections(((0, 0, 10, 10), 0.9, 0), ((4, 0, 14, 10), 0.8, 0), ((0, 0, 10, 10), 0.7, 1))
    merged = merge_detections([single], CONFIG)
    assert torch.equal(merged.boxes, single.boxes)
    assert torch.equal(merged.scores, single.scores)
    assert torch.equal(merged.class_ids, single.class_ids)
    assert merge_detections([detections(), detections()], CONFIG).boxes.shape == (0, 4)
    assert len(merge_detections([detections(((5, 5, 5, 9), 0.9, 0))], CONFIG).boxes) == 0, "no area"
