"""One optimiser step against gradients computed in another way."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cellwright.config.training import TrainConfig
from cellwright.ops.batch import Batch
from cellwright.training.checkpoint import load_checkpoint, save_checkpoint
from cellwright.training.optimiser import build_optimiser
from cellwright.training.state import Position, TrainState
from cellwright.training.step import diverged, take_step


class Line(nn.Module):
    """Two losses of the mean of each image, with a "backbone" and a head; ``loss_factor`` scales them."""

    def __init__(self, loss_factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone, self.head, self.loss_factor = nn.Linear(3, 4), nn.Linear(4, 1), loss_factor

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.head(self.backbone(batch.images.mean((2, 3))))
        return {
            "size": self.loss_factor * outputs.square().mean(),
            "one": self.loss_factor * (outputs - 1).abs().mean(),
        }


def make_batch(seed: int) -> Batch:
    torch.manual_seed(seed)
    empty = [torch.zeros(0, dtype=torch.int64)] * 2
    layers = [torch.zeros((1, 4, 4), dtype=torch.int32)] * 2
    boxes = [torch.zeros((0, 4))] * 2
    return Batch(torch.randn(2, 3, 4, 4), [(4, 4)] * 2, boxes, empty, [n.bool() for n in empty], layers, empty, seed)


def make_state(network: nn.Module, config: TrainConfig, scaler: torch.amp.GradScaler | None = None) -> TrainState:
    return TrainState(network, build_optimiser(network, config), Position(), None, scaler)


def test_accumulated_batches_make_one_step_on_their_mean_loss() -> None:
    config = TrainConfig(precision="float32", accumulate=3, weight_decay=0, momentum=0, clip_norm=None)
    batches = [make_batch(seed) for seed in range(3)]
    network, other = Line(), Line()
    outcome = take_step(make_state(network, config), batches, config, lr=0.1)
    whole = replace(batches[0], images=torch.cat([b.images for b in batches]), image_hws=[(4, 4)] * 6,
                    boxes=batches[0].boxes * 3, class_ids=batches[0].class_ids * 3, ignore=batches[0].ignore * 3,
                    layers=batches[0].layers * 3, layer_of=batches[0].layer_of * 3)  # fmt: skip
    losses = other.losses(whole)
    torch.stack(list(losses.values())).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert outcome.losses == pytest.approx({name: loss.item() for name, loss in losses.items()})
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    config = TrainConfig(precision="float32", accumulate=2)
    network, good, bad = Line(), make_batch(0), make_batch(1)
    bad.images[0, 0, 0, 0] = math.nan
    state, before = make_state(network, config), [p.clone() for p in network.parameters()]
    outcome = take_step(state, [good, bad], config, lr=0.1)
    assert outcome.problem == "a loss is not finite"
    assert state.position.step == 0
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
    assert "lower train.lr (now 0.01), lengthen train.warmup (now 100 steps)" in str(diverged(outcome, config))
    assert "(now none)" in str(diverged(outcome, TrainConfig(warmup=None)))


def test_optimisers_match_those_of_torch() -> None:
    references = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, 0.1, betas=(0.8, 0.99), weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, betas=(0.8, 0.99), weight_decay=0.01),
    }
    for name, reference in references.items():
        config = TrainConfig(
            precision="float32",
            optimiser=name,
            momentum=0.8,
            beta2=0.99,
            weight_decay=0.01,
            decay_norms_and_biases=True,
            clip_norm=None,
        )  # type: ignore[arg-type]
        network, other = Line(), Line()
        state, optimiser = make_state(network, config), reference(other.parameters())
        for seed in range(3):
            take_step(state, [make_batch(seed)], config, lr=0.1)
            optimiser.zero_grad()
            sum(other.losses(make_batch(seed)).values()).backward()
            optimiser.step()
        for p, q in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_a_loss_scaler_changes_no_step_and_its_state_is_saved(tmp_path) -> None:
    """fp16 on CUDA needs a scaler; the scaler for the CPU does the same arithmetic."""
    config = TrainConfig(precision="float32", clip_norm=0.5)
    plain, scaled = make_state(Line(), config), make_state(Line(), config, torch.amp.GradScaler("cpu", init_scale=256))
    for seed in range(3):
        outcomes = [take_step(state, [make_batch(seed)], config, lr=0.1) for state in (plain, scaled)]
        assert outcomes[1].gradient_norm == pytest.approx(outcomes[0].gradient_norm)
    for p, q in zip(plain.network.parameters(), scaled.network.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    scaled.position.step = 3
    path = save_checkpoint(tmp_path, scaled, keep=1)
    again = make_state(Line(), config, torch.amp.GradScaler("cpu"))
    load_checkpoint(path, again)
    assert scaled.scaler is not None
    assert again.scaler is not None
    assert again.scaler.state_dict() == scaled.scaler.state_dict()
    assert again.scaler.state_dict()["_growth_tracker"] == 3
    assert again.position == scaled.position


def test_an_overflow_skips_the_step_and_lowers_the_loss_scale() -> None:
    config = TrainConfig(precision="float32")
    state = make_state(Line(loss_factor=1e37), config, torch.amp.GradScaler("cpu", init_scale=2**10))
    assert state.scaler is not None
    before = [p.clone() for p in state.network.parameters()]
    outcome = take_step(state, [make_batch(0)], config, lr=0.1)
    assert (outcome.problem, state.position.step, state.scaler.get_scale()) == (None, 1, 2**9)
    assert not math.isfinite(outcome.gradient_norm)
    assert all(torch.equal(p, q) for p, q in zip(state.network.parameters(), before, strict=True))
    state.scaler.update(1.0)
    network = Line(loss_factor=1e38)  # overflows even without a scale
    state = make_state(network, config, torch.amp.GradScaler("cpu", init_scale=1.0))
    assert take_step(state, [make_batch(0)], config, lr=0.1).problem is not None


def test_bf16_computes_in_bf16_and_keeps_weights_and_losses_in_float32() -> None:
    dtypes = []

    class Recording(Line):
        def losses(self, batch: Batch) -> dict[str, Tensor]:
            losses = super().losses(batch)
            dtypes.append(self.head(self.backbone(batch.images.mean((2, 3)))).dtype)
            return losses

    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        config = TrainConfig(precision=precision)  # type: ignore[arg-type]
        state = make_state(Recording(), config)
        outcome = take_step(state, [make_batch(0)], config, lr=0.1)
        assert dtypes.pop() == dtype
        assert all(p.dtype == torch.float32 for p in state.network.parameters())
        assert outcome.losses == pytest.approx(
            {name: loss.item() for name, loss in Line().losses(make_batch(0)).items()}, rel=0.05
        )
