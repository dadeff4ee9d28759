"""Winograd's convolutions against direct ones in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cellwright.ops import winograd
from cellwright.ops.winograd import convolve_3x3, is_faster


@pytest.mark.parametrize("shape", [(7, 14, 14), (2, 37, 50), (1, 3, 300), (1, 1, 1)])
@pytest.mark.parametrize("tiles", [5, 128])
def test_equals_a_direct_convolution(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], tiles: int) -> None:
    monkeypatch.setattr(winograd, "_TILES", tiles)
    torch.manual_seed(0)
    conv, (images, *hw) = nn.Conv2d(20, 12, 3, padding=1, bias=tiles > 5), shape
    x = torch.randn((images, 20, *hw))
    with torch.inference_mode():
        expected = nn.functional.conv2d(x.double(), conv.weight.double(), padding=1)
        expected += 0 if conv.bias is None else conv.bias.double()[:, None, None]
        found = convolve_3x3(x, conv.weight, conv.bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


def test_gradients_equal_those_of_a_direct_convolution() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn((3, 20, 14, 17)), torch.randn((12, 20, 3, 3)) / 13, torch.randn(12)
    given = torch.randn((3, 12, 14, 17))
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    nn.functional.conv2d(*exact, padding=1).backward(given.double())
    own = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    nn.functional.relu(convolve_3x3(*own), inplace=True).sum()  # layers change its result in place
    convolve_3x3(*own).backward(given)
    for tensor, expected in zip(own, exact, strict=True):
        assert tensor.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(tensor.grad.double(), expected.grad, atol=1e-4, rtol=0)


def test_where_it_is_used() -> None:
    conv, x = nn.Conv2d(64, 64, 3, padding=1), torch.zeros((1, 64, 40, 40))
    with torch.no_grad():
        assert not is_faster(conv, x)
    assert not is_faster(conv, x)
    assert is_faster(conv, x.clone().requires_grad_())
    with torch.inference_mode():
        assert is_faster(conv, x)
        others = (nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 8, 3, padding=1))
        assert not any(is_faster(other, x) for other in others)
        assert not is_faster(conv, x[:, :, :9])
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_faster(conv, x)
