"""From measured facts to the choices of a recipe: few rules, each with its reason, and the recipe as commented YAML.

All rules are pure functions of the facts, the machine, and what a trial of the bundled model gave. Sizes in network
pixels are those after the resizing of ``input``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from cellwright.api.recipe_facts import ObjectFacts, PixelFacts
from cellwright.core.text import count
from cellwright.data.images.channels import UNNAMED

Family = Literal["unet", "mask_rcnn"]
SECTIONS = ("input", "model", "augment", "train", "evaluate", "predict")
WIDTH = 118  # of a line of the file

# --- family: maps give every pixel to one object, so overlapping objects need boxes; so do classes of which one is so
# much larger that no size of the network's input suits both.
_MANY_OVERLAP, _OTHER_SIZE = 0.05, 2.5
# --- size: a U-Net of depth 4 draws outlines of objects from 12 px well, and sees enough around objects up to 36 px;
# larger ones only cost time. An R-CNN pools boxes from maps with a stride of 4 px: boxes need two cells, 8 px.
_UNET_PX, _RCNN_LEAST_PX, _RCNN_MEDIAN_PX, _MOST_REDUCED, _MOST_ENLARGED = (12, 36), 8, 64, 0.1, 4
_LEAST_DIAMETER_PX = 4  # that a recipe may have
# The median sizes of the images may differ by this factor before each image is resized to its own objects, whose size
# must be estimated in new images, which can go wrong. One network at one scale does well on VRDL, with a factor of 2.4.
_SIZES_DIFFER = 3.0
NUCLEI_PX = 24  # what the bundled model was trained on
# --- starting weights: accuracy@0.5 of the bundled model on training images, with the true size given. With few images,
# less will do: trained on one image from scratch, a flow U-Net reached .34, on four .63 (docs/recipes.md).
_GOOD_START, _FAIR_START, _FEW_IMAGES = 0.5, 0.2, 4
# --- crop: ten objects across, and three times the longest ones, so that most are whole. On a CPU, more steps teach
# more than larger crops: 256 px, as in the shipped recipes.
_ACROSS, _LONGEST, _LEAST_CROP_PX, _STEP_PX = 10, 3, 128, 32
_MOST_CROP_PX = {"cpu": 256, "gpu": 512}
# --- batch: so many pixels per step as in the shipped recipes for CPUs, more on a GPU. Training took at most 2.8 kB per
# pixel with the networks below; freed memory that is kept adds half, and half of the memory is left to others.
_STEP_PIXELS, _GPU_FACTOR, _BYTES_PER_PIXEL, _MEMORY_SHARE = 2 * 256**2, 4, 4200, 0.5
# --- caps: half as many again as there would be in the largest image if it were as dense as the densest.
_MARGIN = 1.5
# --- boxes are elongated if this share of the objects is; then anchors have three shapes.
_MANY_ELONGATED = 0.15
# --- length in steps where no time is given: that of the shipped recipes.
STEPS = {"unet": 6000, "mask_rcnn": 3000, "start": 1000}

_FLUORESCENCE = {"brightness": 0.2, "contrast": 0.3, "gamma": 0.5, "blur_px": 1.0, "noise": 0.05}
_STAINED = {"brightness": 0.15, "contrast": 0.15, "saturation": 0.15, "hue": 0.03}
# Noise and blur hide the faint texture of phase contrast, and slowed its training.
_TRANSMITTED = {"brightness": 0.15, "contrast": 0.15}
_MIXED = _FLUORESCENCE | {"saturation": 0.5, "hue": 0.1, "greyscale": 0.2, "invert": 0.2}


@dataclass(frozen=True)
class Choice:
    """One choice of a recipe: what is chosen, its value and reason in words, and the keys of one section."""

    name: str
    value: str
    why: str
    section: str
    keys: Mapping[str, Any]


@dataclass(frozen=True)
class Machine:
    """Where the recipe will be trained. memory_bytes: that can be used."""

    memory_bytes: float
    is_gpu: bool


@dataclass(frozen=True)
class Trial:
    """What the bundled model found in some training images, compared with their annotations.

    accuracy: @0.5. is_chosen: whether the user wants to start from it, whatever the accuracy. was_trained_on: whether
    these are images that it was trained on.
    """

    n_images: int
    n_objects: int
    accuracy: float
    is_chosen: bool = False
    was_trained_on: bool = False


@dataclass(frozen=True)
class Outline:
    """The choices that the others depend on.

    starts: whether training starts from the bundled model. median_px: the median object, network pixels. scale: network
    pixels per image pixel, on average. has_own_scale: whether each image is resized to its own objects.
    """

    family: Family
    starts: bool
    median_px: float
    scale: float
    has_own_scale: bool


def family_of(objects: ObjectFacts) -> Family:
    """Which kind of network."""
    needs_boxes = objects.overlapping_share > _MANY_OVERLAP or _class_ratio(objects) > _OTHER_SIZE
    return "mask_rcnn" if needs_boxes else "unet"


def outline(objects: ObjectFacts, trial: Trial | str) -> Outline:
    """Family, starting weights and size. trial: or why there was none."""
    family = family_of(objects)
    needed = _FAIR_START if objects.n_images < _FEW_IMAGES else _GOOD_START
    starts = isinstance(trial, Trial) and (trial.is_chosen or trial.accuracy >= needed)
    median = objects.diameter_px[1]
    if starts:
        return Outline(family, True, NUCLEI_PX, NUCLEI_PX / median, True)
    differ = _ratio(objects.image_diameter_px) > _SIZES_DIFFER
    if family == "unet":
        wanted = min(max(median, _UNET_PX[0]), _UNET_PX[1])
        scale = min(max(wanted / median, _MOST_REDUCED), _MOST_ENLARGED)
        return Outline(family, False, round(median * scale, 1), scale, differ)
    low, middle, _ = objects.box_px
    scale = max(min(_RCNN_MEDIAN_PX / middle, 1), _RCNN_LEAST_PX / low, _MOST_REDUCED)
    scale = min(scale, _MOST_ENLARGED)
    return Outline(family, False, median * scale, scale, False)


def choices(
    objects: ObjectFacts,
    pixels: PixelFacts,
    machine: Machine,
    trial: Trial | str,
    plan: Outline,
    channel: Sequence[str | int] = (),
) -> list[Choice]:
    """All choices but the length. channel: those that the user chose."""
    crop = _crop_px(objects, plan, machine)
    batch, crop = _batch(crop, machine)
    dense = (
        [_target(objects, plan)] if plan.family == "unet" else [*_anchors(objects, plan), _caps(objects, plan, crop)]
    )
    return [
        _family_choice(objects, plan),
        _size(objects, plan),
        _channels(pixels, channel),
        _normalisation(pixels, plan),
        *dense,
        _start(objects, trial, plan),
        _crop_choice(crop, objects, plan),
        _scales(objects, plan),
        _colours(pixels),
        _batch_choice(batch, crop, machine),
        _optimiser(plan),
    ]


def _class_ratio(objects: ObjectFacts) -> float:
    sizes = objects.class_diameter_px.values()
    return max(sizes) / min(sizes)


def _ratio(spread: tuple[float, float, float]) -> float:
    return spread[2] / spread[0]


def _family_choice(objects: ObjectFacts, plan: Outline) -> Choice:
    if plan.family == "unet":
        why = (
            f"{objects.overlapping_share:.0%} of the objects overlap another one, so maps can hold them all; flows "
            f"separate objects of any shape: {objects.touching_share:.0%} touch, {objects.elongated_share:.0%} are "
            "elongated"
        )
        network = {"kind": "unet", "width": 16, "depth": 4, "style": "residual"}
        return Choice("model", "flow U-Net", why, "model", network)
    why = (
        f"{objects.overlapping_share:.0%} of the objects overlap another one, and a pixel of a map has one object only"
    )
    if objects.overlapping_share <= _MANY_OVERLAP:
        sizes = ", ".join(f"{name} {px:.3g} px" for name, px in objects.class_diameter_px.items())
        why = f"the classes differ in size ({sizes}), and a pyramid suits all of them"
    network = {
        "kind": "mask_rcnn",
        "backbone": {"depth": 18, "width": 32, "norm": "batch_norm"},
        "fpn": {"channels": 64},
        "mask_head": {"convs": 2, "channels": 64},
    }
    return Choice("model", "Mask R-CNN", why, "model", network)


def _size(objects: ObjectFacts, plan: Outline) -> Choice:
    low, median, high = objects.diameter_px
    first, _, last = objects.image_diameter_px
    measured = f"diameters are {low:.3g} / {median:.3g} / {high:.3g} px (5, 50, 95 %)"
    alike = f"the medians of the images {first:.3g} to {last:.3g}"
    if plan.starts:
        why = f"{measured}; the model that training starts from expects {NUCLEI_PX} px"
        return Choice("size", f"diameter {NUCLEI_PX} px", why, "input", {"diameter_px": NUCLEI_PX})
    if plan.has_own_scale:
        why = f"{measured}, {alike}: too different for one scale, so each image is resized to its own objects"
        diameter = max(plan.median_px, _LEAST_DIAMETER_PX)
        return Choice("size", f"diameter {diameter:g} px", why, "input", {"diameter_px": diameter})
    scale = round(plan.scale, 2)
    fits = "fit the network as they are" if scale == 1 else "get a size that suits the network"
    return Choice("size", f"scale {scale:g}", f"{measured}, {alike}: objects {fits}", "input", {"scale": scale})


def _channels(pixels: PixelFacts, channel: Sequence[str | int]) -> Choice:
    n = len(pixels.channels)
    why = "the images are grey" if pixels.channels == (UNNAMED,) else f"the images have {', '.join(pixels.channels)}"
    if n == 1:
        n, why = 3, f"{why}, repeated three times as in the shipped recipes"
    chosen = {"channel": list(channel)} if channel else {}
    return Choice("channels", str(n), why, "input", {"channels": n} | chosen)


def _normalisation(pixels: PixelFacts, plan: Outline) -> Choice:
    if pixels.modality == "stained" and pixels.mean and not pixels.is_mixed and not plan.starts:
        why = "the colours of a stain mean something, which percentiles of each channel would change"
        keys = {"normalise": "fixed", "mean": list(pixels.mean), "std": list(pixels.std)}
        return Choice("normalisation", "fixed", why, "input", keys)
    why = f"{', '.join(pixels.dtypes)}: brightness depends on exposure and depth, so each image has its own range"
    return Choice("normalisation", "percentile", why, "input", {"normalise": "percentile"})


def _target(objects: ObjectFacts, plan: Outline) -> Choice:
    least = max(int(objects.least_area_px / 4), 1)
    why = f"a quarter of the 1st percentile of areas, {objects.least_area_px:.3g} px: smaller ones are specks"
    target = {"kind": "flow", "body_threshold": 0.3}
    target |= {"outline_share": 0.55, "max_error": 0.6} if plan.starts else {}
    return Choice("smallest object", f"{least} px", why, "model", {"target": target | {"min_area_px": least}})


def _anchors(objects: ObjectFacts, plan: Outline) -> list[Choice]:
    """Ten sizes, two per level: six from the 5th to the 95th percentile of boxes, four beyond."""
    low, _, high = (px * plan.scale for px in objects.box_px)
    step = min(max((high / low) ** (1 / 5), 1.25), 1.7)
    sizes = [round(low * step**k) for k in range(10)]
    ratios = [0.5, 1.0, 2.0] if objects.elongated_share > _MANY_ELONGATED else [1.0]
    why = (
        f"boxes are {low:.3g} to {high:.3g} px wide for the network (5 to 95 %), {objects.elongated_share:.0%} of the "
    )
    why += "objects are elongated"
    anchors = {"sizes_px": [sizes[k : k + 2] for k in range(0, 10, 2)], "ratios": ratios}
    pooled = {"canonical_box_px": round(1.5 * high), "canonical_level": 3, "sampling_ratio": 2}
    of_pool = "boxes up to this size are pooled from the finest level"
    return [
        Choice("anchors", f"{sizes[0]} to {sizes[-1]} px", why, "model", {"anchors": anchors}),
        Choice("pooling", f"{pooled['canonical_box_px']} px", of_pool, "model", {"roi": pooled}),
    ]


def _caps(objects: ObjectFacts, plan: Outline, crop: int) -> Choice:
    most = _rounded_up(max(_MARGIN * objects.n_in_largest, 100))
    in_crop = objects.per_megapixel * (crop / plan.scale) ** 2 / 1e6
    sampled = min(max(2 ** math.ceil(math.log2(4 * in_crop + 1)), 128), 1024)
    proposed = _rounded_up(max(4 / 3 * most, 1000))
    trained = _rounded_up(max(6 * in_crop, 1000))
    why = (
        f"the densest image has {objects.per_megapixel:,.0f} objects per megapixel, the largest one would have "
        f"{objects.n_in_largest:,}: half as many again are kept"
    )
    rpn = {"pre_nms_train": 2 * trained, "post_nms_train": trained}
    rpn |= {"pre_nms_test": _rounded_up(1.5 * proposed), "post_nms_test": proposed, "samples_per_image": sampled}
    head = {"fc_channels": 256, "samples_per_image": sampled, "detections_per_image": most, "score_threshold": 0.05}
    return Choice("objects per image", f"at most {most:,}", why, "model", {"rpn": rpn, "box_head": head})


def _start(objects: ObjectFacts, trial: Trial | str, plan: Outline) -> Choice:
    if isinstance(trial, str):
        return Choice("starting weights", "none", trial, "model", {"init": None})
    tested = f"with the true size, nuclei has accuracy@0.5 {trial.accuracy:.2f} on {count(trial.n_images, 'image')}"
    tested += f" ({count(trial.n_objects, 'object')})"
    tested += ", but was trained on them" if trial.was_trained_on else ""
    few = f", and {count(objects.n_images, 'image')} are few to start from nothing"
    if not plan.starts:
        why = f"{tested}: too little" + (few if objects.n_images < _FEW_IMAGES else "")
        return Choice("starting weights", "none", why, "model", {"init": None})
    why = ("as requested; " if trial.is_chosen else "") + tested
    why += few if trial.accuracy < _GOOD_START and not trial.is_chosen else ""
    fresh = {"init_fresh": ["maps"]} if len(objects.class_names) > 1 else {}
    return Choice("starting weights", "nuclei", why, "model", {"init": "nuclei"} | fresh)


def _crop_px(objects: ObjectFacts, plan: Outline, machine: Machine) -> int:
    wanted = max(_ACROSS * plan.median_px, _LONGEST * objects.length_px[2] * plan.scale)
    most = _MOST_CROP_PX["gpu" if machine.is_gpu else "cpu"]
    side = min(max(wanted, _LEAST_CROP_PX), most, max(objects.short_side_px * plan.scale, 64))
    return math.ceil(side / _STEP_PX) * _STEP_PX


def _crop_choice(crop: int, objects: ObjectFacts, plan: Outline) -> Choice:
    longest = objects.length_px[2] * plan.scale
    why = f"objects are {plan.median_px:.3g} px wide for the network (median), and {longest:.3g} px long (95 %)"
    flips = {"horizontal_flip": 0.5, "vertical_flip": 0.5, "quarter_turns": True}
    return Choice("crop", f"{crop} px", f"{why}; images have no up and down", "augment", {"crop_px": crop} | flips)


def _scales(objects: ObjectFacts, plan: Outline) -> Choice:
    spread = _ratio(objects.image_diameter_px)
    if plan.starts:
        low, high, why = 0.8, 1.25, "the size of objects in new images is estimated, to about a quarter"
    elif plan.has_own_scale:
        low, high = 0.6, 1.67
        why = "the size of objects in new images is estimated by the network itself, so it must see other sizes"
    elif spread > _SIZES_DIFFER:
        low, high, why = 0.5, 2.0, f"the medians of the images differ by a factor of {spread:.2g}"
    else:
        low, high, why = 0.8, 1.25, f"the medians of the images differ by a factor of {spread:.2g}"
    return Choice("changes of size", f"{low:g} to {high:g}", why, "augment", {"scale_min": low, "scale_max": high})


def _colours(pixels: PixelFacts) -> Choice:
    seen = ", ".join(f"{name} {n}" for name, n in pixels.modalities.items())
    if pixels.is_mixed:
        return Choice("changes of colour", "strong", f"mixed images ({seen}), some bright on dark", "augment", _MIXED)
    match pixels.modality:
        case "fluorescence":
            why, keys = f"objects are brighter than a dark background ({seen}): exposure and noise vary", _FLUORESCENCE
        case "stained":
            why, keys = f"coloured, and not on a dark background ({seen}): stain and scanner vary a little", _STAINED
        case _:
            why = f"grey, neither dark nor coloured ({seen}): which parts are bright and dark says what is inside"
            keys = _TRANSMITTED
    return Choice("changes of colour", pixels.modality, why, "augment", keys)


def _batch(crop: int, machine: Machine) -> tuple[int, int]:
    """Crops per step, and the side of the crop, which is halved where not even one fits."""
    fitting = _fitting_pixels(machine)
    while crop**2 > fitting and crop > _LEAST_CROP_PX:
        crop = max(math.ceil(crop / 2 / _STEP_PX) * _STEP_PX, _LEAST_CROP_PX)
    return max(min(_wanted_batch(crop, machine), int(fitting / crop**2)), 1), crop


def _fitting_pixels(machine: Machine) -> float:
    return _MEMORY_SHARE * machine.memory_bytes / _BYTES_PER_PIXEL


def _wanted_batch(crop: int, machine: Machine) -> int:
    return max(round(_STEP_PIXELS / crop**2), 2) * (_GPU_FACTOR if machine.is_gpu else 1)


def _batch_choice(batch: int, crop: int, machine: Machine) -> Choice:
    why = f"a step takes about {batch * crop**2 * _BYTES_PER_PIXEL / 2**30:.2g} GiB"
    if batch < _wanted_batch(crop, machine):
        why += ", and half of the memory that is free is used"
    return Choice("images per step", str(batch), why, "train", {"batch_size": batch})


def _optimiser(plan: Outline) -> Choice:
    lr = 5e-4 if plan.starts else 1e-3
    keys = {
        "optimiser": "adamw",
        "lr": lr,
        "weight_decay": 0.05,
        "schedule": {"kind": "cosine"},
        "warmup": "5%",
        "evaluate_every": "50%",
        "checkpoint_every": "25%",
        "best_metric": "accuracy@0.5" if plan.family == "unet" else "AP@all",
    }
    return Choice("optimiser", f"AdamW {lr:g}", "as in the shipped recipes", "train", keys)


def length_choice(plan: Outline, steps: int | None, pace: str) -> Choice:
    """The length. steps: that fit into the time; None: no time was given. pace: what they were fitted to."""
    if steps is None:
        steps = STEPS["start" if plan.starts else plan.family]
        pace = "as in the shipped recipes; `minutes` fits it to the time there is"
    # An average over about the last tenth of a long run, and over less of a short one.
    keys = {
        "length": count(steps, "step").replace(",", ""),
        "ema_decay": 0.999 if steps >= STEPS["mask_rcnn"] else 0.99,
    }
    return Choice("length", count(steps, "step"), pace, "train", keys)


def _rounded_up(value: float) -> int:
    """The next number with two digits, so that a cap is seen to be one."""
    unit = 10 ** max(math.floor(math.log10(value)) - 1, 0)
    return math.ceil(value / unit) * unit


def commented_yaml(head: Mapping[str, Any], made: Sequence[Choice], lines: Sequence[str]) -> str:
    """A recipe in which each choice is explained above its keys.

    head: the keys before all sections. lines: what the file begins with, one comment each.
    """
    text = "".join(_comment(line, 0) for line in lines) + _keys(head, 0)
    for section in SECTIONS:
        own = [choice for choice in made if choice.section == section]
        text += f"{section}:\n" if own else ""
        text += "".join(
            _comment(f"{choice.name}: {choice.value}; {choice.why}.", 2) + _keys(choice.keys, 2) for choice in own
        )
    return text


def _comment(line: str, indent: int) -> str:
    start = " " * indent + "# "
    wrapped = textwrap.wrap(" ".join(line.split()), WIDTH, initial_indent=start, subsequent_indent=start)
    return "\n".join(wrapped) + "\n"


def _keys(keys: Mapping[str, Any], indent: int) -> str:
    lines = []
    for key, value in keys.items():
        shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
        shown = shown.removesuffix("...\n").strip()
        lines.append(f"{' ' * indent}{key}: {shown}\n")
    return "".join(lines)
