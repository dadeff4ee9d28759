"""The dense family's losses as pure functions, against torchvision's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torchvision.ops import sigmoid_focal_loss

from cellwright.models.dense.losses import border_weights, focal_loss, soft_dice_loss


def test_soft_dice_against_sets() -> None:
    truth = torch.zeros(1, 8, 8)
    truth[0, 2:6, 2:6] = 1
    found = torch.zeros(1, 8, 8)
    found[0, 2:6, 2:4] = 1
    everything = torch.ones(1, 8, 8)
    assert soft_dice_loss(truth, truth, everything) == 0
    assert soft_dice_loss(found, truth, everything).item() == pytest.approx(1 - 17 / 25)  # 2 * 8 + 1 over 16 + 8 + 1
    assert soft_dice_loss(found, truth, 1 - truth) == 0  # nothing counts but background, where both are right


@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_is_torchvisions_and_the_papers(gamma: float, alpha: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn((3, 8, 9), generator=generator, dtype=torch.float64)).requires_grad_()
    targets = (torch.rand((3, 8, 9), generator=generator) < 0.3).double()
    ours = focal_loss(logits, targets, gamma=gamma, alpha=alpha)
    theirs = sigmoid_focal_loss(logits, targets, alpha=-1 if alpha is None else alpha, gamma=gamma)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    (one,), (other,) = (torch.autograd.grad(loss.sum(), logits) for loss in (ours, theirs))
    assert torch.allclose(one, other, rtol=1e-6)
    p = 1 / (1 + np.exp(-logits.detach().numpy()))
    right = np.where(targets == 1, p, 1 - p)
    share = 1.0 if alpha is None else np.where(targets == 1, alpha, 1 - alpha)
    expected = -share * (1 - right) ** gamma * np.log(right)
    assert np.allclose(ours.detach(), expected, rtol=1e-6)
    assert np.allclose(focal_loss(logits.float(), targets, gamma=gamma, alpha=alpha).detach(), expected, rtol=1e-4)


def test_focal_loss_without_focus_is_cross_entropy_and_is_finite_where_all_is_sure() -> None:
    logits, targets = torch.tensor([-300.0, 300.0, 0.0, -300.0], requires_grad=True), torch.tensor([0.0, 1, 1, 1])
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    assert torch.allclose(focal_loss(logits, targets, gamma=0, alpha=None), entropy)
    loss = focal_loss(logits, targets, gamma=0.5, alpha=None)
    assert loss[:2].tolist() == [0, 0]
    assert loss[3].item() == pytest.approx(300)
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


def brute_force(labels: np.ndarray, weight: float, sigma_px: float) -> np.ndarray:
    """The paper's equation with a distance transform of the whole image for each object."""
    distances = [ndimage.distance_transform_edt(labels != k) for k in np.unique(labels[labels > 0])]
    if len(distances) < 2:
        return np.ones(labels.shape)
    first, second = np.sort(distances, axis=0)[:2]
    return 1 + weight * np.exp(-((first + second) ** 2) / (2 * sigma_px**2))


@pytest.mark.parametrize("hw", [(31, 47), (47, 31), (1, 40), (40, 1)])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 25])
def test_border_weights_against_a_distance_transform_an_object(hw: tuple[int, int], n: int) -> None:
    rng = np.random.default_rng([n, *hw])
    labels = np.zeros(hw, np.int64)
    for k in range(n):
        y, x = rng.integers(0, hw[0]), rng.integers(0, hw[1])
        labels[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = 7 * k + 2  # some in several parts
    for sigma_px in (0.5, 2.0, 5.0):
        found = border_weights(labels, weight=10.0, sigma_px=sigma_px)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, brute_force(labels, 10.0, sigma_px), rtol=1e-5)


def test_border_weights_by_hand() -> None:
    """Two objects with a gap of two pixels, whose distances to the two are (1, 2)."""
    labels = np.array([[1, 1, 0, 0, 2, 2]])
    found = border_weights(labels, weight=10.0, sigma_px=5.0)
    sums = np.array([0 + 4, 0 + 3, 1 + 2, 2 + 1, 3 + 0, 4 + 0])
    assert found[0] == pytest.approx(1 + 10 * np.exp(-(sums**2) / 50))
