"""Model folders are read, and maps decoded, without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cellwright.models.weights.model_folder import BUNDLED, read_arrays
from cellwright.models.weights.torch_io import read_weights

WITHOUT_TORCH = """
import sys
import numpy as np
from cellwright.models.dense.target import target_of
from cellwright.models.weights.model_folder import read_arrays, read_model_info, recipe_of

info, arrays = read_model_info("nuclei@1"), read_arrays("nuclei@1")
target = target_of(recipe_of(info).model.target)
labels = np.zeros((40, 40), np.int32)
labels[5:20, 5:20], labels[20:35, 5:20] = 1, 2
print(len(arrays), len(target.instances(target.encode(labels))))
print([name for name in sys.modules if name.split(".")[0] in ("torch", "torchvision")])
"""


def test_a_bundled_model_is_read_and_maps_are_decoded_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    counts, modules = done.stdout.splitlines()
    assert counts == f"{len(read_arrays('nuclei@1'))} 2"
    assert modules == "[]"


@pytest.mark.parametrize("name", BUNDLED)
def test_arrays_equal_tensors(name: str) -> None:
    arrays, tensors = read_arrays(name), read_weights(name)
    assert arrays.keys() == tensors.keys()
    assert all(np.array_equal(arrays[key], tensor.numpy()) for key, tensor in tensors.items())
