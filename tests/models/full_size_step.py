"""One training step of a published network at full size: ``python full_size_step.py RECIPE``, with a shipped recipe.

`test_full_size.py` runs it as a separate process, to measure the peak memory of the step. It prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from network_conformance import calm
from torch import nn

from cellwright.config import recipe as recipes
from cellwright.config.conventions import CONVENTIONS
from cellwright.config.recipe import Recipe
from cellwright.data.network_input import resize_for_network
from cellwright.data.synthetic import draw_field
from cellwright.models.build import build_network
from cellwright.ops.batch import Batch, stack_images
from cellwright.training.environment import peak_memory_mb

IMAGE_HW, N_OBJECTS, N_CLASSES = (512, 512), 150, 4


def drawn_batch(recipe: Recipe, stride: int) -> Batch:
    """One drawn image of size ``IMAGE_HW`` with nuclei of all classes, normalised as in the recipe but not resized."""
    image, truth = draw_field(0, IMAGE_HW, N_OBJECTS)
    config = recipe.input.model_copy(update={"short_side": None, "max_side": None})
    pixels = resize_for_network(image, config, CONVENTIONS[recipe.conventions].resize_rule)
    images, image_hws = stack_images([torch.from_numpy(pixels)], stride)
    layers, layer_of = truth.masks.to_layers()
    return Batch(
        images=images,
        image_hws=image_hws,
        boxes=[torch.from_numpy(truth.boxes_xyxy)],
        class_ids=[torch.arange(len(truth)) % N_CLASSES],
        ignore=[torch.zeros(len(truth), dtype=torch.bool)],
        layers=[torch.from_numpy(layers)],
        layer_of=[torch.from_numpy(layer_of)],
        seed=0,
    )


def sums(network: nn.Module) -> dict[str, float]:
    """The sum of each parameter: detects changes without a copy of the parameters."""
    return {name: parameter.detach().sum(dtype=torch.float64).item() for name, parameter in network.named_parameters()}


def main(name: str) -> None:
    recipe = recipes.load(name)
    torch.manual_seed(0)
    network = build_network(recipe, N_CLASSES).train()
    calm(network)
    batch, before = drawn_batch(recipe, network.stride), sums(network)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trainable, lr=1e-3, momentum=0.9)
    wall, cpu = time.perf_counter(), time.process_time()
    losses = network.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    no_gradient = [
        key
        for key, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    norm = nn.utils.clip_grad_norm_(trainable, 10.0)
    optimiser.step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = sums(network)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    report = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "losses": {key: loss.item() for key, loss in losses.items()},
        "gradient_norm": norm.item(),
        "no_gradient": no_gradient,
        "unchanged": [key for key in before if key not in frozen and before[key] == after[key]],
        "changed_though_frozen": [key for key in frozen if before[key] != after[key]],
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "threads": torch.get_num_threads(),
        "peak_memory_mb": round(peak_memory_mb(torch.device("cpu")) or 0),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
