"""Every network passes `cellwright.testing.check_network`, and every R-CNN the stricter checks below."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import network_conformance as suite
import pytest
import torch

from cellwright.config.model_dense import FlowTarget, SemanticTarget, UNetConfig, WatershedTarget
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.core.masks import MaskSet
from cellwright.models.contract import Explains, Network
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.weights.torch_io import load_network, read_weights
from cellwright.testing import check_network
from cellwright.testing.objects import check_equal


def _cases() -> list[Any]:
    """In CI, each part of a network in at least one of them; its other combinations are slow."""
    return [pytest.param(name, marks=() if name in suite.USUAL else pytest.mark.slow) for name in suite.CASES]


@pytest.fixture(scope="module", params=_cases())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(name: str, tmp_path_factory: pytest.TempPathFactory) -> suite.Trained:
    return suite.train(suite.CASES[name], tmp_path_factory.mktemp(name) / "model")


def test_every_kind_has_a_case() -> None:
    kinds = {config.model_fields["kind"].default for config in get_args(RCNNConfig)}
    assert {case.kind for case in suite.CASES.values()} == kinds
    assert {suite.CASES[name].kind for name in suite.USUAL} == kinds


@pytest.mark.parametrize("case", ["fpn_r18", "c4_r50", "cascade_r50", "pointrend_r50", "mask_scoring"])
def test_rcnns_pass_the_public_suite(case: str) -> None:
    check_network(suite.build(suite.CASES[case].recipe()), len(suite.CLASSES))


@pytest.mark.parametrize("target", [SemanticTarget(), WatershedTarget(), FlowTarget()], ids=lambda target: target.kind)
def test_dense_networks_pass_the_public_suite(target: SemanticTarget | WatershedTarget | FlowTarget) -> None:
    torch.manual_seed(0)
    config = UNetConfig(target=target, width=8, depth=3, style="residual")
    check_network(DenseNetwork(config, in_channels=3, n_classes=2), 2)


def test_the_public_suite_finds_faults() -> None:
    network = suite.build(suite.CASES["fpn_r18"].recipe())
    with pytest.raises(AssertionError, match="expected the methods of Network"):
        check_network(torch.nn.Linear(1, 1), 1)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="expected class ids below 1"):
        check_network(network, 1)
    network.unused = torch.nn.Linear(1, 1)
    with pytest.raises(AssertionError, match=r"unused.weight: expected a gradient"):
        check_network(network, len(suite.CLASSES))


def test_is_a_network(trained: suite.Trained) -> None:
    assert isinstance(trained.network, Network)
    assert isinstance(trained.network, Explains)


def test_one_step_changes_everything_that_is_not_frozen(trained: suite.Trained) -> None:
    losses, gradients = trained.first
    assert set(losses) == suite.loss_names(trained.recipe)
    assert all(value > 0 and torch.tensor(value).isfinite() for value in losses.values()), losses
    suite.check_gradients(trained.network, gradients, trained.recipe)
    changed = {n for n, tensor in trained.network.state_dict().items() if not torch.equal(tensor, trained.before[n])}
    trainable = {n for n, parameter in trained.network.named_parameters() if parameter.requires_grad}
    statistics = {n for n, _ in trained.network.named_buffers() if n.endswith(("_mean", "_var", "_tracked"))}
    assert changed - statistics == trainable


def test_losses_fall_on_one_batch(trained: suite.Trained) -> None:
    totals = [sum(losses.values()) for losses in trained.losses]
    assert len(totals) == suite.STEPS
    assert all(torch.tensor(total).isfinite() for total in totals)
    assert sum(totals[-3:]) / 3 < 0.97 * totals[0], totals


def test_losses_depend_on_the_seed_only(trained: suite.Trained) -> None:
    (losses, gradients), (losses_again, gradients_again) = trained.first, trained.again
    assert losses == losses_again
    for name, gradient in gradients.items():
        other = gradients_again[name]
        assert gradient is other is None or torch.equal(gradient, other), name  # type: ignore[arg-type]
    with torch.no_grad():
        here, there = (trained.network.losses(dataclasses.replace(trained.batch, seed=seed)) for seed in (7, 8))
    assert any(not torch.equal(here[name], there[name]) for name in here)


def test_a_saved_and_loaded_network_gives_the_same_detections(trained: suite.Trained) -> None:
    stored, network = read_weights(trained.folder), trained.network
    loaded, info = load_network(trained.folder, kind=trained.recipe.model.kind)
    assert info.class_names == suite.CLASSES
    for weights in (stored, loaded.state_dict()):
        assert weights.keys() == network.state_dict().keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    again = loaded.detect(trained.batch.images, trained.batch.image_hws, suite.OUTPUT_HWS)
    for before, after in zip(trained.detected, again, strict=True):
        assert len(before)
        check_equal(before, after)


def test_detections_are_valid_and_capped(trained: suite.Trained) -> None:
    for instances, hw in zip(trained.detected, suite.OUTPUT_HWS, strict=True):
        suite.check_detections(instances, hw)
        assert len(instances) <= suite.CAP


def test_candidates_report_what_the_cap_drops(trained: suite.Trained) -> None:
    images, hw, output_hw = trained.batch.images[:1], trained.batch.image_hws[0], suite.OUTPUT_HWS[0]
    everywhere = torch.tensor([[0.0, 0.0, output_hw[1], output_hw[0]]])
    candidates = trained.network.candidates(images, hw, output_hw, everywhere)
    fates = candidates.columns["dropped_by"]
    assert {"kept", "cap"} <= set(fates)
    kept, detected = (
        torch.from_numpy(objects.boxes_xyxy) for objects in (candidates[fates == "kept"], trained.detected[0])
    )
    assert len(kept) == len(detected)
    # An image may be rounded differently alone than in a batch.
    assert ((kept[:, None] - detected).abs().amax(dim=2).amin(dim=1) < 0.01).all()


def test_no_array_has_the_size_of_objects_times_pixels(trained: suite.Trained) -> None:
    hw = (1080, 1620)
    with suite.largest_arrays() as sizes:
        (instances,) = trained.network.detect(trained.batch.images[:1], trained.batch.image_hws[:1], [hw])
    dense = len(instances) * hw[0] * hw[1]
    assert len(instances) > 10
    assert instances.masks.offsets[-1] < dense / 8
    assert max(sizes) < dense / 2, sizes


def test_images_without_objects(trained: suite.Trained) -> None:
    network = suite.build(trained.recipe)
    losses = suite.backward(network, suite.draw_batch([MaskSet.empty((60, 90)), MaskSet.empty((64, 96))]))
    assert {name for name, value in losses.items() if value > 0} == {n for n in losses if "class" in n}
    suite.check_no_holes(network)


def test_ignored_regions(trained: suite.Trained) -> None:
    network = trained.network
    with torch.no_grad():
        some, none_kept = (network.losses(suite.usual_batch(n_ignored=n)) for n in (2, 6))
    assert some["rpn_class"] != none_kept["rpn_class"]
    assert all(value.isfinite() for value in (*some.values(), *none_kept.values()))
    assert all(none_kept[name] == 0 for name in none_kept if "class" not in name)


def test_no_proposals(trained: suite.Trained) -> None:
    network = suite.build(trained.recipe)
    network.rpn.config = network.rpn.config.model_copy(update={"min_box_px": 1e6})
    losses = suite.backward(network, suite.draw_batch([MaskSet.empty((64, 96))]))
    assert all(value == 0 for name, value in losses.items() if name != "rpn_class")
    suite.check_no_holes(network)
    losses = suite.backward(network, trained.batch)  # the boxes of the objects are the only regions
    assert losses["mask"] > 0
    with torch.no_grad():
        for instances in network.eval().detect(trained.batch.images, trained.batch.image_hws, trained.batch.image_hws):
            assert len(instances) == 0
            assert instances.scores is not None
