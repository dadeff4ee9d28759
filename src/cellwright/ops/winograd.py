"""3x3 convolutions with a third to a quarter of the multiplications (Winograd; Lavin & Gray 2016), on the CPU.

A tile of m x m results needs n x n products of n x n inputs, n = m + 2, instead of 9 m^2, for each pair of channels.
The transforms of tiles are matrix products too. Results equal those of a direct convolution to about 1e-5 of their
standard deviation.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Points at which the polynomials of a tile are evaluated, besides infinity, by the side m of its result.
_HALF = Fraction(1, 2)
_POINTS = {4: (0, 1, -1, _HALF, -2), 5: (0, 1, -1, 2, -2, _HALF)}
# Fewer channels than this do not pay for the transforms.
_LEAST_CHANNELS = 64
_LEAST_CELLS = 1024
# Tiles at once: their transforms stay in the last cache of the processor.
_TILES = 256


def is_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `convolve_3x3` computes a convolution of FloatTensor[B,C,H,W] and is faster than PyTorch's.

    That is on the CPU, in inference mode or where gradients are recorded, and with enough channels and cells; not where
    a graph is.
    """
    trained = torch.is_grad_enabled() and x.requires_grad
    if not (torch.is_inference_mode_enabled() or trained) or torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    if (conv.kernel_size, conv.stride, conv.padding, conv.groups) != ((3, 3), (1, 1), (1, 1), 1):
        return False
    is_float = x.dtype == conv.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    n_cells = x.shape[0] * x.shape[2] * x.shape[3]
    return is_float and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS and n_cells >= _LEAST_CELLS


def convolve_3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A padded convolution of stride 1: FloatTensor[B,C,H,W] -> FloatTensor[B,C',H,W], channels last in memory.

    Args:
        x: any memory format; channels last is not copied.
        weight: FloatTensor[C',C,3,3].
        bias: FloatTensor[C'].

    The gradient of x is such a convolution too, that of the weight PyTorch's.
    """
    return _Convolution.apply(x, weight, bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        (x, weight), (of_input, *of_layer) = ctx.saved_tensors, ctx.needs_input_grad
        of_x = _convolve(gradient, weight.flip(2, 3).transpose(0, 1), None) if of_input else None
        ones, zeros = [1, 1], [0, 0]  # stride, padding, dilation; the padding of a transposed convolution
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], ones, ones, ones, False, zeros, 1, [False, *of_layer]
        )
        return of_x, of_weight, of_bias


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (images, channels, height, width), outputs = x.shape, len(weight)
    m = min(_POINTS, key=lambda side: -(-height // side) * -(-width // side) * (side + 2) ** 2)
    n, rows, columns = m + 2, -(-height // m), -(-width // m)
    of_inputs, of_weights, of_results = _matrices(m)
    factors = (of_weights @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(n * n, channels, outputs)
    padded = x.new_zeros((images, rows * m + 2, columns * m + 2, channels))
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    of_image, of_row, of_cell, _ = padded.stride()
    tiles = padded.as_strided(
        (n, n, images, rows, columns, channels), (of_row, of_cell, of_image, m * of_row, m * of_cell, 1)
    )
    result = torch.empty((images, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    by_cell = result.permute(0, 2, 3, 1)
    at_once, rows_at_once = max(_TILES // (rows * columns), 1), min(max(_TILES // columns, 1), rows)
    most = min(at_once, images) * rows_at_once * columns
    # Memory that is used again is faster than new memory.
    wider = max(channels, outputs)
    gathered, transformed = x.new_empty(n * n * most * wider), x.new_empty(n * n * most * channels)
    for first, row in product(range(0, images, at_once), range(0, rows, rows_at_once)):
        part = tiles[:, :, first : first + at_once, row : row + rows_at_once]
        count = part[0, 0, ..., 0].numel()
        inputs = gathered[: n * n * count * channels].view(n * n, -1)
        inputs.view(part.shape).copy_(part)
        given = torch.mm(of_inputs, inputs, out=transformed[: inputs.numel()].view(n * n, -1))
        made = gathered[: n * n * count * outputs].view(n * n, count, outputs)
        torch.bmm(given.view(n * n, count, channels), factors, out=made)
        cells = torch.mm(of_results, made.view(n * n, -1)).view(m, m, *part.shape[2:5], outputs)
        target = by_cell[first : first + at_once, row * m : (row + rows_at_once) * m]
        placed = cells.permute(2, 3, 0, 4, 1, 5).reshape(len(target), -1, columns * m, outputs)
        placed = placed[:, : target.shape[1], :width]
        target.copy_(placed) if bias is None else torch.add(placed, bias, out=target)
    return result


@cache
def _matrices(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices of inputs [n*n,n*n], weights [n*n,9] and results [m*m,n*n] of a tile, all FloatTensor."""
    points = [Fraction(point) for point in _POINTS[m]]
    differences = [math.prod([p - q for q in points if q != p]) for p in points]
    of_results = [[p**i for p in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    of_weights = [[p**j / own for j in range(3)] for p, own in zip(points, differences, strict=True)]
    of_inputs = [[*_polynomial([q for q in points if q != p]), Fraction(0)] for p in points]
    arrays = [
        np.array(rows, float)
        for rows in (
            [*of_inputs, _polynomial(points)],
            [*of_weights, [Fraction(0), Fraction(0), Fraction(1)]],
            of_results,
        )
    ]
    inputs, weights, results = arrays
    # Rows of similar size lose least to rounding.
    scale = np.linalg.norm(inputs, axis=1)
    inputs, weights = inputs / scale[:, None], weights * scale[:, None]
    balance = np.exp2(np.round(np.log2(np.linalg.norm(weights, axis=1) / np.linalg.norm(results, axis=0)) / 2))
    weights, results = weights / balance[:, None], results * balance
    both = (np.kron(matrix, matrix).astype(np.float32) for matrix in (inputs, weights, results))
    of_inputs, of_weights, of_results = map(torch.from_numpy, both)
    return of_inputs, of_weights, of_results


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the polynomial with these roots, the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        higher, lower = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
        coefficients = [a - root * b for a, b in zip(higher, lower, strict=True)]
    return coefficients
