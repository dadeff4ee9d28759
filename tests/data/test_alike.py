"""Images of one source fall into one group, whatever lies in them; images of different sources do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from small_sets import drawn_sample

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.data.alike import group_alike
from cellwright.data.split import split_dataset
from cellwright.data.synthetic import draw_field


def fields(folder: Path, seed: int, *, gain: float = 1.0) -> list[Sample]:
    """Six windows of one drawn slide."""
    image, _ = draw_field(seed, (300, 400), 260)
    slide, samples = np.clip(image.data[:, :, :3] * gain, 0, 255).astype(np.uint8), []
    for k in range(6):
        sample = drawn_sample(folder, f"{seed}_{k}", Instances.empty((200, 200)), k)
        assert sample.image_path is not None
        Pillow.fromarray(slide[20 * k : 20 * k + 200, 40 * k : 40 * k + 200]).save(sample.image_path)
        samples.append(sample)
    return samples


def test_a_source_is_a_group_and_never_parts(tmp_path: Path) -> None:
    bright, dim = fields(tmp_path, 1), fields(tmp_path, 2, gain=0.4)
    noise = drawn_sample(tmp_path, "noise", Instances.empty((200, 200)), 0)
    grouped = group_alike(Dataset((*bright, *dim, noise), ("nucleus",)))
    groups = [sample.group for sample in grouped]
    assert len(set(groups[:6])) == len(set(groups[6:12])) == 1
    assert len({groups[0], groups[6], groups[12]}) == 3
    parted = split_dataset(grouped, 0.4)
    assert len({sample.split for sample in parted.samples[:6]}) == 1


def test_copies_with_a_little_noise_share_a_group_and_sizes_do_not(tmp_path: Path) -> None:
    truth = Instances.empty((64, 64))
    one = drawn_sample(tmp_path, "one", truth, 1)
    same = drawn_sample(tmp_path, "same", truth, 2)  # other noise of the same strength
    wider = drawn_sample(tmp_path, "wider", Instances.empty((64, 80)), 1)
    first, second, third = group_alike(Dataset((one, same, wider), ("nucleus",)))
    assert first.group == second.group != third.group


def test_a_sample_without_an_image_is_named() -> None:
    dataset = Dataset((Sample("bare", None, (8, 8), Loaded(Instances.empty((8, 8)))),), ("nucleus",))
    with pytest.raises(UsageError, match="bare"):
        group_alike(dataset)
