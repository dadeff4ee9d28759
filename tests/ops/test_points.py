"""Values at points, against Detectron2's vectors and sampled bitmasks; the choice of uncertain cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cellwright.ops.points import (
    grid_points,
    points_in_boxes,
    sample_labels,
    sample_map,
    sample_masks,
    uncertain_cells,
)

HW = (70, 90)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def micro(fixtures_root: Path) -> dict[str, Tensor]:
    with np.load(fixtures_root / "micro" / "micro.npz") as arrays:
        names = [name for name in arrays if name.startswith(("ps", "grid", "unc"))]
        return {name: torch.from_numpy(arrays[name]) for name in names}


def test_points_of_masks(micro: dict[str, Tensor]) -> None:
    assert torch.equal(sample_masks(micro["ps_feat"], micro["ps_coords"]), micro["ps_out"])


def test_points_of_a_map(micro: dict[str, Tensor]) -> None:
    assert torch.equal(sample_map(micro["psf_feat"], micro["psf_wrt_image"], 4), micro["psf_out"])


def test_regular_grid(micro: dict[str, Tensor]) -> None:
    assert torch.equal(grid_points(4, CPU), micro["grid_coords_4"][0])


def test_uncertain_cells(micro: dict[str, Tensor]) -> None:
    uncertainty = micro["unc_map"][:, 0]  # as |logit|: the most uncertain nearest to 0
    cells, points = uncertain_cells(uncertainty.max() - uncertainty, 12)
    assert torch.equal(cells, micro["unc_idx"])
    assert torch.allclose(points, micro["unc_coords"], atol=1e-6)


def test_uncertain_cells_have_the_smallest_logits() -> None:
    logits = torch.randn((5, 16, 16), generator=torch.Generator().manual_seed(0))
    cells, points = uncertain_cells(logits, 40)
    size = logits.flatten(1).abs()
    rest = size.scatter(1, cells, torch.inf)
    assert (size.gather(1, cells).max(dim=1).values <= rest.min(dim=1).values).all()
    assert torch.equal(sample_masks(logits[:, None], points)[:, 0], logits.flatten(1).gather(1, cells))


def test_at_most_all_cells() -> None:
    cells, _ = uncertain_cells(torch.randn((2, 4, 4)), 100)
    assert torch.equal(cells.sort(dim=1).values, torch.arange(16).expand(2, -1))


def test_points_in_boxes() -> None:
    boxes = torch.tensor([[2.0, 4.0, 12.0, 8.0]])
    points = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]]])
    assert torch.equal(points_in_boxes(points, boxes)[0], torch.tensor([[2.0, 4.0], [12.0, 8.0], [7.0, 5.0]]))


def test_labels_equal_sampled_bitmasks() -> None:
    generator = torch.Generator().manual_seed(3)
    layers = torch.randint(0, 5, (2, *HW), generator=generator, dtype=torch.int32)
    layer_of, values = torch.arange(8) % 2, (torch.arange(8) // 2 + 1).int()
    # Some points are outside the image, where all values are 0.
    points = torch.rand((8, 300, 2), generator=generator) * torch.tensor([100.0, 80.0]) - 5
    ours = sample_labels(layers, layer_of, values, points)
    bitmasks = (layers[layer_of] == values[:, None, None]).float()[:, None]
    units = points / torch.tensor([HW[1], HW[0]])
    assert torch.allclose(ours, sample_masks(bitmasks, units)[:, 0], atol=1e-6)
    assert ((ours > 0) & (ours < 1)).any()


def test_labels_of_a_hand_drawn_object() -> None:
    layers = torch.zeros((1, 4, 6), dtype=torch.int32)
    layers[0, 1:3, 2:4] = 1
    points = torch.tensor([[[2.5, 1.5], [2.0, 1.5], [2.0, 1.0], [0.5, 0.5], [-3.0, 9.0]]])
    ours = sample_labels(layers, torch.tensor([0]), torch.tensor([1], dtype=torch.int32), points)
    assert torch.allclose(ours, torch.tensor([[1.0, 0.5, 0.25, 0.0, 0.0]]))


def test_no_boxes() -> None:
    none, points = torch.zeros(0, dtype=torch.int64), torch.zeros((0, 7, 2))
    layers = torch.zeros((1, *HW), dtype=torch.int32)
    assert sample_labels(layers, none, none.int(), points).shape == (0, 7)
    assert sample_masks(torch.zeros((0, 3, 4, 4)), points).shape == (0, 3, 7)
    assert sample_map(torch.zeros((1, 3, 4, 4)), points, 4).shape == (0, 3, 7)
    assert uncertain_cells(torch.zeros((0, 4, 4)), 5)[1].shape == (0, 5, 2)


def test_a_constant_map_decreases_at_its_border() -> None:
    """The value of a cell is that at its centre: exactly at the edge of the map, half of it remains."""
    ones = torch.ones((1, 1, 4, 4))
    edge = sample_map(ones, torch.tensor([[[0.0, 8.0], [8.0, 8.0], [0.0, 0.0]]]), 4)
    assert torch.allclose(edge[0, 0], torch.tensor([0.5, 1.0, 0.25]))
