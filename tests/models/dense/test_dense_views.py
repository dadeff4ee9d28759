"""Test-time augmentation of dense networks: the maps of several views averaged, flows as vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cellwright.config.model_dense import FlowTarget, SemanticTarget, StarsTarget, UNetConfig, WatershedTarget
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.views import PLAIN, View, parse_views
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.prediction import RAY_UNIT_PX
from cellwright.models.dense.target import Target
from cellwright.ops.batch import stack_images


def rendered(image: np.ndarray, stride: int) -> Callable[[View], tuple[Tensor, tuple[int, int]]]:
    def render(view: View) -> tuple[Tensor, tuple[int, int]]:
        stacked, (hw,) = stack_images([torch.from_numpy(image)], stride)
        return torch.from_numpy(view.turn(stacked.numpy())), hw

    return render


def detected(network: DenseNetwork, views: tuple[View, ...], image: np.ndarray) -> Instances:
    with torch.inference_mode():
        return network.detect_views(views, rendered(image, network.stride), image.shape[1:])  # type: ignore[arg-type]


TARGETS = {
    "semantic": SemanticTarget(),
    "watershed": WatershedTarget(),
    "flow": FlowTarget(),
    "stars": StarsTarget(),
}


class Oracle(nn.Module):
    """In place of a U-Net: its images are label maps, of which it returns the ground-truth maps."""

    stride = 8

    def __init__(self, target: Target, n_classes: int) -> None:
        super().__init__()
        self.target, self.n_classes = target, n_classes

    def forward(self, images: Tensor) -> list[Tensor]:
        labels = images[:, 0].round().int().numpy()
        maps = torch.from_numpy(np.stack([self.target.encode(label_map) for label_map in labels]))
        for index, name in enumerate(self.target.channels):
            if name.startswith("ray_"):
                maps[:, index] /= RAY_UNIT_PX
            elif not name.startswith("flow_"):
                maps[:, index] = torch.logit(maps[:, index], eps=1e-6)
        if self.n_classes == 1:
            return [maps]
        even = torch.from_numpy((labels % 2 == 0).astype(np.float32))[:, None]
        return [torch.cat([maps, 9 * even, 9 * (1 - even)], dim=1)]


def oracle(name: str, n_classes: int = 1) -> DenseNetwork:
    config = UNetConfig(width=4, depth=1, norm="none", target=TARGETS[name])
    network = DenseNetwork(config, in_channels=1, n_classes=n_classes)
    network.unet = Oracle(network.target, n_classes)  # type: ignore[assignment]
    return network.eval()


def discs() -> np.ndarray:
    """An image (1, 61, 90) float32 of labels 1..12."""
    labels = np.zeros((61, 90), np.float32)
    y, x = np.mgrid[:61, :90]
    for k in range(12):
        cy, cx = 10 + 20 * (k // 4), 11 + 22.3 * (k % 4)
        labels[(y - cy) ** 2 + ((x - cx) / 1.2) ** 2 <= 7.3**2] = k + 1
    return labels[None]


@pytest.mark.parametrize("name", TARGETS)
def test_ground_truth_maps_of_all_views_agree(name: str) -> None:
    """Flows that did not turn as vectors would cancel each other."""
    network, image = oracle(name, n_classes=2), discs()
    with torch.inference_mode():
        plain, mean = (
            network.mean_maps(views, rendered(image, 8), (61, 90)) for views in (PLAIN, parse_views("turns"))
        )
    # The flow at the source of a symmetric disc depends on rounding.
    assert (np.abs(mean - plain) > 1e-3).sum() <= 12
    instances = detected(network, parse_views("turns"), image)
    truth = MaskSet.from_label_map(image[0].astype(np.int32))[0]
    i, j, iou = truth.iou(instances.masks)
    assert (iou > 0.97).sum() == len(instances) == 12
    assert np.array_equal(instances.class_ids[j[iou > 0.97]], i[iou > 0.97] % 2 == 0), "odd labels have class 1"


@pytest.mark.parametrize("name", TARGETS)
def test_the_plain_view_alone_equals_detect(name: str) -> None:
    network, image = oracle(name), discs()
    stacked, hw = rendered(image, 8)(View())
    (expected,) = network.detect(stacked, [hw], [hw])
    instances = detected(network, PLAIN, image)
    assert instances.masks == expected.masks
    np.testing.assert_array_equal(instances.scores, expected.scores)
    assert len(detected(network, parse_views("turns"), np.zeros_like(image))) == 0


def test_views_of_other_sizes_are_averaged_at_the_output() -> None:
    """The maps of a view at half size are resized to the output."""
    network, image = oracle("semantic"), discs()

    def render(view: View) -> tuple[Tensor, tuple[int, int]]:
        shown = image[:, ::2, ::2] if view.scale == 0.5 else image
        return rendered(shown, 8)(view)

    with torch.inference_mode():
        mean = network.mean_maps(parse_views("0.5,1:mirror"), render, (61, 90))
    body = image[0] > 0
    assert mean.shape == (1, 61, 90)
    assert ((mean[0] > 0.5) == body).mean() > 0.95
    assert 0.01 < np.abs(mean[0] - body).mean() < 0.05
