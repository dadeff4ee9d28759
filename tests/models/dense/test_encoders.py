"""U-Nets with encoders of timm: skips, sizes, training, saving and loading. Nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cellwright.config.recipe import Recipe
from cellwright.core.errors import CellwrightError, ModelError, RecipeError, UsageError
from cellwright.core.masks import MaskSet
from cellwright.models.build import build_network
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.encoders import TimmUNet
from cellwright.models.weights.initial import start_from
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import load_network, save_model
from cellwright.ops.batch import Batch

timm = pytest.importorskip("timm", reason="needs the extra timm")


def recipe(encoder: str = "timm:resnet10t", channels: int = 3, **changes: Any) -> Recipe:
    model = {"kind": "unet", "encoder": encoder, "width": 4, "depth": 3, **changes}
    inputs = {"channels": channels, "mean": [0.5] * channels, "std": [0.5] * channels}
    return Recipe.model_validate({"name": "small", "classes": 1, "input": inputs, "model": model})


def network(encoder: str = "timm:resnet10t", channels: int = 3, **changes: Any) -> DenseNetwork:
    torch.manual_seed(0)
    dense = build_network(recipe(encoder, channels, **changes), 1)
    assert isinstance(dense, DenseNetwork)
    return dense


def saved(folder: Path, dense: DenseNetwork, made_by: Recipe) -> Path:
    info = ModelInfo(kind="unet", recipe=made_by.to_dict(), class_names=("cell",), normalisation={})
    return save_model(folder, dense.state_dict(), info)


def test_the_decoder_is_that_of_the_u_net() -> None:
    """Depth 3, with torch functions, the weights of the network, and the feature maps of timm."""
    unet = network(norm="none").unet.eval()
    assert isinstance(unet, TimmUNet)
    w = dict(unet.named_parameters())

    def convs(x: Tensor, name: str) -> Tensor:
        for conv in ("conv1", "conv2"):
            x = F.relu(F.conv2d(x, w[f"{name}.{conv}.conv.weight"], w[f"{name}.{conv}.conv.bias"], padding=1))
        return x

    images = torch.randn(2, 3, 32, 48)
    halves, quarters, x = unet.encoder(images)
    for stage, skip in enumerate((quarters, halves, convs(images, "image"))):
        grown = F.conv_transpose2d(x, w[f"upsample.{stage}.weight"], w[f"upsample.{stage}.bias"], stride=2)
        x = convs(torch.cat([skip, grown], dim=1), f"decoder.{stage}")
    expected = F.conv2d(x, w["maps.0.weight"], w["maps.0.bias"])
    (maps,) = unet(images)
    assert torch.allclose(maps, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "depth", "strides"),
    [
        ("resnet10t", 3, (2, 4, 8)),
        ("resnet10t", 5, (2, 4, 8, 16, 32)),
        ("convnext_atto", 3, (4, 8)),  # no skip at stride 2
        ("mobilenetv3_small_050", 5, (2, 4, 8, 16, 32)),
    ],
)
@pytest.mark.parametrize("channels", [1, 5])
def test_sizes_and_skips(name: str, depth: int, strides: tuple[int, ...], channels: int) -> None:
    dense = network(f"timm:{name}", channels, depth=depth, deep_supervision=True)
    unet, stride = dense.unet, 2**depth
    assert isinstance(unet, TimmUNet)
    assert (unet.strides, dense.stride, unet.in_channels, unet.out_channels) == (strides, stride, channels, 3)
    stages = unet(torch.randn(2, channels, 2 * stride, 3 * stride))
    expected = [(2, 3, 2 * stride >> level, 3 * stride >> level) for level in range(depth)]
    assert [tuple(maps.shape) for maps in stages] == expected
    torch.stack([maps.square().sum() for maps in stages]).sum().backward()
    assert all(p.grad is not None for p in unet.parameters())
    assert [tuple(maps.shape) for maps in dense.eval().unet(torch.zeros(1, channels, stride, stride))] == [
        (1, 3, stride, stride)
    ]


def test_a_full_resolution_map_of_the_encoder_is_the_skip() -> None:
    from cellwright.models.dense import encoders

    class Vgg(torch.nn.Module):
        """Like timm's vgg11 at depth 1, without creating its classifier of 100 million weights."""

        class feature_info:  # noqa: N801 - as timm calls it
            reduction = staticmethod(lambda: [1, 2])
            channels = staticmethod(lambda: [4, 6])

        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 6, 2, 2)

        def forward(self, images: Tensor) -> list[Tensor]:
            fine = self.fine(images)
            return [fine, self.coarse(fine)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "_create", lambda *_, **__: Vgg())
        unet = network(depth=1).unet
    assert isinstance(unet, TimmUNet)
    assert unet.image is None
    assert unet(torch.zeros(2, 3, 8, 10))[0].shape == (2, 3, 8, 10)


def test_trains_saves_loads_and_is_inspected(tmp_path: Path) -> None:
    from cellwright.api.inspect_model import InspectPlan, run

    labels = np.zeros((64, 64), np.int32)
    labels[8:24, 8:24], labels[8:24, 26:40] = 1, 2
    masks = MaskSet.from_label_map(labels)[0]
    batch = Batch(
        images=torch.randn(2, 3, 64, 64),
        image_hws=[(64, 64)] * 2,
        boxes=[torch.from_numpy(masks.boxes).float()] * 2,
        class_ids=[torch.zeros(2, dtype=torch.long)] * 2,
        ignore=[torch.zeros(2, dtype=torch.bool)] * 2,
        layers=[torch.from_numpy(labels)[None]] * 2,
        layer_of=[torch.zeros(2, dtype=torch.long)] * 2,
        seed=0,
    )
    options = {"body_loss": "focal", "border_weight": 10.0}
    dense = network(**options)
    optimiser = torch.optim.AdamW(dense.parameters(), 1e-3)
    before = {name: tensor.clone() for name, tensor in dense.named_parameters()}
    totals = []
    for _ in range(3):
        total = torch.stack(list(dense.losses(batch).values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]
    assert not any(torch.equal(before[name], tensor) for name, tensor in dense.named_parameters())
    folder = saved(tmp_path / "model", dense, recipe(**options))
    again, _ = load_network(folder)
    assert isinstance(again, DenseNetwork)
    assert np.array_equal(again.maps(batch.images), dense.eval().maps(batch.images))
    (instances,) = again.detect(batch.images[:1], [(64, 64)], [(64, 64)])
    assert instances.image_hw == (64, 64)
    (_, _, facts), (_, _, tensors) = run(InspectPlan(str(folder), tensors=True))
    assert dict(facts)["network"] == "U-Net with a timm encoder, 3 maps"  # type: ignore[arg-type]
    assert {row[0] for row in tensors} == set(dense.state_dict())


def test_onnx_agrees_with_torch(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra onnx")
    from cellwright.models.export.dense import graphs_of
    from cellwright.models.export.onnx import TOLERANCE, write_graph

    dense = network(channels=2, depth=2).eval()
    torch.nn.init.normal_(dense.unet.maps[-1].weight, std=0.1)  # type: ignore[arg-type]
    written = write_graph(graphs_of(dense)[0], tmp_path)
    assert written["largest_difference"] <= TOLERANCE
    assert written["inputs"] == {"images": ["batch", 2, "height", "width"]}


def test_starts_from_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With timm's own loading, from a state dict in memory instead of a download."""
    torch.manual_seed(7)
    published = timm.create_model("resnet10t").state_dict()
    create = timm.create_model

    def offline(*names: str, pretrained: bool = False, **options: Any) -> Any:
        overlay = {"state_dict": dict(published)} if pretrained else None
        return create(*names, pretrained=pretrained, pretrained_cfg_overlay=overlay, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    dense = network(channels=1)
    first = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    report = start_from(dense, "timm:resnet10t.c3_in1k")
    own = dense.state_dict()
    assert torch.equal(own["unet.encoder.layer1.0.conv1.weight"], published["layer1.0.conv1.weight"])
    grey = published["conv1.0.weight"].sum(dim=1, keepdim=True)
    assert torch.allclose(own["unet.encoder.conv1.0.weight"], grey)  # how timm adapts RGB weights to one channel
    assert {name for _, name, _ in report.taken} == {name for name in own if name.startswith("unet.encoder.")}
    assert all(torch.equal(own[name], first[name]) for name in report.fresh)
    with pytest.raises(ModelError, match=r"(?s)do not match.*give weights for model.encoder, timm:resnet10t"):
        published = create("resnet18").state_dict()
        start_from(dense, "timm:resnet18")


def test_weights_that_are_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, create = network(), timm.create_model

    def offline(*names: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no connection")
        return create(*names, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"(?s)cannot load timm's weights.*timm:resnet10t.*no connection.*online"):
        start_from(dense, "timm:resnet10t")
    plain = build_network(Recipe.model_validate({"name": "p", "model": {"kind": "unet", "width": 4, "depth": 1}}), 1)
    with pytest.raises(ModelError, match="a U-Net cannot start from these weights"):
        start_from(plain, "timm:resnet10t")


@pytest.mark.parametrize(
    ("name", "depth", "message"),
    [
        ("resnet1O", 3, r"timm has no such network\n  where: timm:resnet1O\n  fix: did you mean resnet"),
        ("resnet10t.nothing", 3, r"(?s)timm cannot create this encoder.*nothing"),
        ("resnet10t", 6, r"maps of stride 2, 4, 8, 16, 32\n  expected: strides that double, up to 64"),
        ("vit_tiny_patch16_224", 4, "maps of stride 16, 16, 16"),
        ("mambaout_femto", 3, r"(?s)images of any size.*expected: maps"),  # channels last
    ],
)
def test_encoders_that_do_not_fit_are_rejected(name: str, depth: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        network(f"timm:{name}", depth=depth)


def test_a_missing_extra_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"no timm\n  fix: pip install \"cellwright\[timm\]\""):
        network()


@pytest.mark.parametrize("encoder", ["resnet18", "timm:", "timm:hf-hub:somebody/something", "torchvision:resnet18"])
def test_other_encoder_names_are_rejected(encoder: str) -> None:
    """In particular those that would make timm download something."""
    with pytest.raises((ValueError, CellwrightError), match="timm"):
        recipe(encoder)
