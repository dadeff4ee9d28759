"""Winograd's convolutions against direct ones in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cellwright.models.layers import WinogradConvNorm
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


@pytest.mark.parametrize("shape", [(3, 14, 17), (2, 37, 50), (1, 3, 300), (1, 1, 1), (0, 8, 8)])
@pytest.mark.parametrize("tiles", [5, 256])
def test_gradients_equal_those_of_a_direct_convolution(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], tiles: int
) -> None:
    monkeypatch.setattr(winograd, "_TILES", tiles)
    torch.manual_seed(0)
    images, *hw = shape
    x, weight, bias = torch.randn((images, 20, *hw)), torch.randn((12, 20, 3, 3)) / 13, torch.randn(12)
    given = torch.randn((images, 12, *hw))
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    nn.functional.conv2d(exact[0], exact[1], exact[2], padding=1).backward(given.double())
    own = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    nn.functional.relu(convolve_3x3(*own), inplace=True).sum()  # layers change its result in place
    convolve_3x3(*own).backward(given)
    for tensor, expected in zip(own, exact, strict=True):
        assert tensor.grad is not None
        assert expected.grad is not None
        largest = expected.grad.abs().max().item() if expected.grad.numel() else 0.0
        torch.testing.assert_close(tensor.grad.double(), expected.grad, atol=2e-5 * largest, rtol=0)


def test_gradients_whatever_the_memory_of_the_tensors() -> None:
    torch.manual_seed(0)
    wide, weight = torch.randn((4, 40, 40, 30)), (torch.randn((12, 20, 3, 3)) / 13).requires_grad_()
    for x in (wide[::2, ::2, ::2, :14], wide[:2, :20, :20].transpose(2, 3), wide[:1, :20, :1].expand(2, -1, 9, -1)):
        gradients = []
        for convolve in (lambda *tensors: nn.functional.conv2d(*tensors, padding=1), convolve_3x3):
            given = x.detach().requires_grad_()
            result = convolve(given, weight)
            gradients.append(torch.autograd.grad(result, (given, weight), torch.ones(()).expand(result.shape)))
        for own, expected in zip(gradients[1], gradients[0], strict=True):
            torch.testing.assert_close(own, expected, atol=2e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_needed(needed: tuple[bool, bool, bool]) -> None:
    tensors = [torch.ones(shape) for shape in ((1, 3, 6, 6), (2, 3, 3, 3), (2,))]
    for tensor, own in zip(tensors, needed, strict=True):
        tensor.requires_grad_(own)
    convolve_3x3(*tensors).sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == list(needed)


def test_gradients_are_float32_under_autocast_too_and_have_no_gradient() -> None:
    x, weight = torch.rand((1, 3, 6, 6), requires_grad=True), torch.rand((2, 3, 3, 3))
    expected = torch.autograd.grad(convolve_3x3(x, weight).sum(), x)[0]
    result = convolve_3x3(x, weight).sum()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(result, x)
    assert torch.equal(found, expected)
    (again,) = torch.autograd.grad(convolve_3x3(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_have_the_same_bits_every_time(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        conv, x = WinogradConvNorm(256, 256, 3, norm="none", relu=True), torch.randn((9, 256, 14, 14))
        found = []
        for k in range(3):
            aside = torch.zeros(k * 1001)  # other memory, other addresses
            given = x.clone().requires_grad_()
            assert is_faster(conv.conv, given)
            found.append(torch.autograd.grad(conv(given).square().sum(), [given, *conv.parameters()]))
            del aside
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def test_exported_graphs_have_the_usual_convolution() -> None:
    layer, x = WinogradConvNorm(256, 256, 3, norm="none", relu=True), torch.randn((1, 256, 40, 40), requires_grad=True)
    assert is_faster(layer.conv, x)
    exported = torch.export.export(layer, (x,))
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.conv2d.default", "aten.relu_.default"]


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_not_where_torch_traces() -> None:
    conv, x = nn.Conv2d(256, 256, 3, padding=1), torch.zeros((1, 256, 40, 40), requires_grad=True)
    seen = []

    def traced(given: torch.Tensor) -> torch.Tensor:
        seen.append(is_faster(conv, given))
        return given * 2

    torch.jit.trace(traced, x, check_trace=False)
    assert seen == [False]


def test_where_it_is_used() -> None:
    conv, x = nn.Conv2d(64, 64, 3, padding=1), torch.zeros((1, 64, 40, 40))
    with torch.no_grad():
        assert not is_faster(conv, x)
    assert not is_faster(conv, x.requires_grad_())
    wide = nn.Conv2d(256, 256, 3, padding=1)
    assert not is_faster(wide, torch.zeros((1, 256, 40, 40)))
    assert is_faster(wide, torch.zeros((1, 256, 40, 40), requires_grad=True))
    with torch.inference_mode():
        assert is_faster(conv, x)
        others = (nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 8, 3, padding=1))
        assert not any(is_faster(other, x) for other in others)
        assert not is_faster(conv, x[:, :, :9])
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_faster(conv, x)
