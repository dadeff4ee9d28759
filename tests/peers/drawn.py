"""What the scripts here and the tests draw in the same way, with NumPy alone: weights, images and maps from a seed.

Only operations that are exact everywhere are used for maps: sums, products, quotients, roots and uniform numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np


def weights(shapes: Mapping[str, tuple[int, ...]], gain: float = 1.0) -> dict[str, np.ndarray]:
    """Random float32 arrays by name, each from a seed of its own. Statistics of batch norm are positive."""
    drawn = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        leaf = name.rpartition(".")[2]
        if leaf in ("running_var", "weight") and len(shape) == 1:
            array = rng.uniform(0.5, 1.5, shape)
        elif len(shape) <= 1:
            array = rng.uniform(-0.2, 0.2, shape)
        else:
            receptive = np.prod(shape) / (shape[-1] if leaf == "kernel" else shape[0])
            array = rng.uniform(-1, 1, shape) * gain * np.sqrt(6 / receptive)
        drawn[name] = array.astype(np.float32)
    return drawn


def image(seed: int, hw: tuple[int, int], n_channels: int) -> np.ndarray:
    """(H, W, C) uint8: discs of several sizes on noise, other ones in each channel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: hw[0], : hw[1]]
    pixels = rng.integers(0, 30, (*hw, n_channels))
    for channel in range(n_channels):
        for _ in range(hw[0] * hw[1] // 1500):
            cy, cx, r = rng.integers(0, hw[0]), rng.integers(0, hw[1]), rng.integers(5, 15)
            inside = (y - cy) ** 2 + (x - cx) ** 2 <= r**2
            pixels[inside, channel] = rng.integers(60, 220) + rng.integers(0, 30, inside.sum())
    return pixels.astype(np.uint8)


def flow_maps(seed: int, hw: tuple[int, int] = (140, 180)) -> np.ndarray:
    """(3, H, W) float32 as Cellpose's network gives them, flows times 5 and cellprob: noisy discs that touch, of which
    some have holes, flows that lead nowhere, or few pixels."""
    rng = np.random.default_rng(seed)
    y, x = (axis.astype(np.float64) for axis in np.mgrid[: hw[0], : hw[1]])
    maps = np.concatenate([np.zeros((2, *hw)), np.full((1, *hw), -4.0)])
    for k in range(26):
        cy, cx, r = rng.uniform(0, hw[0]), rng.uniform(0, hw[1]), (2.2, 4, 8, 11, 17)[k % 5]
        dy, dx = cy - y, (cx - x) * rng.uniform(0.7, 1.3)
        distance = np.sqrt(dy * dy + dx * dx)
        inside = distance <= r
        turned = (1.0, 1.0, 0.2, 1.0, -0.3, 1.0, 0.6)[k % 7]  # of the flow, the part that leads to the centre
        across = np.sqrt(1 - turned * turned)
        for axis, (to, aside) in enumerate(((dy, -dx), (dx, dy))):
            flow = 5 * (turned * to + across * aside) / (distance + 0.05)
            maps[axis] = np.where(inside, flow, maps[axis])
        maps[2] = np.where(inside, 4 * (1 - distance / r) + 0.3, maps[2])
        if k % 6 == 3:
            maps[2] = np.where(distance <= 0.3 * r, -1.0, maps[2])
    maps += rng.uniform(-0.6, 0.6, maps.shape)
    return maps.astype(np.float32)


def cellpose_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """`weights` of Cellpose's network whose maps vary around 0, so that objects are found."""
    drawn, means, factor = weights(shapes, gain=0.5), np.float32([-0.396, 0.14, -0.467]), np.float32(20)
    drawn["output.2.weight"] *= factor
    drawn["output.2.bias"] = factor * (drawn["output.2.bias"] - means)
    return drawn
