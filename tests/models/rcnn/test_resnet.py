"""ResNet, ResNeXt and deformable convolutions against torchvision, Detectron2's numbers and plain convolutions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

from cellwright.config.model_rcnn import BackboneConfig
from cellwright.models.layers import ConvNorm, DeformConvNorm, make_norm
from cellwright.models.rcnn.resnet import ResNet
from cellwright.models.weights.sources import read_foreign

R50_C4, POINTREND, CASCADE = "mask_rcnn_R_50_C4", "pointrend_rcnn_X_101_FPN", "cascade_mask_rcnn_X_152_dconv_gn"
X_32X8D = {"groups": 32, "group_width": 8}


def backbone(**settings: Any) -> ResNet:
    """The network of a ``backbone`` section under torchvision's conventions."""
    open_fields = {"stem_channels": settings.get("width", 64), "stride_in_1x1": False}
    return ResNet(BackboneConfig.model_validate(open_fields | settings), in_channels=3)


def torchvision_name(ours: str) -> str:
    name = re.sub(r"^stem\.conv\.", "conv1.", re.sub(r"^stem\.norm\.", "bn1.", ours))
    name = re.sub(r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}.", name)
    name = re.sub(r"shortcut\.conv", "downsample.0", re.sub(r"shortcut\.norm", "downsample.1", name))
    return re.sub(r"\.conv(\d)\.conv\.", r".conv\1.", re.sub(r"\.conv(\d)\.norm\.", r".bn\1.", name))


def detectron2_name(ours: str, *, c4: bool = False) -> str:
    name = re.sub(r"^stem\.(conv\.)?", "stem.conv1.", ours)
    name = re.sub(r"^(res.*)\.conv\.(weight)$", r"\1.\2", re.sub(r"\.conv2\.offset\.", ".conv2_offset.", name))
    if c4:
        return f"roi_heads.{name}" if name.startswith("res5") else f"backbone.{name}"
    return f"backbone.bottom_up.{name}"


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


TWINS = [
    ("resnet34", {"depth": 34}, 21_284_672),
    ("resnet152", {"depth": 152}, 58_143_808),
    ("resnext50_32x4d", {"depth": 50, "groups": 32, "group_width": 4}, 22_979_904),
    ("resnext101_32x8d", {"depth": 101, **X_32X8D}, 86_742_336),
    ("wide_resnet50_2", {"depth": 50, "group_width": 128}, 66_834_240),
]


@pytest.mark.parametrize(("name", "settings", "parameters"), TWINS, ids=[name for name, _, _ in TWINS])
def test_structure_equals_torchvision(name: str, settings: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        ours, theirs = backbone(**settings), torchvision.models.get_model(name, weights=None)
    assert sum(p.numel() for p in ours.parameters()) == parameters
    expected = {key: shape for key, shape in shapes(theirs).items() if not key.startswith("fc.")}
    assert {torchvision_name(key): shape for key, shape in shapes(ours).items()} == expected


@torch.no_grad()
@pytest.mark.parametrize(("name", "settings"), [twin[:2] for twin in TWINS], ids=[name for name, _, _ in TWINS])
def test_features_equal_torchvision(name: str, settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours, theirs = backbone(**settings), torchvision.models.get_model(name, weights=None)
    ours, theirs = ours.to_empty(device="cpu").eval(), theirs.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in theirs.state_dict().items():
        if tensor.dim() == 4:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif key.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 1.0, generator=generator)
        elif key.endswith(("bias", "running_mean")):
            tensor.uniform_(-0.1, 0.1, generator=generator)
    values = theirs.state_dict()
    ours.load_state_dict({key: values[torchvision_name(key)] for key in ours.state_dict()})
    images = torch.randn((1, 3, 64, 96), generator=generator)
    maps = ours(images)
    x = theirs.relu(theirs.bn1(theirs.conv1(images)))
    expected = [x]
    x = theirs.maxpool(x)
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        x = layer(x)
        expected.append(x)
    assert [m.shape[1] for m in maps] == list(ours.out_channels)
    for ours_map, theirs_map in zip(maps, expected, strict=True):
        assert (ours_map - theirs_map).abs().max() <= 1e-5 * theirs_map.abs().max()


@pytest.mark.parametrize(
    ("layout", "settings", "parameters"),
    [
        ("mask_rcnn_R_101_FPN_3x", {"depth": 101}, 42_500_160),
        ("mask_rcnn_R_50_FPN_3x_dconv_c3-c5", {"depth": 50, "deformable_stages": [3, 4, 5]}, 24_088_874),
        ("mask_rcnn_X_101_32x8d_FPN_3x", {"depth": 101, **X_32X8D}, 86_742_336),
        (
            "cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv",
            {"depth": 152, **X_32X8D, "deformable_stages": [3, 4, 5]},
            127_955_086,
        ),
    ],
)
def test_structure_equals_detectron2(
    fixtures_root: Path, layout: str, settings: dict[str, Any], parameters: int
) -> None:
    """Names and shapes of the published models (fixtures/zoo_keys)."""
    with torch.device("meta"):
        ours, trained = backbone(norm="frozen_batch_norm", **settings), backbone(**settings)
    rows = [line.split("\t") for line in (fixtures_root / "zoo_keys" / f"{layout}.txt").read_text().splitlines()]
    theirs = {row[0]: tuple(map(int, row[1].split("x"))) for row in rows if row[0].startswith("backbone.bottom_up.")}
    assert {detectron2_name(name): shape for name, shape in shapes(ours).items()} == theirs
    assert sum(p.numel() for p in trained.parameters()) == parameters


FIXTURES = {
    R50_C4: {"depth": 50, "width": 8, "stem_channels": 16, "stride_in_1x1": True},
    POINTREND: {"depth": 50, "width": 8, "stem_channels": 16, "groups": 32, "group_width": 1},
    CASCADE: {
        "depth": 50,
        "width": 4,
        "stem_channels": 16,
        "groups": 32,
        "group_width": 1,
        "deformable_stages": [3, 4, 5],
    },
}


def fixture_network(folder: Path) -> ResNet:
    network = backbone(norm="frozen_batch_norm", **FIXTURES[folder.name]).eval()
    tensors = read_foreign(folder / "model.pth")
    c4 = folder.name == R50_C4
    theirs = {name for name in tensors if name.startswith(("backbone.stem.", "backbone.res", "roi_heads.res5."))}
    theirs |= {name for name in tensors if name.startswith("backbone.bottom_up.")}
    named = {name: detectron2_name(name, c4=c4) for name in network.state_dict()}
    assert set(named.values()) == theirs
    network.load_state_dict({ours: tensors[foreign] for ours, foreign in named.items()})
    return network.to(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.parametrize("name", [POINTREND, CASCADE])
def test_features_equal_detectron2(fixtures_root: Path, name: str) -> None:
    network = fixture_network(fixtures_root / name)
    with np.load(fixtures_root / name / "infer_A.npz") as arrays:
        maps = network(torch.from_numpy(arrays["preprocessed"]).to(memory_format=torch.channels_last))
        for stage, ours in zip(range(2, 6), maps[1:], strict=True):
            stored = arrays[f"bottom_up_res{stage}"]
            step = ours.shape[-1] // stored.shape[-1]  # large maps are stored at every second pixel
            assert np.abs(ours[:, :, ::step, ::step].numpy() - stored).max() < 1e-4


@torch.no_grad()
def test_c4_features_equal_detectron2(fixtures_root: Path) -> None:
    """res4 of the image, and res5 of pooled boxes, as in the C4 head."""
    network = fixture_network(fixtures_root / R50_C4)
    with np.load(fixtures_root / R50_C4 / "infer_A.npz") as arrays:
        res4 = network(torch.from_numpy(arrays["preprocessed"]), last_stage=4)[-1]
        assert np.abs(res4.numpy() - arrays["backbone_res4"]).max() < 1e-4
        box = network.res5(torch.from_numpy(arrays["box_pooled_0_first24"]))
        assert np.abs(box.numpy() - arrays["roi_res5_box_first24"]).max() < 1e-4
        mask = network.res5(torch.from_numpy(arrays["mask_pooled_first8"]))
        assert np.abs(mask.numpy() - arrays["roi_res5_mask_first8"]).max() < 1e-4


class Fixed(nn.Module):
    """Replaces the convolution that predicts the offsets."""

    def __init__(self, predicted: Tensor) -> None:
        super().__init__()
        self.predicted = predicted

    def forward(self, x: Tensor) -> Tensor:
        return self.predicted


@torch.no_grad()
@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_micro_vectors(fixtures_root: Path, modulated: bool) -> None:
    with np.load(fixtures_root / "micro" / "micro.npz") as arrays:
        x, weight, predicted = (torch.from_numpy(arrays[f"dcn_{name}"]) for name in ("x", "w", "off"))
        if modulated:
            predicted = torch.cat([predicted, torch.from_numpy(arrays["dcn_mask"]).logit()], dim=1)
        expected = arrays["dcnv2_out" if modulated else "dcn_out"]
    layer = deformable(8, 6, sampling(deformable_modulated=modulated, groups=2), stride=2)
    layer.conv.weight.copy_(weight)
    assert layer.offset(x).shape == predicted.shape
    layer.offset = Fixed(predicted)
    assert np.abs(layer(x).numpy() - expected).max() < 1e-5


def sampling(**settings: Any) -> BackboneConfig:
    return BackboneConfig.model_validate({"deformable_stages": [5]} | settings)


def deformable(in_channels: int, out_channels: int, config: BackboneConfig, *, stride: int = 1) -> DeformConvNorm:
    """A layer without normalisation and with a bias of 0."""
    layer = DeformConvNorm(in_channels, out_channels, config, stride=stride, norm="none", relu=False)
    nn.init.zeros_(layer.conv.bias)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "settings", [{}, {"deformable_groups": 4}, {"deformable_groups": 2, "deformable_modulated": True}]
)
def test_deformable_starts_as_the_plain_convolution(settings: dict[str, Any], stride: int) -> None:
    config = sampling(groups=4, **settings)
    layer = deformable(8, 12, config, stride=stride)
    x = torch.randn((2, 8, 9, 11))
    # Version 2 weights each sample by sigmoid(0).
    assert torch.allclose(layer(x), layer.conv(x) * (0.5 if config.deformable_modulated else 1.0), atol=1e-6)


@torch.no_grad()
def test_whole_pixel_offsets_shift_their_own_channels() -> None:
    layer = deformable(4, 4, sampling(deformable_groups=2))
    dy_dx = torch.tensor([[2.0, 0.0], [0.0, -1.0]])  # of the first two channels, and of the last two
    layer.offset.bias.copy_(dy_dx.repeat_interleave(9, dim=0).flatten())
    x = torch.randn((1, 4, 10, 12))
    shifted = torch.cat([F.pad(x, (0, 0, 0, 2))[:, :2, 2:], F.pad(x, (1, 0))[:, 2:, :, :-1]], dim=1)
    # Not at the border, where the shifted image lacks rows that the samples still reach.
    inside = (..., slice(1, -1), slice(1, -1))
    assert torch.allclose(layer(x)[inside], layer.conv(shifted)[inside], atol=1e-6)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_network_trains_on_any_batch(modulated: bool) -> None:
    torch.manual_seed(0)
    settings = {"deformable_stages": (3, 5), "deformable_modulated": modulated, "deformable_groups": 2}
    network = backbone(depth=50, width=8, groups=4, norm="batch_norm", frozen_stages=2, **settings)
    network = network.to(memory_format=torch.channels_last).train()
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, DeformConvNorm)}
    assert list(layers) == [f"res3.{k}.conv2" for k in range(4)] + [f"res5.{k}.conv2" for k in range(3)]
    for layer in layers.values():
        assert layer.offset.out_channels == (54 if modulated else 36)
        assert not layer.offset.weight.any()
        assert not layer.offset.bias.any()
    images = torch.randn((2, 3, 64, 64)).to(memory_format=torch.channels_last)
    sum(m.square().mean() for m in network(images)).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (name.split(".")[0] not in {"stem", "res2"})
    assert all(layer.offset.weight.grad.any() for layer in layers.values())
    network.zero_grad()
    empty = network.res5(torch.zeros((0, 128, 14, 14)))
    assert empty.shape == (0, 256, 7, 7)
    empty.sum().backward()
    assert all(p.grad is not None for p in network.res5.parameters() if p.dim() == 4)


@torch.no_grad()
@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_under_autocast(modulated: bool) -> None:
    """Offsets and samples stay in 32 bits; the other layers run in bfloat16."""
    settings = {"deformable_stages": (3, 4), "deformable_modulated": modulated}
    network = backbone(depth=50, width=8, norm="frozen_batch_norm", **settings).eval()
    layer = network.res3[1].conv2
    nn.init.normal_(layer.offset.weight, std=0.1)
    x = torch.randn((2, 16, 9, 11)).bfloat16()
    exact = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), exact)
        maps = network(torch.randn((1, 3, 64, 64)))
    assert [m.shape[1] for m in maps] == list(network.out_channels)
    assert all(m.isfinite().all() for m in maps)


def test_group_norm_equals_detectron2_if_32_divides_the_channels() -> None:
    channels = [8, 16, 24, 32, 40, 64, 256, 264]
    norms = [make_norm("group_norm", c) for c in channels]
    assert [norm.num_groups for norm in norms] == [1, 2, 3, 32, 5, 32, 32, 33]
    assert {norm.eps for norm in norms} == {1e-5}


@torch.no_grad()
def test_group_norm_of_a_head_equals_detectron2(fixtures_root: Path) -> None:
    """The first box head of the cascade: 64 channels in 32 groups of 2."""
    tensors = read_foreign(fixtures_root / CASCADE / "model.pth")
    head, predictor = "roi_heads.box_head.0", "roi_heads.box_predictor.0.cls_score"
    with np.load(fixtures_root / CASCADE / "infer_A.npz") as arrays:
        x, expected = torch.from_numpy(arrays["box_pooled_0_first24"]), arrays["box_cls_logits_0"][:24]
    for index in range(1, 5):
        layer = ConvNorm(x.shape[1], 64, 3, norm="group_norm", relu=True)
        names = {"conv.weight": "weight", "norm.weight": "norm.weight", "norm.bias": "norm.bias"}
        layer.load_state_dict({ours: tensors[f"{head}.conv{index}.{theirs}"] for ours, theirs in names.items()})
        x = layer(x)
    x = F.relu(F.linear(x.flatten(1), tensors[f"{head}.fc1.weight"], tensors[f"{head}.fc1.bias"]))
    logits = F.linear(x, tensors[f"{predictor}.weight"], tensors[f"{predictor}.bias"])
    assert np.abs(logits.numpy() - expected).max() < 1e-4
