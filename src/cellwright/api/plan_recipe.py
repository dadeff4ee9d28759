"""``plan``: write a recipe that is fitted to a dataset, with the reason of each choice.

Here, to plan is the verb; the plan of the verb, as of all verbs, is the dataclass with its options. What is measured is
in `recipe_facts`, and the rules are in `recipe_choices`.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from cyclopts import Parameter

from cellwright.api.outputs import FileOutput, write_once
from cellwright.api.pacing import EVALUATIONS, FEW, fitted_steps, measured_pace
from cellwright.api.read import read_annotations
from cellwright.api.recipe_choices import (
    NUCLEI_PX,
    Choice,
    Machine,
    Outline,
    Trial,
    choices,
    commented_yaml,
    family_of,
    length_choice,
    outline,
)
from cellwright.api.recipe_facts import (
    MAX_PIXEL_IMAGES,
    ObjectFacts,
    PixelFacts,
    evenly,
    object_facts,
    pixel_facts,
    read_sample,
    training_samples,
)
from cellwright.api.shared_options import FormatName, Planes, Series, TimePoint, reading_of
from cellwright.config import recipe as recipes
from cellwright.config.recipe import Recipe
from cellwright.core.dataset import Dataset
from cellwright.core.errors import UsageError
from cellwright.core.files import write_text
from cellwright.core.ignored import counted_objects
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.memory import available_bytes
from cellwright.core.needs_torch import require_torch
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.public import public
from cellwright.core.text import count, listed
from cellwright.data.formats.predictions import as_annotations
from cellwright.data.identity import annotation_digest
from cellwright.data.images.channels import RGB
from cellwright.data.images.reading import Reading

if TYPE_CHECKING:
    from cellwright.data.images.channels import ChannelChoice

# The trial of the bundled model: so many images, of each at most a window of this side, network pixels.
_TRIAL_IMAGES, _TRIAL_PX = 4, 512
# Evaluations may take this share of the time; of more validation images, the first ones are evaluated.
_EVALUATING = 0.25
_FEW_OBJECTS = 50  # say little about sizes and shapes
BUNDLED = "nuclei"


@Parameter(name="*")
@dataclass(frozen=True)
class RecipePlan:
    """Write a recipe fitted to a dataset, with the reason of each choice."""

    dataset: Path
    """A dataset folder, or anything that `data convert` reads; the split train is measured, without splits all."""
    _: KW_ONLY
    minutes: float | None = None
    """Make the training as long as fits into so many minutes; a few steps are timed on this machine."""
    format: FormatName = None
    channel: tuple[str, ...] = ()
    """Name or number of the channel to train on, where there are several, as for `train`."""
    init: Literal["nuclei", "none"] | None = None
    """Weights to start from; by default nuclei, if it finds the objects of some training images, else none."""
    z: Planes = None
    t: TimePoint = None
    series: Series = None
    device: str = "auto"
    """Where the training will run: auto, cpu, cuda:N or mps."""
    out: Path = Path("recipe.yaml")
    """File to write."""
    overwrite: bool = False
    """Replace an existing file."""


@public
@dataclass(frozen=True, repr=False)
class PlannedRecipe:
    """A recipe that was fitted to a dataset, and why.

    Attributes:
        recipe: what `train` takes.
        choices: one per choice: ``name``, ``value`` and ``why`` in words, and the ``keys`` of a ``section``.
        unknown: what could not be known from the data, one sentence each.
        text: the recipe as YAML, with the reasons as comments.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import cellwright as cw
        >>> from cellwright.data.synthetic import FieldLook, write_demo_dataset
        >>> look = FieldLook(stain="fluorescence", overlap=0)
        >>> data = write_demo_dataset(Path(tempfile.mkdtemp()), splits=(("train", 1),), image_hw=(96, 96), look=look)
        >>> cw.plan(data, init="none", device="cpu")
        PlannedRecipe(flow U-Net, 12 choices, 4 things unknown)
    """

    recipe: Recipe
    choices: tuple[Choice, ...]
    unknown: tuple[str, ...]
    text: str

    def save(self, path: Path | str) -> Path:
        """Write the recipe as YAML, to be edited and trained; an existing file is replaced."""
        write_text(path, self.text)
        return Path(path)

    def __repr__(self) -> str:
        things = f"{len(self.unknown)} {'thing' if len(self.unknown) == 1 else 'things'} unknown"
        return f"PlannedRecipe({self.choices[0].value}, {count(len(self.choices), 'choice')}, {things})"


def plan(
    dataset: Dataset | Path | str,
    *,
    minutes: float | None = None,
    channel: ChannelChoice | None = None,
    init: Literal["nuclei", "none"] | None = None,
    device: str = "auto",
) -> PlannedRecipe:
    """A recipe that is fitted to the training images of a dataset: network, sizes, crops, batch, length and so on.

    Args:
        dataset: a dataset or its folder; images of the split "train" are measured, without splits all.
        minutes: make the training as long as fits into this time; a few steps are timed on this machine. None: as long
            as the shipped recipes.
        channel: name or index of the channel to train on, as for `train`.
        init: weights to start from, "nuclei" or "none"; None asks the data: a few training images are predicted with
            ``nuclei`` and compared with their annotations.
        device: where the training will run: "auto", "cpu", "cuda:N" or "mps".

    Returns:
        A `PlannedRecipe`. Apart from ``minutes``, the same data give the same recipe on the same kind of machine.

    Raises:
        InputError: there are no training images or no objects, an image cannot be read, or their channels differ.
        UsageError: a channel or device does not exist, or ``minutes`` is not above 0.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import cellwright as cw
        >>> from cellwright.data.synthetic import FieldLook, write_demo_dataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> look = FieldLook(stain="fluorescence", overlap=0)
        >>> data = write_demo_dataset(folder, splits=(("train", 1),), image_hw=(96, 96), look=look)
        >>> planned = cw.plan(data, init="none", device="cpu")
        >>> planned.recipe.model.kind, planned.recipe.input.channels
        ('unet', 3)
        >>> planned.save(folder / "recipe.yaml").name
        'recipe.yaml'
    """
    data = as_annotations(dataset) if isinstance(dataset, Dataset) else read_annotations(Path(dataset))
    options = _Options(minutes, Reading(channel).channels, init, device)
    return _plan(data, options, SILENT)


def run(plan: RecipePlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> PlannedRecipe | None:
    """Carry out a plan and write the file; returns None after a dry run. Raises what `plan` raises, and `OutputError`
    if the file exists with other content.
    """
    require_torch("planning a training")
    options = _Options(plan.minutes, plan.channel, plan.init, plan.device)
    dataset = read_annotations(
        plan.dataset, dataclasses.replace(reading_of(plan), channel=()), screen, format=plan.format
    )
    training_samples(dataset)
    suffixes = (".yaml", ".yml")
    output = FileOutput(plan.out, inputs=(plan.dataset,), overwrite=plan.overwrite, suffixes=suffixes)
    planned = []

    def write(folder: Path) -> None:
        planned.append(_plan(dataset, options, screen))
        planned[0].save(folder / plan.out.name)

    write_once(output, write, str(plan.out), screen, dry_run=dry_run)
    return planned[0] if planned else None


@dataclass(frozen=True)
class _Options:
    """What the user chose."""

    minutes: float | None
    channel: tuple[str | int, ...]
    init: str | None
    device: str

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:  # True for NaN
            raise UsageError("invalid time", where="`minutes`", got=self.minutes, expected="above 0")
        if self.init not in (None, BUNDLED, "none"):
            raise UsageError("unknown `init`", got=self.init, expected=f"{BUNDLED} or none")


def _plan(dataset: Dataset, options: _Options, screen: ProgressReporter) -> PlannedRecipe:
    reading = Reading(options.channel).over(Reading.recorded(dataset.info))
    machine = _machine(options.device)
    pixels = pixel_facts(dataset, reading, screen.track)
    for line in summarise(pixels.notes):
        screen.note(line)
    objects = object_facts(dataset, screen.track)
    trial = _trial_or_why_not(dataset, reading, objects, pixels, options, screen)
    plan = outline(objects, trial)
    if options.init == BUNDLED and not plan.starts and isinstance(trial, str):
        problem = f"the bundled model {BUNDLED} cannot be used here"
        raise UsageError(problem, where="`init`", got=trial, remedy='leave `init` out, or use `init="none"`')
    made = choices(objects, pixels, machine, trial, plan, options.channel)
    head = _head(dataset, objects, plan, options)
    if options.minutes is None:
        made.append(length_choice(plan, None, ""))
    else:
        made += _fitted(head, made, plan, dataset, options, screen)
    unknown = _unknown(objects, pixels, plan, options)
    lines = [
        f"Planned by cellwright plan from {count(objects.n_images, 'training image')} with "
        f"{count(objects.n_objects, 'object')} measured. An ordinary recipe: edit it, then train it.",
        *(f"Not known: {line}." for line in unknown),
    ]
    text = commented_yaml(head, made, lines)
    return PlannedRecipe(recipes.from_dict(recipes.parse(text, "plan"), "plan"), tuple(made), tuple(unknown), text)


def _head(dataset: Dataset, objects: ObjectFacts, plan: Outline, options: _Options) -> dict[str, object]:
    root = "" if dataset.root is None else re.sub(r"[^A-Za-z0-9_.-]+", "_", dataset.root.resolve().name)
    described = (
        f"Planned for {count(objects.n_images, 'training image')}; median diameter {objects.diameter_px[1]:.3g} px."
    )
    head: dict[str, object] = {"name": f"planned/{root or 'data'}", "description": described}
    head["classes"] = len(dataset.class_names)
    if plan.family == "mask_rcnn":
        head["conventions"] = "detectron2"
    return head


def _fitted(
    head: dict[str, object],
    made: list[Choice],
    plan: Outline,
    dataset: Dataset,
    options: _Options,
    screen: ProgressReporter,
) -> list[Choice]:
    """The length that fits into the time, and how many images are evaluated."""
    assert options.minutes is not None
    screen.note("measuring how long a step takes")
    text = commented_yaml(head, [*made, length_choice(plan, None, "")], [])
    recipe = recipes.from_dict(recipes.parse(text, "plan"), "plan")
    with tempfile.TemporaryDirectory(prefix="cellwright_plan_") as folder:
        step_s, evaluate_s = measured_pace(
            recipe, dataset, options.channel, device=options.device, folder=Path(folder) / "run"
        )
    n_validation = sum(sample.split == recipe.evaluate.split for sample in dataset)
    total_s, limited = 60 * options.minutes, []
    if EVALUATIONS * evaluate_s > _EVALUATING * total_s:
        most = max(int(n_validation * _EVALUATING * total_s / (EVALUATIONS * evaluate_s)), 1)
        if most < n_validation:
            evaluate_s *= most / n_validation
            why = f"evaluations of all {n_validation} would take more than a quarter of the time"
            value = count(most, "validation image")
            limited = [Choice("evaluation", value, why, "evaluate", {"max_images": most})]
    steps = fitted_steps(total_s, step_s, evaluate_s)
    pace = f"fits into {options.minutes:g} min at {step_s:.2g} s per step and {evaluate_s:.2g} s per evaluation"
    if steps < FEW:
        screen.note(f"warning: a model learns little in {count(steps, 'step')}; allow more minutes")
    return [length_choice(plan, steps, pace), *limited]


def _machine(device: str) -> Machine:
    """The memory of the device."""
    from cellwright.prediction.backends.torch import resolve_device

    chosen = resolve_device(device)
    if chosen.type == "cuda":
        import torch

        return Machine(float(torch.cuda.mem_get_info(chosen)[0]), is_gpu=True)
    return Machine(float(available_bytes()), is_gpu=False)


# --- starting weights ---------------------------------------------------------------------------------------------


def _trial_or_why_not(
    dataset: Dataset,
    reading: Reading,
    objects: ObjectFacts,
    pixels: PixelFacts,
    options: _Options,
    screen: ProgressReporter,
) -> Trial | str:
    if options.init == "none":
        return "as requested"
    if family_of(objects) != "unet":
        return "the bundled model is a U-Net, and there are no other weights"
    if len(pixels.channels) > 1 and pixels.channels != RGB:
        return f"the bundled model sees one channel, or red, green and blue, and not {', '.join(pixels.channels)}"
    trial = _tried(dataset, reading, objects, options.device, screen)
    return dataclasses.replace(trial, is_chosen=True) if options.init == BUNDLED else trial


def _tried(dataset: Dataset, reading: Reading, objects: ObjectFacts, device: str, screen: ProgressReporter) -> Trial:
    """Predict a window of a few training images with the bundled model, and compare it with the annotations.

    Images that the model was trained on say little; they are taken only where there are no others.
    """
    from cellwright.api.models import load_model
    from cellwright.evaluation.evaluate import evaluate_pairs

    model = load_model(BUNDLED, device=device)
    truth, predicted = [], []
    samples = evenly(training_samples(dataset).samples, MAX_PIXEL_IMAGES)
    new = [s for s in samples if annotation_digest(s.read_instances(), s.id) not in model.trained_on]
    samples = evenly(new or samples, _TRIAL_IMAGES)
    for sample in screen.track(samples, f"trying the model {BUNDLED}"):
        image, annotated = read_sample(sample, reading), sample.read_instances()
        masks = counted_objects(annotated).masks
        areas = masks.areas[masks.areas > 0]
        diameter = float(np.sqrt(4 * np.median(areas) / np.pi)) if len(areas) else objects.diameter_px[1]
        y0, x0, y1, x1 = _window(masks, max(round(_TRIAL_PX * diameter / NUCLEI_PX), 32))
        cut = dataclasses.replace(image, data=image.data[y0:y1, x0:x1])
        found = model.with_options(diameter=diameter).predictions(cut).instances
        shown = annotated.masks.window(y0, x0, y1, x1)
        there = shown.areas > 0
        truth.append(Instances.from_masks(shown[there], ignore=annotated.ignore[there]))
        predicted.append(Instances.from_masks(found.masks, scores=found.scores))
    accuracy = float(evaluate_pairs(predicted, truth, metrics=["accuracy"])["accuracy@0.5"])
    n_objects = sum(len(counted_objects(cells)) for cells in truth)
    return Trial(len(samples), n_objects, 0.0 if np.isnan(accuracy) else accuracy, was_trained_on=not new)


def _window(masks: MaskSet, side: int) -> tuple[int, int, int, int]:
    """A window (y0, x0, y1, x1) of at most this side around the middle of the objects."""
    bounds = []
    for axis, length in enumerate(masks.image_hw):
        centres = masks.boxes[:, [1 - axis, 3 - axis]].mean(axis=1)
        middle = float(np.median(centres)) if len(centres) else length / 2
        start = int(min(max(middle - side / 2, 0), max(length - side, 0)))
        bounds.append((start, min(start + side, length)))
    return bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1]


def _unknown(objects: ObjectFacts, pixels: PixelFacts, plan: Outline, options: _Options) -> list[str]:
    """What the data do not say."""
    lines = []
    if not objects.n_validation:
        lines.append("how good the model will be, without validation images; choose some with: cellwright data split")
    if objects.n_objects < _FEW_OBJECTS:
        lines.append(f"whether {count(objects.n_objects, 'object')} show all sizes and shapes; annotate more")
    if missing := [name for name in objects.class_names if name not in objects.class_diameter_px]:
        lines.append(f"what {listed(missing)} looks like, without a training image that shows it")
    if objects.n_measured < objects.n_images:
        lines.append(
            f"the objects of {count(objects.n_images - objects.n_measured, 'image')}: the others were measured"
        )
    if objects.annotated_share < 1:
        lines.append(f"what is in the {1 - objects.annotated_share:.0%} of the pixels that are not annotated")
    if pixels.is_mixed:
        shown = ", ".join(f"{n} {name}" for name, n in pixels.modalities.items())
        lines.append(f"whether one network suits all kinds of images ({shown}); if not, train one for each")
    if options.minutes is None:
        lines.append("how long a step takes here, without a time (`minutes`)")
    scaled = "resized until their objects have the expected size, which is estimated"
    if not plan.has_own_scale:
        scaled = "not resized by the size of their objects, so the magnification must be the same"
    lines.append(f"whether the images to predict are like these; they are {scaled}")
    return lines
