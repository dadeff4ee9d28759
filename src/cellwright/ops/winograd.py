"""3x3 convolutions with a third to a quarter of the multiplications (Winograd; Lavin & Gray 2016), on the CPU.

A tile of m x m results needs n x n products of n x n inputs, n = m + 2, instead of 9 m^2, for each pair of channels.
The transforms of tiles are matrix products too. Results equal those of a direct convolution to about 1e-5 of their
standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
# Fewer channels than this do not pay for the transforms, at inference and in training.
_LEAST_CHANNELS, _LEAST_TRAINED_CHANNELS = 64, 256
_LEAST_CELLS = 1024
# Tiles at once: their transforms stay in the last cache of the processor.
_TILES = 256


def is_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `convolve_3x3` computes a convolution of FloatTensor[B,C,H,W] and is faster than PyTorch's.

    That is on the CPU, in float32, with enough channels and cells, in inference mode or where the gradient of x is
    needed; not in a graph that is recorded.
    """
    trained, inferred = torch.is_grad_enabled() and x.requires_grad, torch.is_inference_mode_enabled()
    if not (inferred or trained) or x.device.type != "cpu":
        return False
    if is_recorded():
        return False
    if (conv.kernel_size, conv.stride, conv.padding, conv.groups) != ((3, 3), (1, 1), (1, 1), 1):
        return False
    is_float = x.dtype == conv.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    n_cells, least = x.shape[0] * x.shape[2] * x.shape[3], _LEAST_CHANNELS if inferred else _LEAST_TRAINED_CHANNELS
    return is_float and min(conv.in_channels, conv.out_channels) >= least and n_cells >= _LEAST_CELLS


def is_recorded() -> bool:
    """Whether torch compiles, exports or traces: graphs get PyTorch's own operations."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def convolve_3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A padded convolution of stride 1: FloatTensor[B,C,H,W] -> FloatTensor[B,C',H,W], channels last in memory.

    Its gradients have as few multiplications. They can't be differentiated again: PyTorch raises an error.

    Args:
        x: any memory format; channels last is not copied. B may be 0, H and W may not.
        weight: FloatTensor[C',C,3,3].
        bias: FloatTensor[C'].
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
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        # The forward pass ran in float32.
        with torch.autocast("cpu", enabled=False):
            return (
                _convolve(gradient, weight.flip(2, 3).transpose(0, 1), None) if of_x else None,
                _weight_gradient(x, gradient) if of_weight else None,
                gradient.sum((0, 2, 3)) if of_bias else None,
            )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (images, channels, height, width), outputs = x.shape, len(weight)
    grid = _Grid.of(x)
    m, n = grid.m, grid.m + 2
    of_inputs, of_weights, of_results = _matrices(m)
    factors = (of_weights @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(n * n, channels, outputs)
    tiles = grid.tiles(x, border=1)
    result = torch.empty((images, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    by_cell = result.permute(0, 2, 3, 1)
    # Memory that is used again is faster than new memory.
    memory = [x.new_empty(n * n * grid.most * size) for size in (max(channels, outputs), channels)]
    for part in grid.parts():
        own = tiles[:, :, *part]
        given = _transformed(own, of_inputs, memory)
        count = given.shape[1]
        made = memory[0][: n * n * count * outputs].view(n * n, count, outputs)
        torch.bmm(given, factors, out=made)
        cells = torch.mm(of_results, made.view(n * n, -1)).view(m, m, *own.shape[2:5], outputs)
        target = by_cell[part[0], part[1].start * m : part[1].stop * m]
        placed = cells.permute(2, 3, 0, 4, 1, 5).reshape(len(target), -1, grid.columns * m, outputs)
        placed = placed[:, : target.shape[1], :width]
        target.copy_(placed) if bias is None else torch.add(placed, bias, out=target)
    return result


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """FloatTensor[C',C,3,3] of FloatTensor[B,C,H,W] and of the gradient of the result, FloatTensor[B,C',H,W].

    The result of a tile is linear in the products, which are linear in the weight: this is the transposed map.
    """
    channels, outputs, grid = x.shape[1], gradient.shape[1], _Grid.of(x)
    of_inputs, of_weights, of_results = _matrices(grid.m)
    n_products = len(of_inputs)
    of_gradients = of_results.T.contiguous()
    inputs, gradients = grid.tiles(x, border=1), grid.tiles(gradient, border=0)
    memory = [[x.new_empty(n_products * grid.most * size) for _ in range(2)] for size in (channels, outputs)]
    total = x.new_zeros((n_products, channels, outputs))
    for part in grid.parts():
        given = _transformed(inputs[:, :, *part], of_inputs, memory[0])
        total.baddbmm_(given.transpose(1, 2), _transformed(gradients[:, :, *part], of_gradients, memory[1]))
    by_place = of_weights.T.contiguous() @ total.view(n_products, -1)
    return by_place.view(3, 3, channels, outputs).permute(3, 2, 0, 1)


def _transformed(tiles: Tensor, matrix: Tensor, memory: Sequence[Tensor]) -> Tensor:
    """Tiles [s,s,b,r,c,C], each multiplied by a matrix [k,s*s]: FloatTensor[k,b*r*c,C], in ``memory``, two buffers."""
    count, channels = tiles[0, 0, ..., 0].numel(), tiles.shape[-1]
    gathered = memory[0][: tiles.numel()].view(matrix.shape[1], -1)
    gathered.view(tiles.shape).copy_(tiles)
    transformed = memory[1][: len(matrix) * count * channels]
    return torch.mm(matrix, gathered, out=transformed.view(len(matrix), -1)).view(-1, count, channels)


@dataclass(frozen=True)
class _Grid:
    """The tiles of images: their side m, and how many there are."""

    m: int
    images: int
    rows: int
    columns: int

    @classmethod
    def of(cls, x: Tensor) -> _Grid:
        images, _, height, width = x.shape
        m = min(_POINTS, key=lambda side: -(-height // side) * -(-width // side) * (side + 2) ** 2)
        return cls(m, images, -(-height // m), -(-width // m))

    @property
    def at_once(self) -> tuple[int, int]:
        """Images and rows of tiles at once."""
        return max(_TILES // (self.rows * self.columns), 1), min(max(_TILES // self.columns, 1), self.rows)

    @property
    def most(self) -> int:
        """The largest number of tiles in a part."""
        images, rows = self.at_once
        return min(images, self.images) * rows * self.columns

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """The images and the rows of tiles of each part."""
        images, rows = self.at_once
        for first, row in product(range(0, self.images, images), range(0, self.rows, rows)):
            yield slice(first, first + images), slice(row, row + rows)

    def tiles(self, x: Tensor, border: int) -> Tensor:
        """FloatTensor[B,C,H,W] -> [s,s,B,rows,columns,C], s = m + 2 * border: tiles that overlap, zero outside of x."""
        (images, channels, height, width), m, side = x.shape, self.m, self.m + 2 * border
        padded = x.new_zeros((images, self.rows * m + 2 * border, self.columns * m + 2 * border, channels))
        padded[:, border : border + height, border : border + width] = x.permute(0, 2, 3, 1)
        of_image, of_row, of_cell, _ = padded.stride()
        shape = side, side, images, self.rows, self.columns, channels
        return padded.as_strided(shape, (of_row, of_cell, of_image, m * of_row, m * of_cell, 1))


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
