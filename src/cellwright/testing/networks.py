"""The conformance suite of trainable networks: what every `Network` must do. Functions import torch when called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.models.contract import Network
from cellwright.testing.objects import check_equal, check_prediction, expect

if TYPE_CHECKING:
    import torch

    from cellwright.ops.batch import Batch

# Sizes at which detections are requested for the two images of `draw_batch`: rescaled, and unchanged.
OUTPUT_HWS = [(120, 180), (64, 96)]


def check_network(network: Network, n_classes: int) -> None:
    """Check that a network does what `cellwright.models.contract.Network` requires; `AssertionError` says what not.

    The losses of a small drawn batch are finite, depend on nothing but weights, batch and seed, and give every
    trainable parameter a gradient; so do those of a batch without objects, which must be finite. Detections are valid,
    at the requested size, and equal when repeated. The network is trained by one step.

    Args:
        network: a network with random weights, on the CPU.
        n_classes: number of classes that it was built for, at least one.
    """
    import torch

    expect(isinstance(network, Network), f"expected the methods of Network, got {type(network).__name__}")
    batch = draw_batch([squares(), MaskSet.empty((64, 96))], n_classes=n_classes, stride=network.stride)
    network.train()
    losses = _losses(network, batch, "a batch")
    with torch.no_grad():
        again = _losses(network, batch, "a batch")
    expect(losses.keys() == again.keys(), f"expected the same losses twice, got {[*losses]}, then {[*again]}")
    for name, loss in losses.items():
        expect(torch.equal(loss, again[name]), f"expected the same {name} loss twice, got {loss}, then {again[name]}")
    torch.stack(list(losses.values())).sum().backward()
    check_gradients(network)
    empty = draw_batch([MaskSet.empty((60, 90)), MaskSet.empty((64, 96))], n_classes=n_classes, stride=network.stride)
    torch.stack(list(_losses(network, empty, "a batch without objects").values())).sum().backward()
    check_gradients(network)
    _check_detections(network, batch, n_classes)


def check_gradients(network: Network) -> None:
    """Check that trainable parameters have a finite gradient, and that frozen ones have none."""
    for name, parameter in network.named_parameters():  # type: ignore[attr-defined]
        if not parameter.requires_grad:
            expect(parameter.grad is None, f"{name}: expected no gradient of a frozen parameter")
            continue
        expect(
            parameter.grad is not None, f"{name}: expected a gradient (freeze parameters that the losses do not use)"
        )
        expect(parameter.grad.isfinite().all(), f"{name}: expected a finite gradient")


def check_detections(
    instances: Instances, output_hw: tuple[int, int], n_classes: int, what: str = "a detection"
) -> None:
    """Check what ``Network.detect`` promises for one image."""
    check_prediction(instances, output_hw, what)
    ids = instances.ids.tolist()
    expect(ids == list(range(1, len(ids) + 1)), f"{what}: expected the ids 1..N in order, got {ids}")
    expect((instances.class_ids < n_classes).all(), f"{what}: expected class ids below {n_classes}")
    x0, y0, x1, y1 = instances.boxes_xyxy.T
    height, width = output_hw
    rounding = 1 + 1e-6
    inside = (x0 >= 0) & (y0 >= 0) & (x1 <= width * rounding) & (y1 <= height * rounding)
    expect(
        inside.all(), f"{what}: expected boxes within {width} x {height} px, got {instances.boxes_xyxy[~inside][:1]}"
    )
    expect(((x1 > x0) & (y1 > y0)).all(), f"{what}: expected boxes with a positive width and height")


def squares() -> MaskSet:
    """Six squares of 12 px in an image of 60 x 90, two of them overlapping."""
    corners = [(4, 4), (10, 10), (30, 5), (8, 40), (35, 50), (44, 70)]
    boxes = np.array([[x, y, x + 12, y + 12] for y, x in corners])
    return MaskSet.from_crops(boxes, [np.ones((12, 12), bool)] * len(corners), (60, 90))


def draw_batch(masks: Sequence[MaskSet], *, n_classes: int = 2, n_ignored: int = 0, stride: int = 32) -> Batch:
    """Bright objects on noise, one image per `MaskSet`, of the first two classes at most.

    n_ignored: how many objects of each image, from the last one, are marked as ignored.
    """
    import torch

    from cellwright.ops.batch import Batch

    height, width = (-(-max(part.image_hw[axis] for part in masks) // stride) * stride for axis in (0, 1))
    images = 0.3 * torch.randn((len(masks), 3, height, width), generator=torch.Generator().manual_seed(0))
    for image, part in zip(images, masks, strict=True):
        h, w = part.image_hw
        image[:, :h, :w] += 2 * torch.from_numpy(part.foreground())
        image[:, h:], image[:, :, w:] = 0, 0
    layers = [part.to_layers() for part in masks]
    return Batch(
        images=images,
        image_hws=[part.image_hw for part in masks],
        boxes=[torch.from_numpy(part.boxes).float() for part in masks],
        class_ids=[torch.arange(len(part)) % min(2, n_classes) for part in masks],
        ignore=[torch.arange(len(part)) >= len(part) - n_ignored for part in masks],
        layers=[torch.from_numpy(image_layers) for image_layers, _ in layers],
        layer_of=[torch.from_numpy(of) for _, of in layers],
        seed=7,
    )


def _losses(network: Network, batch: Batch, what: str) -> dict[str, torch.Tensor]:
    losses = network.losses(batch)
    expect(isinstance(losses, dict) and losses, f"{what}: expected a dict of named losses, got {losses!r}")
    for name, loss in losses.items():
        expect(loss.ndim == 0 and loss.isfinite(), f"{what}: expected a finite scalar as {name} loss, got {loss}")
    return losses


def _check_detections(network: Network, batch: Batch, n_classes: int) -> None:
    import torch

    network.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        first, second = (network.detect(batch.images, batch.image_hws, OUTPUT_HWS) for _ in range(2))
    expect(len(first) == len(OUTPUT_HWS), f"detect: expected {len(OUTPUT_HWS)} results, got {len(first)}")
    for k, (instances, again, output_hw) in enumerate(zip(first, second, OUTPUT_HWS, strict=True)):
        check_detections(instances, output_hw, n_classes, f"detect, image {k}")
        check_equal(instances, again, f"detect, image {k}, repeated")
    for name, tensor in network.state_dict().items():
        expect(torch.equal(tensor, before[name]), f"detect: expected the weights unchanged, but {name} differs")
