"""The dense family: training targets, losses, and the way from maps to objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

import cellwright as cw
from cellwright.config.model_dense import FlowTarget, SemanticTarget, StarsTarget, UNetConfig, WatershedTarget
from cellwright.config.recipe import Recipe
from cellwright.core.errors import ModelError
from cellwright.core.masks import MaskSet
from cellwright.data.synthetic import write_demo_dataset
from cellwright.models.build import build_network
from cellwright.models.dense import prediction
from cellwright.models.dense.dense import DenseNetwork, first_of_layers
from cellwright.models.dense.losses import border_weights
from cellwright.models.dense.prediction import RAY_UNIT_PX
from cellwright.models.dense.target import target_of
from cellwright.models.weights.initial import start_from
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import read_weights, save_model
from cellwright.ops.batch import Batch

TARGETS = {
    "semantic": SemanticTarget(),
    "watershed": WatershedTarget(),
    "flow": FlowTarget(),
    "stars": StarsTarget(n_rays=16),
}


def discs(apart_px: int = 17) -> np.ndarray:
    """(64, 80) int32: a grid of discs 15 px wide, labels from 1."""
    labels = np.zeros((64, 80), np.int32)
    y, x = np.mgrid[:64, :80]
    for row in range(10, 56, apart_px):
        for column in range(10, 72, apart_px):
            labels[(y - row) ** 2 + (x - column) ** 2 <= 7.5**2] = labels.max() + 1
    return labels


def batch_of(labels: np.ndarray, ignore: tuple[int, ...] = (), class_ids: np.ndarray | None = None) -> Batch:
    """One image that shows its foreground, padded from 64 x 80 to 80 x 96."""
    masks, _ = MaskSet.from_label_map(labels)
    images = torch.zeros((1, 3, 80, 96))
    images[0, :, :64, :80] = torch.from_numpy((labels > 0).astype(np.float32))
    ids = np.zeros(len(masks), np.int64) if class_ids is None else class_ids
    return Batch(
        images=images,
        image_hws=[(64, 80)],
        boxes=[torch.from_numpy(masks.boxes).float()],
        class_ids=[torch.from_numpy(ids)],
        ignore=[torch.tensor([index in ignore for index in range(len(masks))], dtype=torch.bool)],
        layers=[torch.from_numpy(labels)[None]],
        layer_of=[torch.zeros(len(masks), dtype=torch.long)],
        seed=0,
    )


def network(target: str, n_classes: int = 1, **options: Any) -> DenseNetwork:
    torch.manual_seed(0)
    config = UNetConfig(target=TARGETS[target], **({"width": 8, "depth": 3, "style": "residual"} | options))
    return DenseNetwork(config, in_channels=3, n_classes=n_classes)


class Oracle(nn.Module):
    """In place of a U-Net: returns the logits of ground-truth maps."""

    stride = 8

    def __init__(self, maps: Tensor, channels: tuple[str, ...]) -> None:
        super().__init__()
        self.logits = maps.clone()
        for index, name in enumerate(channels):
            if name.startswith("ray_"):
                self.logits[:, index] /= RAY_UNIT_PX
            elif not name.startswith("flow_"):
                self.logits[:, index] = torch.logit(maps[:, index], eps=1e-6)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.logits]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("output_hw", [(64, 80), (128, 160)])
def test_ground_truth_maps_give_the_objects(name: str, output_hw: tuple[int, int]) -> None:
    labels, dense = discs(20), network(name)
    maps, _, _, _ = dense.targets(batch_of(labels))
    dense.unet = Oracle(maps, dense.target.channels)  # type: ignore[assignment]
    (instances,) = dense.detect(torch.zeros(1, 3, 80, 96), [(64, 80)], [output_hw])
    truth = MaskSet.from_label_map(labels)[0].resize(output_hw)
    _, _, iou = truth.iou(instances.masks)
    assert len(instances) == len(truth) == 12
    assert np.sort(iou)[-12:].min() > 0.9
    assert instances.image_hw == output_hw
    assert instances.scores is not None
    assert (instances.scores > 0.8).all()


@pytest.mark.parametrize("name", TARGETS)
def test_losses_fall_on_one_batch(name: str) -> None:
    dense, batch = network(name, deep_supervision=True), batch_of(discs())
    optimiser = torch.optim.Adam(dense.parameters(), 1e-2)
    totals = []
    for _ in range(12):
        losses = dense.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    expected = {"semantic": {"body"}, "watershed": {"body", "border", "distance"}, "flow": {"flow", "body"}}
    assert set(losses) == (expected | {"stars": {"probability", "rays"}})[name]
    assert totals[-1] < 0.7 * totals[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dense.parameters())


@pytest.mark.parametrize("name", TARGETS)
def test_nested_columns_count_the_same_and_reach_every_node(name: str) -> None:
    dense, batch = network(name, skips="nested", deep_supervision=True), batch_of(discs())
    maps, classes, counted, _ = dense.targets(batch)
    columns = dense.unet(batch.images)
    assert [column.shape for column in columns] == [maps.shape] * 3
    each = [dense._stage_losses(column, maps, classes, counted, None) for column in columns]
    losses = dense.losses(batch)
    for kind, loss in losses.items():
        assert loss.item() == pytest.approx(np.mean([of_column[kind].item() for of_column in each]), rel=1e-5)
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in dense.parameters())


@pytest.mark.parametrize("name", TARGETS)
def test_padding_and_ignored_objects_do_not_count(name: str) -> None:
    dense, batch = network(name), batch_of(discs(), ignore=(3,))
    maps, classes, counted, pixel_weights = dense.targets(batch)
    assert pixel_weights is None
    ignored = torch.zeros(80, 96, dtype=torch.bool)
    ignored[:64, :80] = torch.from_numpy(discs() == 4)
    assert ignored.any()
    outside = ignored.clone()
    outside[64:] = outside[:, 80:] = True
    assert torch.equal(counted[0] == 0, outside)
    assert (maps[0][:, ignored] == 0).all()
    logits = torch.randn(maps.shape)
    changed = torch.where(outside, logits + 7, logits)
    losses = dense._stage_losses(logits, maps, classes, counted, None)
    same = dense._stage_losses(changed, maps, classes, counted, None)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx({k: v.item() for k, v in same.items()})


def test_an_image_without_objects_is_valid() -> None:
    for name in TARGETS:
        dense, batch = network(name), batch_of(np.zeros((64, 80), np.int32))
        assert all(loss.isfinite() for loss in dense.losses(batch).values())
        channels = dense.target.channels
        dense.unet = Oracle(torch.zeros(1, len(channels), 80, 96), channels)  # type: ignore[assignment]
        (instances,) = dense.detect(batch.images, [(64, 80)], [(64, 80)])
        assert len(instances) == 0
        assert instances.scores is not None


def test_the_class_is_that_of_the_highest_mean_probability() -> None:
    labels = discs(20)
    dense = network("watershed", n_classes=2)
    class_ids = np.arange(labels.max()) % 2
    maps, classes, _, _ = dense.targets(batch_of(labels, class_ids=class_ids))
    assert set(classes.unique().tolist()) == {-1, 0, 1}
    probs = torch.stack([(classes[0] == k).float() * 0.6 + 0.2 for k in range(2)])
    probs[:, 10, 10] = torch.tensor([0.0, 1.0])  # a single pixel of the other class
    instances = dense.decode(torch.cat([maps[0], probs])[:, :64, :80].numpy())
    truth = MaskSet.from_label_map(labels)[0]
    i, j, iou = truth.iou(instances.masks)
    pairs = iou > 0.5
    assert pairs.sum() == len(truth)
    assert np.array_equal(instances.class_ids[j[pairs]], class_ids[i[pairs]])
    assert "class" in dense.losses(batch_of(labels, class_ids=class_ids))


def test_the_first_layer_wins_where_objects_overlap() -> None:
    layers = np.array([[[1, 1, 0, 0]], [[0, 2, 2, 0]]])
    assert first_of_layers(layers).tolist() == [[1, 1, 2, 0]]


def test_trains_saves_loads_and_predicts(tmp_path: Path) -> None:
    """Through the public API on drawn nuclei: a few steps, a model folder, the objects of an image."""
    drawn = write_demo_dataset(tmp_path / "d", splits=(("train", 2), ("val", 1)), image_hw=(96, 96), n_objects=8)
    changes = ("train.length=4 steps", "train.warmup=1 step", "augment.crop_px=64", "model.width=4", "model.depth=2")
    run = cw.train("vrdl_nuclei/flow", drawn, out=tmp_path / "run", set=changes, device="cpu")
    assert run.finished
    model = cw.load_model(tmp_path / "run", device="cpu")
    image = cw.read_image(next(sample.image_path for sample in drawn if sample.split == "val"))  # type: ignore[arg-type]
    assert model.predict(image).image_hw == (96, 96)


def small(target: str, n_classes: int = 1) -> Recipe:
    model = {"kind": "unet", "width": 4, "depth": 2, "target": {"kind": target}}
    return Recipe.model_validate({"name": "small", "classes": n_classes, "model": model})


def saved(folder: Path, target: str) -> Path:
    recipe = small(target)
    torch.manual_seed(1)
    weights = build_network(recipe, 1).state_dict()
    info = ModelInfo(kind="unet", recipe=recipe.to_dict(), class_names=("cell",), normalisation={})
    return save_model(folder, weights, info)


def test_starts_from_a_dense_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "flow")
    weights = read_weights(folder)
    network = build_network(small("flow"), 1)
    report = start_from(network, str(folder))
    assert not report.fresh
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    other = build_network(small("watershed"), 1)
    first = other.state_dict()["unet.maps.0.weight"].clone()
    report = start_from(other, str(folder), fresh=("maps",))
    assert report.fresh == ("unet.maps.0.weight", "unet.maps.0.bias")
    assert torch.equal(other.state_dict()["unet.maps.0.weight"], first)
    assert torch.equal(
        other.state_dict()["unet.encoder.0.conv1.conv.weight"], weights["unet.encoder.0.conv1.conv.weight"]
    )


def test_does_not_start_from_other_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "semantic")
    with pytest.raises(ModelError, match=r"(?s)predict other maps.*init_fresh=\[maps\]"):
        start_from(build_network(small("flow"), 1), str(folder))
    same_number_of_maps = saved(tmp_path / "watershed", "watershed")
    with pytest.raises(ModelError, match="predict other maps"):
        start_from(build_network(small("flow"), 1), str(same_number_of_maps))
    with pytest.raises(ModelError, match="a U-Net cannot start from these weights"):
        start_from(build_network(small("flow"), 1), "torchvision:resnet50")


def test_the_recipe_decides_the_network() -> None:
    content = {"name": "small", "model": {"kind": "unet", "width": 4, "depth": 2, "target": {"kind": "semantic"}}}
    dense = build_network(Recipe.model_validate(content), 3)
    assert isinstance(dense, DenseNetwork)
    assert (dense.unet.out_channels, dense.stride) == (4, 4)  # body and three classes


def test_the_recipe_sets_the_options_of_the_decoder() -> None:
    """A threshold that no pixel reaches."""
    maps = target_of(FlowTarget()).encode(discs())
    maps[2] *= 0.4
    assert len(target_of(FlowTarget()).instances(maps)) == 0
    assert len(target_of(FlowTarget(body_threshold=0.3)).instances(maps)) == discs().max()


def test_border_weights_apply_to_the_body_only() -> None:
    labels, batch = discs(), batch_of(discs())
    dense = network("watershed", border_weight=10.0, border_sigma_px=3.0, dice_weight=0.0)
    maps, classes, counted, pixel_weights = dense.targets(batch)
    assert pixel_weights is not None
    assert np.array_equal(pixel_weights[0, :64, :80], border_weights(labels, weight=10.0, sigma_px=3.0))
    logits = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    weighted = dense._stage_losses(logits, maps, classes, counted, pixel_weights)
    plain = dense._stage_losses(logits, maps, classes, counted, None)
    assert weighted["border"] == plain["border"]
    assert weighted["distance"] == plain["distance"]
    entropy = F.binary_cross_entropy_with_logits(logits[0, 0, :64, :80], maps[0, 0, :64, :80], reduction="none")
    expected = (entropy.numpy() * border_weights(labels, weight=10.0, sigma_px=3.0)).mean()
    assert weighted["body"].item() == pytest.approx(expected, rel=1e-5)
    assert weighted["body"] > 1.5 * plain["body"]
    assert all(loss.isfinite() for loss in dense.losses(batch_of(np.zeros((64, 80), np.int32))).values())


def test_the_focal_loss_replaces_cross_entropy() -> None:
    dense = network("watershed", body_loss="focal", focal_gamma=2.0, focal_alpha=0.25, dice_weight=0.0)
    maps, classes, counted, _ = dense.targets(batch_of(discs()))
    logits = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    losses = dense._stage_losses(logits, maps, classes, counted, None)
    for index, name in enumerate(("body", "border")):
        pixels = sigmoid_focal_loss(logits[0, index, :64, :80], maps[0, index, :64, :80], alpha=0.25, gamma=2.0)
        assert losses[name].item() == pytest.approx(pixels.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"focal_gamma": 1.0}, "have no effect without body_loss: focal"),
        ({"focal_alpha": 0.25}, "have no effect without body_loss: focal"),
        ({"border_sigma_px": 3.0}, "has no effect without border_weight"),
    ],
)
def test_options_without_effect_are_rejected(option: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({"name": "idle", "model": {"kind": "unet", **option}})


@pytest.mark.parametrize(("hw", "skips"), [((160, 416), "plain"), ((704, 240), "nested")])
def test_maps_by_windows_equal_those_of_the_whole_image(
    hw: tuple[int, int], skips: Literal["plain", "nested"], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = UNetConfig(width=8, depth=2, skips=skips)
    network = DenseNetwork(config, in_channels=1, n_classes=2).eval()
    images = torch.rand((1, 1, *hw), generator=torch.Generator().manual_seed(0))
    whole = network.maps(images)
    monkeypatch.setattr(prediction, "available_bytes", lambda: 1)
    monkeypatch.setattr(prediction, "WINDOW_SIDES", (256, 128))
    assert network.window_side(hw) == 128
    np.testing.assert_allclose(network.maps(images), whole, atol=1e-6, rtol=0)
    # Memory does not grow with the image, however much there is.
    monkeypatch.setattr(prediction, "available_bytes", lambda: 1 << 40)
    monkeypatch.setattr(prediction, "LARGEST_BYTES", int(network.bytes_of_channels * 200**2))
    assert network.window_side((200, 200)) is None
    assert network.window_side(hw) == 128
