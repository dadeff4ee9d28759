"""Mask R-CNN on a crowded image: torchvision, cellwright in PyTorch and with OpenVINO, with equal random weights.

    python benchmarks/crowd_rcnn.py [--side 1000] [--repeat 3] [--phases]

One image of 1000 x 1000, 800 x 800 for the network (ResNet-50, 1 class), 500 detections. Each peer runs in its own
process, with one thread: the shortest CPU time of the repeats, from pixels to masks in the image, after one run that
does not count, and the peak memory of the process.

``--phases`` prints where the time of cellwright goes, and which share of the rate at which PyTorch multiplies 2048 x
2048 matrices it is: work over time, where the work is that of the direct convolutions; and the same for the bundled
model of stained nuclei on the same image, see `nuclei_phases.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from tables import Part, matrix_rates, roofline, timed

PEERS = ("torchvision", "torch", "openvino", "openvino-bf16")
SHORT_SIDE, DETECTIONS = 800, 500
LIMITS = {"box_score_thresh": 0.0, "box_nms_thresh": 0.6, "box_detections_per_img": DETECTIONS}


def picture(side: int) -> np.ndarray:
    """(side, side, 3) uint8: crowded drawn nuclei."""
    from cellwright.data.synthetic import FieldLook, draw_field

    return draw_field(0, (side, side), side * side // 1000, FieldLook(stain="he"))[0].data


def theirs() -> Any:
    """torchvision's network, without weights."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    return maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=SHORT_SIDE, max_size=SHORT_SIDE * 2, **LIMITS
    ).eval()


def make_weights(folder: Path) -> None:
    """Random weights, for torchvision and as a model folder: scaled so that no layer saturates."""
    import torch
    from torch import nn

    from cellwright.config.recipe import Recipe
    from cellwright.models.build import build_network
    from cellwright.models.weights.foreign import load_foreign
    from cellwright.models.weights.model_folder import ModelInfo
    from cellwright.models.weights.torch_io import save_model

    torch.manual_seed(0)
    model, image = theirs(), torch.from_numpy(picture(256)).permute(2, 0, 1) / 255
    model.transform.min_size, model.roi_heads.detections_per_img = (256,), 50  # faster
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.backbone.train()
    with torch.no_grad():
        model.backbone(model.transform([image])[0].tensors)
    heads = model.roi_heads
    deviations = {
        model.rpn.head.cls_logits: 1.5,
        model.rpn.head.bbox_pred: 0.3,
        heads.box_predictor.cls_score: 1.5,
        heads.box_predictor.bbox_pred: 0.5,
        heads.mask_predictor.mask_fcn_logits: 2.0,
    }
    hooks = [layer.register_forward_hook(partial(scale, std=std)) for layer, std in deviations.items()]
    with torch.no_grad():
        model.eval()([image])
    for hook in hooks:
        hook.remove()
    torch.save(model.state_dict(), folder / "theirs.pt")
    content = {
        "name": "crowd",
        "conventions": "torchvision",
        "input": {"normalise": "fixed", "short_side": SHORT_SIDE, "max_side": SHORT_SIDE * 2},
        "model": {
            "kind": "mask_rcnn",
            "box_head": {"score_threshold": 0.0, "nms_iou": 0.6, "detections_per_image": DETECTIONS},
        },
    }
    recipe = Recipe.model_validate(content).resolved()
    network = build_network(recipe, 1)
    load_foreign(network, model.state_dict(), "torchvision", fresh=(), where="torchvision")
    values = {"recipe": recipe.to_dict(), "normalisation": recipe.input.model_dump(mode="json")}
    save_model(folder, network.state_dict(), ModelInfo(kind="mask_rcnn", class_names=("nucleus",), **values))


def scale(layer: Any, _: object, output: Any, *, std: float) -> Any:
    """A hook that gives a layer's first output this standard deviation."""
    if getattr(layer, "scaled", False):
        return None
    layer.scaled, factor = True, std / float(output.std())
    layer.weight.mul_(factor)
    layer.bias.zero_()
    return output * factor


def measure(peer: str, folder: Path, options: argparse.Namespace) -> None:
    """Run one peer and write what was measured and the masks."""
    import torch

    from cellwright.core.masks import MaskSet

    torch.set_num_threads(1)
    pixels = picture(options.side)
    runs, flops = [], {}
    if peer == "torchvision":
        model = theirs()
        model.load_state_dict(torch.load(folder / "theirs.pt"))
        tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255

        def run() -> Any:
            with torch.inference_mode():
                return model([tensor])[0]
    else:
        from cellwright.core.image import Image
        from cellwright.prediction.backends.load import load_predictor

        predictor, _ = load_predictor(folder, backend=peer, device="cpu", threads=1)  # type: ignore[arg-type]

        def run() -> Any:
            return predictor.predict([Image.from_array(pixels)])[0].instances

    result = run()
    for _ in range(options.repeat):
        del result
        with timed([] if peer == "torchvision" else parts_of(predictor.network)) as phases:
            result = run()
        runs.append(phases)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if peer == "torchvision":
        whole = MaskSet.from_dense(torch.cat([part[:, 0] > 0.5 for part in result["masks"].split(50)]).numpy())
        masks = whole[whole.areas > 0]
    else:
        masks = result.masks
        flops = flops_of_phases(predictor.network, run) if peer == "torch" and options.phases else {}
    np.savez(folder / f"{peer}.npz", boxes=masks.boxes, packed=masks.pack())
    rates = matrix_rates() if peer == "torch" and options.phases else {}
    best = min(runs, key=lambda phases: phases["whole"])
    facts = {"seconds": best["whole"], "peak_mb": peak, "phases": best, "gflop": flops, "rates": rates}
    (folder / f"{peer}.json").write_text(json.dumps(facts))


def parts_of(network: Any) -> list[Part]:
    """The functions whose time is taken."""
    from cellwright.models.rcnn import mask_rcnn, regions

    return [
        ("backbone, FPN", network, "features"),
        ("RPN", network.rpn.head, "forward"),
        ("box head", network.box_head[0], "forward"),
        ("mask head", network.mask_head, "forward"),
        ("RoIAlign", regions, "pool_boxes"),
        ("paste", mask_rcnn, "paste_masks"),
    ]


def flops_of_phases(network: Any, run: Callable[[], Any]) -> dict[str, float]:
    """GFLOP of the parts of one run with PyTorch's layers; a multiplication and an addition are two."""
    from torch.utils.flop_counter import FlopCounterMode

    from cellwright.models import layers

    layers.is_faster = lambda *_: False
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()
    modules = {"backbone, FPN": ("ResNet", "FPN"), "RPN": ("RPN.head",)}
    modules |= {"box head": ("BoxHead",), "mask head": ("MaskHead",)}
    return {phase: sum(sum(counts[name].values()) for name in names) / 1e9 for phase, names in modules.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--phases", action="store_true")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # peer and folder, in a process of its own
    options = parser.parse_args()
    if options.only and options.only[0] == "weights":
        make_weights(Path(options.only[1]))
        return
    if options.only:
        measure(options.only[0], Path(options.only[1]), options)
        return
    from cellwright.core.masks import MaskSet

    with tempfile.TemporaryDirectory() as temporary:
        folder, facts, masks = Path(temporary), {}, {}
        subprocess.run([sys.executable, __file__, "--only", "weights", temporary], check=True)
        for peer in PEERS:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", peer, temporary], check=True)
            facts[peer] = json.loads((folder / f"{peer}.json").read_text())
            stored = np.load(folder / f"{peer}.npz")
            masks[peer] = MaskSet.unpack((options.side, options.side), stored["boxes"], stored["packed"])
    print("| | CPU s | ratio | peak MB | ratio | masks | IoU with those of torchvision, least, median |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    first = facts["torchvision"]
    for peer, own in facts.items():
        ratios = [own[key] / first[key] for key in ("seconds", "peak_mb")]
        i, _, iou = masks[peer].iou(masks["torchvision"])
        best = np.zeros(len(masks[peer]))
        np.maximum.at(best, i, iou)
        print(
            f"| {peer} | {own['seconds']:.2f} | {ratios[0]:.2f} | {own['peak_mb']:.0f} | {ratios[1]:.2f} "
            f"| {len(best)} | {best.min():.4f}, {np.median(best):.4f} |"
        )
    if options.phases:
        rates = facts["torch"]["rates"]
        print(f"\nmatrix products: float32 {rates['float32']:.0f} GFLOP/s, bf16 {rates['bfloat16']:.0f} GFLOP/s\n")
        seconds = {peer: facts[peer]["phases"] for peer in PEERS[1:]}
        gflop = facts["torch"]["gflop"]
        print(roofline(gflop | {"whole": sum(gflop.values())}, seconds, rates["float32"]))
        words = ["--side", str(options.side), "--repeat", str(options.repeat), "--rate", str(rates["float32"])]
        subprocess.run([sys.executable, str(Path(__file__).with_name("nuclei_phases.py")), *words], check=True)


if __name__ == "__main__":
    main()
