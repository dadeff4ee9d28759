"""Losses of maps, against torchvision, SciPy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torchvision.ops import sigmoid_focal_loss

from cellwright.models.dense.losses import border_weights, focal_loss, soft_dice_loss


def test_soft_dice_by_hand() -> None:
    truth = torch.zeros(1, 8, 8)
    truth[0, 2:6, 2:6] = 1
    half = torch.zeros(1, 8, 8)
    half[0, 2:6, 2:4] = 1
    everything = torch.ones(1, 8, 8)
    assert soft_dice_loss(truth, truth, everything) == 0
    assert soft_dice_loss(half, truth, everything).item() == pytest.approx(1 - 17 / 25)  # 2 * 8 + 1 over 16 + 8 + 1
    assert soft_dice_loss(half, truth, 1 - truth) == 0  # only background counts, where both are 0


@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_agrees_with_torchvision_and_the_paper(gamma: float, alpha: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn((3, 8, 9), generator=generator, dtype=torch.float64)).requires_grad_()
    targets = (torch.rand((3, 8, 9), generator=generator) < 0.3).double()
    ours = focal_loss(logits, targets, gamma=gamma, alpha=alpha)
    theirs = sigmoid_focal_loss(logits, targets, alpha=-1 if alpha is None else alpha, gamma=gamma)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=1e-6)
    p = 1 / (1 + np.exp(-logits.detach().numpy()))
    correct = np.where(targets == 1, p, 1 - p)
    share = 1.0 if alpha is None else np.where(targets == 1, alpha, 1 - alpha)
    expected = -share * (1 - correct) ** gamma * np.log(correct)
    assert np.allclose(ours.detach(), expected, rtol=1e-6)
    assert np.allclose(focal_loss(logits.float(), targets, gamma=gamma, alpha=alpha).detach(), expected, rtol=1e-4)


def test_focal_loss_with_gamma_0_is_cross_entropy_and_extreme_logits_stay_finite() -> None:
    logits, targets = torch.tensor([-300.0, 300.0, 0.0, -300.0], requires_grad=True), torch.tensor([0.0, 1, 1, 1])
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    assert torch.allclose(focal_loss(logits, targets, gamma=0, alpha=None), entropy)
    loss = focal_loss(logits, targets, gamma=0.5, alpha=None)
    assert loss[:2].tolist() == [0, 0]
    assert loss[3].item() == pytest.approx(300)
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


def brute_force(labels: np.ndarray, weight: float, sigma_px: float) -> np.ndarray:
    """The equation of the paper, with a distance transform of the whole image per object."""
    distances = [ndimage.distance_transform_edt(labels != k) for k in np.unique(labels[labels > 0])]
    if len(distances) < 2:
        return np.ones(labels.shape)
    first, second = np.sort(distances, axis=0)[:2]
    return 1 + weight * np.exp(-((first + second) ** 2) / (2 * sigma_px**2))


@pytest.mark.parametrize("hw", [(31, 47), (47, 31), (1, 40), (40, 1)])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 25])
def test_border_weights_against_one_distance_transform_per_object(hw: tuple[int, int], n: int) -> None:
    rng = np.random.default_rng([n, *hw])
    labels = np.zeros(hw, np.int64)
    for k in range(n):
        y, x = rng.integers(0, hw[0]), rng.integers(0, hw[1])
        labels[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = 7 * k + 2  # some with several components
    for sigma_px in (0.5, 2.0, 5.0):
        weights = border_weights(labels, weight=10.0, sigma_px=sigma_px)
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights, brute_force(labels, 10.0, sigma_px), rtol=1e-5)


def test_border_weights_by_hand() -> None:
    """Two objects with a gap of two pixels, whose distances to the two objects are 1 and 2."""
    labels = np.array([[1, 1, 0, 0, 2, 2]])
    weights = border_weights(labels, weight=10.0, sigma_px=5.0)
    sums = np.array([0 + 4, 0 + 3, 1 + 2, 2 + 1, 3 + 0, 4 + 0])
    assert weights[0] == pytest.approx(1 + 10 * np.exp(-(sums**2) / 50))
