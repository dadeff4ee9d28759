"""One training step of Mask R-CNN ResNet-50 FPN: torchvision and cellwright, with equal weights and samplers.

    python benchmarks/rcnn_train_step.py [--case 512-100 512-800 1000-1862] [--repeat 3] [--profile]

A step is forward, losses, backward, clipping of gradients and an update of SGD, with one image of drawn nuclei of its
own size, one class, float32 and one thread. The stem and the first stage are frozen, and all batch norm, as in
torchvision's fine-tuning. Each peer and case runs in its own process, all of which keep freed memory: the median CPU
time of the repeats after one step that does not count, and the peak memory of the process. A peer that needs more than
``--limit`` GiB fails. What each peer takes as objects (label layers here, N x H x W masks there) is made before.
``--profile`` prints the operations that take most of a step of both.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tables import KEEP_FREED_MEMORY, cpu_seconds, in_kernels, markdown, processor

# Side of the image, objects and their median diameter, px.
CASES = {"512-100": (512, 100, 24.0), "512-800": (512, 800, 13.0), "1000-1862": (1000, 1862, 14.0)}
PEERS = ("torchvision", "cellwright")
LEARNING_RATE, CLIP_NORM = 1e-4, 10.0
LOSSES = ("rpn_class", "rpn_box", "class", "box", "mask")
THEIR_LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")


def prepare(folder: Path, cases: list[str]) -> None:
    """Random weights that saturate no layer, and the images with their objects."""
    from cellwright.data.synthetic import FieldLook, draw_field
    from crowd_rcnn import make_weights

    make_weights(folder)
    for case in cases:
        side, count, diameter_px = CASES[case]
        image, objects = draw_field(0, (side, side), count, FieldLook(diameter_px=diameter_px))
        if len(objects) != count:
            sys.exit(f"{case}: {len(objects)} of {count} objects found a place")
        layers, layer_of = objects.masks.to_layers()
        pixels = (image.data.astype(np.float32).transpose(2, 0, 1) / 255 - 0.45) / 0.225
        np.savez(folder / f"{case}.npz", pixels=pixels, boxes=objects.boxes_xyxy, layers=layers, layer_of=layer_of)


def their_step(weights: dict[str, Any], drawn: Any) -> tuple[Any, Callable[[], dict[str, float]]]:
    """torchvision's mask head and its training step."""
    import torch
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    # What maskrcnn_resnet50_fpn builds if it starts from published weights.
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model = MaskRCNN(backbone, 2, image_mean=[0.0] * 3, image_std=[1.0] * 3)  # images are normalised
    model.load_state_dict(weights)
    model.train()
    model.transform._skip_resize = True
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    image, layers, layer_of = (torch.from_numpy(drawn[name]) for name in ("pixels", "layers", "layer_of"))
    masks = torch.stack([(layers[layer] == k + 1).to(torch.uint8) for k, layer in enumerate(layer_of)])
    target = {"boxes": torch.from_numpy(drawn["boxes"]).float(), "labels": torch.ones_like(layer_of), "masks": masks}
    del layers
    torch.manual_seed(0)  # of the samplers

    def step() -> dict[str, float]:
        optimiser.zero_grad(set_to_none=True)
        losses = model([image], [target])
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimiser.step()
        return {name: losses[other].item() for name, other in zip(LOSSES, THEIR_LOSSES, strict=True)}

    return model.roi_heads.mask_head, step


def our_step(weights: dict[str, Any], drawn: Any) -> tuple[Any, Callable[[], dict[str, float]]]:
    """Our mask head and our training step, with the same weights."""
    import torch

    from cellwright.config.recipe import Recipe
    from cellwright.models.build import build_network
    from cellwright.models.weights.foreign import load_foreign
    from cellwright.ops.batch import Batch, stack_images
    from cellwright.training.state import TrainState
    from cellwright.training.step import take_step

    content = {
        "name": "step",
        "conventions": "torchvision",
        "model": {"kind": "mask_rcnn", "backbone": {"norm": "frozen_batch_norm", "frozen_stages": 2}},
        "train": {"precision": "float32", "clip_norm": CLIP_NORM, "lr": LEARNING_RATE, "threads": 1},
    }
    recipe = Recipe.model_validate(content).resolved()
    network = build_network(recipe, 1)
    load_foreign(network, weights, "torchvision", fresh=(), where="torchvision")
    state = TrainState.initial(network, recipe.train)
    images, image_hws = stack_images([torch.from_numpy(drawn["pixels"])], network.stride)
    layer_of = torch.from_numpy(drawn["layer_of"])
    batch = Batch(
        images=images,
        image_hws=image_hws,
        boxes=[torch.from_numpy(drawn["boxes"]).float()],
        class_ids=[torch.zeros_like(layer_of)],
        ignore=[torch.zeros(len(layer_of), dtype=torch.bool)],
        layers=[torch.from_numpy(drawn["layers"])],
        layer_of=[layer_of],
        seed=0,
    )
    return network.mask_head, lambda: take_step(state, [batch], recipe.train, LEARNING_RATE).losses


def measure(peer: str, case: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What one peer needs for a step."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # as in our training
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    make, drawn = {"torchvision": their_step, "cellwright": our_step}[peer], np.load(folder / f"{case}.npz")
    regions: list[int] = []
    try:
        # Only memory that is written counts, not the libraries of CUDA.
        n_bytes = int(options.limit * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))
        mask_head, step = make(torch.load(folder / "theirs.pt"), drawn)
        handle = mask_head.register_forward_hook(lambda _, __, output: regions.append(len(output)))
        losses = step()
        handle.remove()
        seconds = cpu_seconds(step, options.repeat)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        share = in_kernels(step) if options.profile else ""
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):
            raise
        return {"failed": str(error).strip().splitlines()[-1]}
    return {"seconds": seconds, "peak_mb": peak, "losses": losses, "masks": regions[0], "profile": share}


def row(case: str, peer: str, facts: dict[str, Any], first: dict[str, Any], limit: float) -> dict[str, object]:
    """One line of the table; ``first``: what torchvision needed."""
    if "failed" in facts:
        cells = ("-", "", f"more than {limit * 1024:.0f}", "", "", "")
    else:
        both = [(statistics.median(facts["seconds"]), ".2f"), (facts["peak_mb"], ".0f")]
        theirs = [None, None] if "failed" in first else [statistics.median(first["seconds"]), first["peak_mb"]]
        ratios = ["" if other is None else f"{own / other:.2f}" for (own, _), other in zip(both, theirs, strict=True)]
        (seconds, peak), losses = (format(*pair) for pair in both), facts["losses"]
        cells = (seconds, ratios[0], peak, ratios[1], facts["masks"], ", ".join(f"{losses[k]:.3f}" for k in LOSSES))
    names = ("CPU s", "ratio", "peak MB", "ratio of memory", "masks", f"losses of the first step: {', '.join(LOSSES)}")
    return {"side-objects": case, "": peer, **dict(zip(names, cells, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=12, help="memory of a peer, GiB")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)  # peer, case and folder, in a process of its own
    options = parser.parse_args()
    if options.only:
        peer, case, folder = options.only
        if peer == "prepare":
            prepare(Path(folder), options.case)
        else:
            facts = measure(peer, case, Path(folder), options)
            (Path(folder) / f"{case}-{peer}.json").write_text(json.dumps(facts))
        return
    rows, profiles, environment = [], {}, os.environ | KEEP_FREED_MEMORY | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--only"]
        subprocess.run([*command, "prepare", "", folder], check=True, env=environment)
        for case in options.case:
            facts = {}
            for peer in PEERS:
                subprocess.run([*command, peer, case, folder], check=True, env=environment)
                facts[peer] = json.loads((Path(folder) / f"{case}-{peer}.json").read_text())
                rows.append(row(case, peer, facts[peer], facts["torchvision"], options.limit))
                profiles[case, peer] = facts[peer].get("profile", "")
            theirs, ours = (facts[peer].get("losses", {}) for peer in PEERS)
            if any(abs(ours[name] - theirs[name]) > 0.02 * theirs[name] for name in ours if theirs):
                sys.exit(f"{case}: the losses of the first step differ, so the steps do too:\n{markdown(rows)}")
    print(f"{processor()}\n\n{markdown(rows)}")
    for (case, peer), profile in profiles.items():
        print(f"\n{case}, {peer}\n\n{profile}" if profile else "", end="")


if __name__ == "__main__":
    main()
