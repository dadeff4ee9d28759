"""The R-CNN networks that `test_network_conformance.py` tests, and checks beyond those of `cellwright.testing`.

A new model needs a row in ``CASES``, and a name in ``USUAL`` if it has a part that none of those has. The models are
reduced in width but not in structure: fewer channels make a test faster, fewer layers would make it test another model.
"""

from __future__ import annotations

import copy
import dataclasses
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.models.build import build_network
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import save_model
from cellwright.ops.batch import Batch
from cellwright.testing import networks
from cellwright.testing.networks import OUTPUT_HWS, draw_batch, squares
from cellwright.training.environment import reproducible

# The batch contains no object of the last class.
CLASSES = ("nucleus", "debris", "mitosis")
STEPS, LEARNING_RATE = 6, 2e-3
CAP = 24
Sections = dict[str, dict[str, Any]]

# All anchors are sampled, so that each level of the pyramid contributes to the loss. Not all regions are, so that the
# seed makes a difference.
_RPN = {"samples_per_image": 4096, "pre_nms_train": 200, "post_nms_train": 48, "pre_nms_test": 100, "post_nms_test": 48}
_BOX = {"samples_per_image": 24, "positive_fraction": 0.5, "score_threshold": 0.0, "detections_per_image": CAP}
_PYRAMID: Sections = {
    "backbone": {"depth": 50, "width": 8},
    "fpn": {"channels": 16},
    "anchors": {"sizes_px": [[6], [10], [14], [20], [28]], "ratios": [1.0]},
    "rpn": _RPN,
    "roi": {"canonical_box_px": 24},  # boxes of 12 px are pooled from level 3, boxes of 24 px from level 4
    "box_head": {"fc_channels": 24, **_BOX},
    "mask_head": {"channels": 8},
}
_C4: Sections = {
    "backbone": {"depth": 50, "width": 8, "norm": "frozen_batch_norm", "frozen_stages": 2},
    "anchors": {"sizes_px": [[6, 10, 14, 20, 28]], "ratios": [1.0]},
    "rpn": _RPN,
    "box_head": _BOX,
    "mask_head": {"channels": 8},
}
_ZOO = {"norm": "frozen_batch_norm", "frozen_stages": 2}  # as in Detectron2's model zoo, for ImageNet backbones
_RESNEXT = {"groups": 8, "group_width": 1, "stride_in_1x1": False}
_V2: Sections = {
    "backbone": {"norm": "batch_norm"},
    "fpn": {"norm": "batch_norm"},
    "rpn": {"convs": 2},
    "box_head": {"convs": 4, "conv_channels": 8, "fcs": 1, "norm": "batch_norm"},
    "mask_head": {"norm": "batch_norm"},
}
_GN: Sections = {
    "box_head": {"convs": 4, "conv_channels": 8, "fcs": 1, "norm": "group_norm"},
    "mask_head": {"convs": 8, "norm": "group_norm"},
}
_X152_DCONV_GN: Sections = {"backbone": {**_ZOO, **_RESNEXT, "deformable_stages": [3, 4, 5]}, **_GN}
_SCORING: Sections = {"mask_scoring": {"channels": 8, "fc_channels": 16}}


@dataclass(frozen=True)
class Case:
    """One model: its kind, and how it differs from the smallest model of that kind."""

    kind: Literal["mask_rcnn", "mask_rcnn_c4", "cascade_mask_rcnn", "pointrend"]
    changes: Sections = dataclasses.field(default_factory=dict)
    conventions: Literal["torchvision", "detectron2"] = "detectron2"

    def recipe(self, more: Sections | None = None) -> Recipe:
        """The whole recipe, with the changes of ``more`` in addition."""
        sections = copy.deepcopy(_C4 if self.kind == "mask_rcnn_c4" else _PYRAMID)
        if self.kind == "pointrend":
            sections["mask_head"] = {"channels": 8, "fc_channels": 16}
            sections["point_head"] = {"channels": 8, "train_points": 25, "subdivisions": 3, "test_points": 80}
        for changes in (self.changes, more or {}):
            for name, section in changes.items():
                sections[name] = {**sections.get(name, {}), **section}
        content = {"name": "reduced", "conventions": self.conventions, "model": {"kind": self.kind, **sections}}
        return Recipe.model_validate(content).resolved()


CASES = {
    "fpn_r18": Case("mask_rcnn", {"backbone": {"depth": 18}}),
    "fpn_r34_group_norm": Case("mask_rcnn", {"backbone": {"depth": 34, "norm": "group_norm"}}),
    "fpn_r50": Case("mask_rcnn", {"backbone": _ZOO}),
    "fpn_x50": Case("mask_rcnn", {"backbone": {**_ZOO, **_RESNEXT}}),
    "fpn_first_level_1": Case(
        "mask_rcnn",
        {
            "backbone": {"depth": 18},
            "fpn": {"first_level": 1},
            "anchors": {"sizes_px": [[4], [6], [10], [14], [20], [28]]},
        },
    ),
    "c4_r50": Case("mask_rcnn_c4"),
    "c4_r50_masks_of_28": Case("mask_rcnn_c4", {"mask_head": {"resolution": 28}}),
    "c4_r101": Case("mask_rcnn_c4", {"backbone": {"depth": 101, "width": 4}}),
    "torchvision_v1": Case("mask_rcnn", conventions="torchvision"),
    "torchvision_v2": Case("mask_rcnn", _V2, "torchvision"),
    "torchvision_light_v2": Case(
        "mask_rcnn", _V2 | {"box_head": {**_V2["box_head"], "pooled_levels": 2}}, "torchvision"
    ),
    "group_norm_heads": Case("mask_rcnn", {"backbone": {"depth": 18}, **_GN}),
    "deformable_v1": Case("mask_rcnn", {"backbone": {**_ZOO, "deformable_stages": [3, 4, 5], "deformable_groups": 2}}),
    "deformable_v2": Case("mask_rcnn", {"backbone": {"deformable_stages": [4, 5], "deformable_modulated": True}}),
    "cascade_r50": Case("cascade_mask_rcnn", {"backbone": _ZOO}),
    "cascade_x50_dconv_gn": Case("cascade_mask_rcnn", _X152_DCONV_GN),
    "pointrend_r50": Case("pointrend", {"backbone": _ZOO}, "torchvision"),
    "pointrend_x50": Case("pointrend", {"backbone": {**_ZOO, **_RESNEXT}}),
    "mask_scoring": Case("mask_rcnn", {"backbone": {"depth": 18}, **_SCORING}),
    "mask_scoring_cascade": Case("cascade_mask_rcnn", {"backbone": {"depth": 18}, **_SCORING}),
    "class_agnostic": Case(
        "mask_rcnn",
        {"backbone": {"depth": 18}, "box_head": {"class_agnostic": True}, "mask_head": {"class_agnostic": True}},
    ),
    "class_weights": Case(
        "mask_rcnn", {"backbone": {"depth": 18}, "box_head": {"class_weights": [2.0, 0.5, 1.0, 0.25]}}
    ),
}
# Those that CI tests: each kind, norm, convolution, head and convention once.
USUAL = (
    "fpn_r34_group_norm", "fpn_first_level_1", "c4_r50_masks_of_28", "torchvision_v1", "torchvision_light_v2",
    "deformable_v2", "cascade_x50_dconv_gn", "pointrend_r50", "mask_scoring_cascade", "class_agnostic",
    "class_weights",
)  # fmt: skip


def build(recipe: Recipe, seed: int = 0) -> MaskRCNN:
    """A new network in training mode, whose frozen parts resemble those of a trained backbone."""
    torch.manual_seed(seed)
    network = build_network(recipe, len(CLASSES))
    calm(network)
    return network.train()


def calm(network: nn.Module) -> None:
    """If norms are frozen, reduce the contribution of residual branches, as in trained backbones with frozen norms.

    With random weights each block would double the variance, and 50 blocks would multiply it by 1e15.
    """
    for name, norm in network.named_modules():
        if isinstance(norm, FrozenBatchNorm2d) and name.endswith("conv3.norm"):
            norm.state_dict()["weight"].fill_(0.25)


def usual_batch(*, n_ignored: int = 0) -> Batch:
    """An image with objects, and a larger image without objects."""
    return draw_batch([squares(), MaskSet.empty((64, 96))], n_ignored=n_ignored)


def loss_names(recipe: Recipe) -> set[str]:
    """The names of the losses that ``MaskRCNN.losses`` promises."""
    names = {"rpn_class", "rpn_box", "mask"}
    stages = [f"_stage{k}" for k in range(3)] if recipe.model.kind == "cascade_mask_rcnn" else [""]
    names |= {f"{loss}{stage}" for loss in ("class", "box") for stage in stages}
    if recipe.model.kind == "pointrend":
        names.add("point")
    if getattr(recipe.model, "mask_scoring", None) is not None:
        names.add("mask_quality")
    return names


def backward(network: MaskRCNN, batch: Batch) -> dict[str, float]:
    """The losses as numbers; the gradients of their sum are stored in the network."""
    network.zero_grad(set_to_none=True)
    losses = network.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    return {name: loss.item() for name, loss in losses.items()}


def check_no_holes(network: MaskRCNN) -> None:
    """Each trainable parameter has a finite gradient; without regions, the norms of a head may have none."""
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            assert not parameter.requires_grad or (name.startswith(("box_head.", "mask_head.")) and ".norm." in name), (
                name
            )
        else:
            assert parameter.grad.isfinite().all(), name


def gradients(network: MaskRCNN) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}


def idle_rows(name: str, recipe: Recipe) -> list[int]:
    """Rows of a predictor whose gradient must be 0: those of background and of the class that the batch lacks.

    Class logits compete, so all rows learn. PointRend's point head uses the coarse masks of all classes.
    """
    assert isinstance(recipe.model, RCNNConfig)
    parts = name.split(".")
    per_row = {"deltas": 4, "logits": 1, "quality": 1}.get(parts[-2], 0)
    if parts[0] not in {"box_head", "mask_head", "point_head", "mask_scoring"} or not per_row:
        return []
    agnostic = recipe.model.kind == "cascade_mask_rcnn" or getattr(recipe.model.box_head, "class_agnostic", False)
    if (parts[-2] == "deltas" and agnostic) or getattr(recipe.model.mask_head, "class_agnostic", False):
        return []
    if recipe.model.kind == "pointrend" and parts[0] == "mask_head":
        return []
    n_rows = len(CLASSES) + (CONVENTIONS[recipe.conventions].background_rows and parts[-2] != "quality")
    return list(range(2 * per_row, n_rows * per_row))


def check_gradients(network: MaskRCNN, gradients_of: dict[str, Tensor | None], recipe: Recipe) -> None:
    """Each trainable tensor has a gradient in each row that can have one; frozen tensors have none."""
    for name, parameter in network.named_parameters():
        gradient = gradients_of[name]
        if not parameter.requires_grad:
            assert gradient is None, name
            assert name.startswith("backbone."), name
            continue
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name
        idle = idle_rows(name, recipe)
        assert not gradient[idle].any(), name
        if idle and name.endswith("weight"):  # the L1 gradients of a bias are of equal size and may cancel
            assert gradient.flatten(1).any(dim=1).sum() == len(gradient) - len(idle), name


@dataclass(frozen=True)
class Trained:
    """A network after ``STEPS`` steps on one batch, with records of its training.

    first, again: losses and gradients of the first step, for two networks with the same seed. losses: of each step.
    before: the weights at the start. detected: detections in the batch, at ``OUTPUT_HWS``. folder: the saved model.
    """

    recipe: Recipe
    batch: Batch
    network: MaskRCNN
    first: tuple[dict[str, float], dict[str, Tensor | None]]
    again: tuple[dict[str, float], dict[str, Tensor | None]]
    losses: tuple[dict[str, float], ...]
    before: dict[str, Tensor]
    detected: list[Instances]
    folder: Path


def train(case: Case, folder: Path) -> Trained:
    """Train a few steps on one batch (the first step twice), and save the model."""
    recipe, batch = case.recipe(), usual_batch()
    with reproducible(torch.get_num_threads(), deterministic=True):
        other = build(recipe)
        again = backward(other, batch), gradients(other)
        network = build(recipe)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        first = backward(network, batch), gradients(network)
        losses = [first[0]]
        trainable = [p for p in network.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
        for step in range(STEPS):
            optimiser.step()
            if step + 1 < STEPS:
                losses.append(backward(network, batch))
    info = ModelInfo(
        kind=recipe.model.kind,
        recipe=recipe.to_dict(),
        class_names=CLASSES,
        normalisation=recipe.input.model_dump(mode="json"),
    )
    save_model(folder, network.state_dict(), info)
    detected = network.eval().detect(batch.images, batch.image_hws, OUTPUT_HWS)
    return Trained(recipe, batch, network, first, again, tuple(losses), before, detected, folder)


def check_detections(instances: Instances, image_hw: tuple[int, int]) -> None:
    """What ``Network.detect`` promises for one image."""
    networks.check_detections(instances, image_hw, len(CLASSES))


class _Storages(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes, in bytes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@contextmanager
def largest_arrays() -> Iterator[list[int]]:
    """Filled on exit: bytes of the largest tensor made inside, and the peak of all NumPy arrays and Python objects."""
    sizes: list[int] = []
    tracemalloc.start()
    try:
        with _Storages() as storages:
            yield sizes
        sizes += [storages.largest, tracemalloc.get_traced_memory()[1]]
    finally:
        tracemalloc.stop()
