"""What ``train.precision: auto`` means, by family and device."""

from __future__ import annotations

import pytest
import torch

from cellwright.api.train import load_recipe
from cellwright.config.recipe import Recipe
from cellwright.training import precision
from cellwright.training.precision import precision_for

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_auto_depends_on_family_processor_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, rcnn = load_recipe("dsb2018/nuclei"), load_recipe("vrdl_nuclei/standard")

    def chosen(recipe: Recipe, device: torch.device, *, flags: str = "", capability: tuple[int, int] = (7, 5)) -> str:
        monkeypatch.setattr(precision, "_processor_flags", lambda: frozenset(flags.split()))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        return precision_for(recipe, device)

    assert (unet.train.precision, rcnn.train.precision) == ("auto", "auto")
    assert chosen(unet, CPU, flags="avx2 avx512f avx512_bf16") == "bf16"
    assert chosen(unet, CPU, flags="avx2 avx512f") == "float32"
    assert chosen(unet, GPU, flags="avx512_bf16") == "float32"
    assert chosen(unet, GPU, capability=(8, 0)) == "bf16"
    assert chosen(unet, torch.device("mps"), flags="bf16") == "float32"
    assert chosen(rcnn, GPU, capability=(9, 0)) == "float32"
    outright = load_recipe("dsb2018/nuclei", ("train.precision=bf16",))
    assert chosen(outright, CPU) == "bf16"
