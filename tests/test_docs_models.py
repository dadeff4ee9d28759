"""docs/models.md is up to date: tables, examples, shapes, function names and links are recomputed."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.mask_rcnn import (
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)

from cellwright.config.recipe import Recipe
from cellwright.models.build import network_without_weights
from cellwright.models.rcnn.c4 import C4MaskRCNN
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.mask_scoring import MaskScoringRCNN
from cellwright.models.rcnn.pointrend import PointRend
from cellwright.models.weights.foreign import our_names

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
TEXT = PAGE.read_text(encoding="utf-8")
SHAPE = re.compile(r"\d+(?: x \d+)+")
Shape = tuple[int, ...]


def _maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _maker()
LAYOUTS: dict[str, tuple[Recipe, int]] = MAKER.layouts()
ZOO = [name for name, (recipe, _) in LAYOUTS.items() if recipe.conventions == "detectron2" and "/" not in name]
TORCHVISION = {
    "maskrcnn_resnet50_fpn": (maskrcnn_resnet50_fpn, MaskRCNN_ResNet50_FPN_Weights.COCO_V1),
    "maskrcnn_resnet50_fpn_v2": (maskrcnn_resnet50_fpn_v2, MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
}


def test_tables_are_up_to_date() -> None:
    assert MAKER.with_tables(TEXT) == TEXT, "run: python docs/make_tables.py models"


@pytest.fixture
def print_options() -> Iterator[None]:
    yield
    torch.set_printoptions(profile="default", sci_mode=None)


@pytest.mark.usefixtures("print_options")
def test_examples_print_the_output_shown() -> None:
    without_fences = re.sub(r"^```.*$", "", TEXT, flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(without_fences, {}, PAGE.name, str(PAGE), 0)
    output: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(examples, out=output.append)
    assert result.attempted > 100
    assert result.failed == 0, "".join(output)


def _built(recipe: Recipe, n_classes: int) -> MaskRCNN:
    network = network_without_weights(recipe, n_classes)
    assert isinstance(network, MaskRCNN)
    return network


def _names_and_shapes(network: torch.nn.Module) -> dict[str, Shape]:
    state = network.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", ZOO)
def test_recipe_keys_fit_the_checkpoints_of_detectron2(fixtures_root: Path, name: str) -> None:
    """Every tensor of the published file matches one of ours of the same shape, and none of ours is left."""
    lines = (fixtures_root / "zoo_keys" / f"{name}.txt").read_text().splitlines()
    theirs = {key: tuple(map(int, filter(None, shape.split("x")))) for key, shape, _ in map(_cells, lines)}
    named = our_names(theirs, "detectron2")
    assert {named[key]: shape for key, shape in theirs.items()} == _names_and_shapes(_built(*LAYOUTS[name]))
    assert MAKER.counts(*LAYOUTS[name])["tensors"] == len(theirs)


def _cells(line: str) -> list[str]:
    return line.split("\t")


@pytest.mark.parametrize("name", TORCHVISION)
def test_recipe_keys_fit_the_checkpoints_of_torchvision(name: str) -> None:
    make, weights = TORCHVISION[name]
    with torch.device("meta"):
        theirs = _names_and_shapes(make(weights=None, weights_backbone=None))
    named = our_names(theirs, "torchvision")
    assert {named[key]: shape for key, shape in theirs.items()} == _names_and_shapes(_built(*LAYOUTS[name]))
    assert MAKER.counts(*LAYOUTS[name])["all"] == weights.meta["num_params"]
    assert weights.url.endswith("/" + _file_of(name))


def _file_of(name: str) -> str:
    match = re.search(rf"^  {name}:\n    file: (.*)$", TEXT, flags=re.MULTILINE)
    assert match is not None
    return match[1]


def test_the_light_v2_has_the_parameter_count_of_the_report() -> None:
    assert MAKER.counts(*LAYOUTS["recipe cells4/light_v2"])["all"] == 45_896_557


def _diagram(heading: str) -> set[Shape]:
    """The shapes in the first fenced block of a section."""
    block = TEXT.split(f"\n## {heading}\n")[1].split("```\n")[1]
    return {tuple(map(int, shape.split(" x "))) for shape in SHAPE.findall(block)}


def _network(kind: str, **sections: object) -> MaskRCNN:
    model = {"kind": kind, **sections}
    return _built(Recipe.model_validate({"name": "drawn", "conventions": "detectron2", "model": model}), 80)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _shapes(*tensors: Tensor) -> set[Shape]:
    return {tuple(tensor.shape) for tensor in tensors}


def _proposing(network: MaskRCNN, features: list[Tensor]) -> set[Shape]:
    """Objectness and deltas of the first and last level, all anchors, and the proposals."""
    logits, deltas = network.rpn.head(features)
    ends = _shapes(logits[0], logits[-1], deltas[0], deltas[-1], torch.cat(network.rpn.anchors_of(features)))
    return ends | {(network.rpn.config.post_nms_test, 4)}


def _boxes(network: MaskRCNN, pooled: Tensor) -> set[Shape]:
    head = network.box_head[0]
    hidden = pooled.mean(dim=(2, 3)) if isinstance(network, C4MaskRCNN) else head.fcs[0](pooled.flatten(1))
    return _shapes(pooled, hidden, *head(pooled)) | {(network.config.box_head.detections_per_image, 4)}


def _masks(network: MaskRCNN, pooled: Tensor) -> set[Shape]:
    upsampled = network.mask_head.upsample(network.mask_head.convs(pooled))
    logits = network.mask_head(pooled)
    return _shapes(pooled, upsampled, logits, logits[:, 0])


@torch.no_grad()
def test_shapes_of_mask_rcnn() -> None:
    network, image = _network("mask_rcnn"), _empty(1, 3, 800, 800)
    features, config = network.features(image), network.config
    expected = _shapes(image, *network.backbone(image), *features) | _proposing(network, features)
    expected |= _boxes(network, _empty(1000, 256, config.box_head.resolution, config.box_head.resolution))
    expected |= _masks(network, _empty(100, 256, config.mask_head.resolution, config.mask_head.resolution))
    assert _diagram("mask_rcnn") == expected


@torch.no_grad()
def test_shapes_of_c4() -> None:
    network, image = _network("mask_rcnn_c4"), _empty(1, 3, 800, 800)
    features, res5 = network.features(image), network.backbone.res5
    regions, detections = (_empty(n, 1024, network.config.box_head.resolution, 14) for n in (1000, 100))
    expected = _shapes(image, *features, regions, detections) | _proposing(network, features)
    expected |= _boxes(network, res5(regions)) | _masks(network, res5(detections))
    assert network.config.mask_head.resolution == 14
    assert _diagram("mask_rcnn_c4") == expected


@torch.no_grad()
def test_shapes_of_a_cascade() -> None:
    network, image = _network("cascade_mask_rcnn"), _empty(1, 3, 800, 800)
    features, pooled = network.features(image), _empty(1000, 256, 7, 7)
    class_logits, deltas = network.box_head[2](pooled)
    expected = _shapes(image, features[0], features[-2], pooled, class_logits, deltas, class_logits[:, :-1])
    logits = network.mask_head(_empty(100, 256, 14, 14))
    assert _diagram("cascade_mask_rcnn") == expected | _shapes(logits, logits[:, 0]) | {(1000, 4), (100, 4)}


@torch.no_grad()
def test_shapes_of_pointrend() -> None:
    network, image = _network("pointrend"), _empty(1, 3, 800, 800)
    assert isinstance(network, PointRend)
    head, points, side = network.mask_head, network.point_head.config, network.config.mask_head.resolution
    grid, fine, coarse = _empty(100, 256, side, side), _empty(100, 256, points.test_points), _empty(100, 80, 784)
    shrunk = head.shrink(grid)
    expected = _shapes(image, network.features(image)[0], grid, shrunk, head.fcs[0](shrunk.flatten(1)), head(grid))
    expected |= _shapes(fine, coarse, network.point_head(fine, coarse)) | {(100, 4)}
    expected |= {(100, 7 * 2**n, 7 * 2**n) for n in range(2, points.subdivisions + 1)}
    # 14 x 14 and 28 x 28 are grids of points, not tensors.
    assert _diagram("pointrend") - {(14, 14), (28, 28)} == expected


@torch.no_grad()
def test_shapes_of_mask_scoring() -> None:
    network = _network("mask_rcnn", mask_scoring={})
    pooled, logits = _empty(100, 256, 14, 14), network.mask_head(_empty(100, 256, 14, 14))[:, 0]
    assert isinstance(network, MaskScoringRCNN)
    head = network.mask_scoring
    mask = torch.nn.functional.max_pool2d(logits[:, None], 2)
    joined = torch.cat([pooled, mask], dim=1)
    convolved = head.convs(joined)
    expected = _shapes(pooled, logits, mask, joined, convolved, head.fcs[0](convolved.flatten(1)))
    assert _diagram("mask_scoring") == expected | _shapes(head(pooled, logits))


def test_all_functions_named_exist() -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.py): (\w+)(?:\.(\w+))?`", TEXT)
    assert len(named) > 30
    for file, name, method in named:
        body = ast.parse((ROOT / "src" / "cellwright" / file).read_text()).body
        nodes = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
        assert nodes, f"{file}: {name}"
        inner = [node.name for node in nodes[0].body if isinstance(node, ast.FunctionDef)]
        assert not method or method in inner, f"{file}: {name}.{method}"
    for file in re.findall(r"`((?:tests|config|models|ops|core)/[\w/]+\.py)", TEXT):
        assert (ROOT / file).is_file() or (ROOT / "src" / "cellwright" / file).is_file(), file


def test_links_point_to_headings() -> None:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= anchors
