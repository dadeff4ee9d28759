"""What the damage tests damage: small files of every format and image kind, and every file of our own that is read.

A subject is a folder, the files in it that are damaged, and a function that reads the folder as a command would.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import conformance
import drawn_images
import imagecodecs
import numpy as np
import tifffile
from format_examples import EXAMPLES
from PIL import Image as Pillow

import cellwright as cw
from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.testing.objects import draw_objects, save_dataset

IMAGE_HW = (23, 31)


@dataclass(frozen=True)
class Subject:
    """A folder, its files to damage, and how it is read.

    same: whether a damaged file must be read as if it were not, or not at all, because others contain all that it does.
    """

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], object]
    same: bool = False


# --- annotation formats ---------------------------------------------------------------------------------------------

COCO = {
    "images": [{"id": "a", "file_name": "a.png", "width": 31, "height": 23}],
    "categories": [{"id": 0, "name": "root"}, {"id": "1", "name": "n", "supercategory": "root"}],
    "annotations": [
        {"id": 1, "image_id": "a", "category_id": 1, "segmentation": [[1, 2], [9, 2], [8, 9]], "iscrowd": "0"},
        {"id": 2, "image_id": "a", "category_id": 1, "segmentation": [[1, 2, 9, 2, 8, 9], [1, 1, 2, 2]], "bbox": []},
        {"id": 3, "image_id": "a", "category_id": 1, "segmentation": [], "bbox": [1, 2, 3, 4]},
        {"id": 4, "image_id": "a", "category_id": 1, "segmentation": {"counts": [30, 4, 679], "size": [23, 31]}},
        {"id": 5, "image_id": "a", "category_id": 1, "segmentation": {"counts": "n02e00mc0", "size": [23, 31]}},
    ],
}
# Files as other programs write them.
QUIRKS: dict[str, dict[str, str]] = {
    "coco": {"instances.json": json.dumps(COCO)},
    "dsb2018_csv": {"train.csv": "ImageId;EncodedPixels\na.png;1 5 40 3\nb;-1\n"},
    "yolo_seg": {"data.yaml": "train: images\nnames: [a]\n", "labels/a.txt": "0 .1 .1 .5 .2 .2 .7\n0 .1 .1 .2 .3\n"},
    "xml_outlines": {
        "a.xml": """<Annotations MicronsPerPixel="0.25"><Annotation Id="1" Name="a"><Regions>
<Region Id="1" Type="0"><Vertices><Vertex X="1.5" Y="2.25"/><Vertex X="9" Y="2"/><Vertex X="8" Y="9.5"/></Vertices>
</Region><Region Id="2" Type="0" NegativeROA="1"><Vertices><Vertex X="6" Y="4"/><Vertex X="7" Y="4"/>
<Vertex X="7" Y="5"/></Vertices></Region></Regions></Annotation></Annotations>"""
    },
}


def formats(root: Path) -> dict[str, list[Subject]]:
    """For each format: what its writer writes, files as other programs write them, and the examples of other tests."""
    subjects: dict[str, list[Subject]] = {name: [] for name in FORMATS}
    truth = save_dataset(root / "in", {"a": _objects("coco")}, conformance.class_names("coco"))

    def add(name: str, folder: Path, path: Path, files: list[Path]) -> None:
        read = partial(_read_annotations, name, str(path.relative_to(folder)), truth)
        subjects[name].append(Subject(folder, tuple(str(file.relative_to(folder)) for file in files), read))

    for name, carries in conformance.CARRIES.items():
        folder = root / f"written_{name}"
        dataset = save_dataset(root / "in", {"a": _objects(name)}, conformance.class_names(name))
        conformance.write(name, dataset, folder)
        for sidecar in folder.rglob("*.index"):
            sidecar.unlink()
        images = ("a.png", "image.")
        files = [file for file in _files(folder) if not file.name.startswith(images) and "images" not in file.parts]
        add(name, folder, folder / carries.out, files)
    for name, contents in QUIRKS.items():
        folder = root / f"quirks_{name}"
        for file, text in contents.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        for image in ("a", "b"):
            (folder / f"{image}.png").write_bytes(imagecodecs.png_encode(np.zeros(IMAGE_HW, np.uint8)))
        add(name, folder, folder, [folder / file for file in contents])
    for name, write in EXAMPLES.items():
        folder = root / f"example_{name}"
        folder.mkdir()
        path = write(folder)
        add(name, folder, path, _files(folder))
    for name, contents in _by_hand().items():
        folder = root / f"hand_{name}"
        folder.mkdir()
        for file, content in contents.items():
            _save_array(folder / file, content)
        add(name, folder, folder, [folder / file for file in contents if file != "image.tif"])
    return subjects


def _objects(name: str) -> Any:
    return conformance.draw(name, 1, n=5, image_hw=IMAGE_HW)


def _by_hand() -> dict[str, dict[str, Any]]:
    pixels = np.random.default_rng(0).integers(0, 255, IMAGE_HW, dtype=np.uint8)
    labels = draw_objects(1, n=5, image_hw=IMAGE_HW, overlaps=False, scored=False).masks.to_label_map()
    cellpose = {"masks": labels.astype(np.uint16), "outlines": [[1, 2], [3.5]], "filename": "x"}
    return {
        "label_images": {"x.png": pixels, "x_seg.npy": cellpose},
        "label_folder": {"x.png": labels.astype(np.uint8), "y.tif": labels.astype(np.int32)},
        "class_masks": {"image.tif": pixels, "class1.tif": labels.astype(np.float64)},
        "image_folder": {"x.png": pixels, "y.tif": pixels},
    }


def _save_array(path: Path, content: Any) -> None:
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(content))
    else:
        tifffile.imwrite(path, content, compression="zlib")


def _read_annotations(name: str, path: str, truth: cw.Dataset, folder: Path) -> object:
    FORMATS[name].sniff(folder / path)
    dataset = cw.read_dataset(folder / path, format=name, images=truth, require_images=False)
    if name == "image_folder":
        return [cw.read_image(sample.image_path) for sample in dataset if sample.image_path is not None]
    return [_as_values(sample.read_instances()) for sample in dataset]


def _as_values(instances: cw.Instances) -> object:
    masks = instances.masks
    scores = None if instances.scores is None else instances.scores.tolist()
    return [instances.ids.tolist(), instances.class_ids.tolist(), scores, masks.boxes.tolist(), masks.crops.tobytes()]


# --- images ---------------------------------------------------------------------------------------------------------


def images(root: Path) -> dict[str, list[Subject]]:
    """For each kind: files that show the field of `drawn_images`, and stacks and series."""
    kinds: dict[str, list[Subject]] = {}
    writers: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
        name: (write, {}) for name, write in drawn_images.FIELDS.items()
    }
    writers |= _stacks() | {
        "picture.jpg": (drawn_images.pillow(Pillow.fromarray(drawn_images.HE)), {}),
        "turned.jpg": (drawn_images.jpeg_turned(drawn_images.GREY, 6), {}),
        "picture.webp": (drawn_images.pillow(Pillow.fromarray(drawn_images.HE)), {}),
        "lossless.webp": (drawn_images.pillow(Pillow.fromarray(drawn_images.HE), lossless=True), {}),
        "grey.bmp": (drawn_images.pillow(Pillow.fromarray(drawn_images.GREY)), {}),
        "colour.bmp": (drawn_images.pillow(Pillow.fromarray(drawn_images.HE)), {}),
    }
    for name, (write, options) in writers.items():
        folder = root / f"image_{len(list(root.glob('image_*')))}"
        folder.mkdir()
        write(folder / name)
        kinds.setdefault(_kind_of(name), []).append(Subject(folder, (name,), partial(_read_image, name, options)))
    return kinds


def _kind_of(name: str) -> str:
    suffix = Path(name).suffix.lower().replace("tiff", "tif")
    codecs = ("jpeg", "jp2k", "deflate", "lzw", "zstd", "packbits", "g4", "zlib")
    if suffix == ".tif" and any(codec in name for codec in codecs):
        return "compressed tif"
    if suffix == ".tif" and any(kind in name for kind in ("ome", "stack", "series", "imagej", "pyramid", "page")):
        return "tif of several images"
    return suffix[1:]


def _stacks() -> dict[str, tuple[Callable[[Path], None], dict[str, Any]]]:
    stack = np.stack([drawn_images.GREY[:40, :50]] * 3)
    several = np.stack([stack, stack])
    ome = {"axes": "CZYX", "Channel": {"Name": ["DAPI", "GFP"]}, "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}
    imagej = {"axes": "ZCYX", "spacing": 2.0, "unit": "um", "Labels": ["a"] * 6}
    return {
        "stack.ome.tif": (drawn_images.tiff(several, ome=True, metadata=ome, photometric="minisblack"), {"z": 1}),
        "projected.ome.tif": (
            drawn_images.tiff(several, ome=True, metadata=ome, photometric="minisblack"),
            {"z": "max"},
        ),
        "imagej_stack.tif": (
            drawn_images.tiff(several.swapaxes(0, 1), imagej=True, metadata=imagej, resolution=(2, 2)),
            {"z": 0},
        ),
        "series.tif": (drawn_images.pages(drawn_images.GREY, drawn_images.GREY[:50]), {"series": 1}),
        "appended_series.tif": (drawn_images.appended(drawn_images.GREY, drawn_images.BLANK), {"series": 0}),
    }


def _read_image(name: str, options: Mapping[str, Any], folder: Path) -> object:
    from cellwright.data.images.read import image_header

    if not options:
        image_header(folder / name)
    return cw.read_image(folder / name, **options)


# --- files of our own -----------------------------------------------------------------------------------------------


@dataclass
class _Own:
    """Copies of outputs of the workshop, each with the files to damage."""

    root: Path
    subjects: dict[str, list[Subject]] = field(default_factory=dict)

    def add(self, name: str, source: str, files: str, read: Callable[[Path], object], *, same: bool = False) -> None:
        folder = self.root / f"own_{len(list(self.root.glob('own_*')))}"
        shutil.copytree(source, folder)
        found = sorted(str(file.relative_to(folder)) for file in folder.glob(files) if file.is_file())
        assert found, f"the workshop made no {files} in {source}"
        self.subjects.setdefault(name, []).append(Subject(folder, tuple(found), read, same))


def own(root: Path) -> dict[str, list[Subject]]:
    """For each file of our own: outputs of the workshop, which is the working directory."""
    files = _Own(root)
    data = partial(_read_dataset_folder, Path.cwd() / "source")
    files.add("dataset.json", "data", "dataset.json", data)
    files.add("dataset.index", "data", "dataset.index", data, same=True)
    files.add("predictions.json", "pred_all", "predictions.json", data)
    files.add("files of a prediction folder", "pred_all", "i[01]*[zfn]", data)
    files.add("claim.json", "pred_all", ".cellwright/claim.json", _open_output)
    files.add("records of a job", "half", ".cellwright/progress/*", _resume_prediction)
    for name in ("job.json", "tiles/*"):
        files.add(f"{name} of a tile job", "job", name, _open_job)
        files.add(f"{name} of a tile job", "half_job", name, _resume_job)
    files.add("model.json", "run/model", "model.json", _predict)
    files.add("weights.safetensors", "run/model", "weights.safetensors", _predict)
    run_files = {
        "environment.json": _check_run, "inputs.json": _read_identity, "log.csv": _read_log,
        "metrics.json": _read_best, "*.*": _read_record,
    }  # fmt: skip
    for name, read in run_files.items():
        files.add("files of a run" if name == "*.*" else f"{name} of a run", "run", name, read)
    for name in ("state.json", "weights.safetensors", "optimiser.safetensors", "averaged.safetensors"):
        pattern = f"checkpoints/step_00000012/{name}"
        files.add(f"{name} of a checkpoint", "run", pattern, partial(_read_checkpoint, "checkpoints/step_00000012"))
    (root / "recipe").mkdir()
    shutil.copy("tiny.yaml", root / "recipe" / "recipe.yaml")
    files.add("recipe.yaml", str(root / "recipe"), "recipe.yaml", _read_recipe)
    files.add("recipe.yaml", "run", "recipe.yaml", _read_recipe)
    return files.subjects


def _read_dataset_folder(source: Path, folder: Path) -> object:
    dataset = cw.read_dataset(folder, images=source)
    return [[sample.id, sample.split, _as_values(sample.read_instances())] for sample in dataset]


def _predict(folder: Path) -> object:
    from cellwright.api.inspect_model import InspectPlan, run

    run(InspectPlan(str(folder)))
    with warnings.catch_warnings(action="ignore"):  # a damaged range of the training images may be one that is told
        return cw.load_model(folder, device="cpu").predict(np.zeros((16, 16), np.uint8))


def _read_record(folder: Path) -> object:
    """As ``compare`` reads a run."""
    from cellwright.report.run_record import read_record

    return read_record(folder)


def _read_log(folder: Path) -> object:
    from cellwright.report.curves import read_log

    return read_log(folder / "log.csv")


def _read_best(folder: Path) -> object:
    from cellwright.training.run_folder import RunFolder, read_best

    return read_best(RunFolder(folder))


def _check_run(folder: Path) -> object:
    """As ``train`` finds out whether it resumes a run; with other data, and so what has changed."""
    from cellwright.core.files import read_json
    from cellwright.training.run_folder import RunFolder
    from cellwright.training.run_output import RunOutput

    whole = RunFolder(Path("run").resolve())
    recipe, environment = whole.recipe.read_text(), read_json(whole.environment)
    identity = RunOutput(whole.root).recorded_identity()
    RunOutput(folder).examine(recipe, environment, identity)
    environment["inputs"]["data"] = "other"
    with _expected_refusal():
        RunOutput(folder).examine(recipe, environment, identity)
    return None


def _read_identity(folder: Path) -> object:
    from cellwright.core.files import read_json
    from cellwright.data.identity import Identity

    _check_run(folder)
    return Identity.from_dict(read_json(folder / "inputs.json"), folder / "inputs.json")


def _open_output(folder: Path) -> object:
    """As ``predict`` looks at a folder before it writes there."""
    from cellwright.core.output_folder import OutputFolder

    output = OutputFolder(folder, "predict", same=("fuse",))
    return output.missing if output.is_complete else None


def _resume_prediction(folder: Path) -> object:
    """As ``predict`` looks for what is done."""
    from cellwright.api.predict import PredictPlan, run

    return run(PredictPlan((Path("broken"),), model=("classical",), save=("masks",), out=folder), dry_run=True)


def _open_job(folder: Path) -> object:
    """As ``job status`` and ``export`` read a job."""
    from cellwright.api.export_job import export_job
    from cellwright.api.tile_jobs import open_job
    from cellwright.core.progress import no_progress

    return open_job(folder).rows(), export_job(folder, "coco_results", folder.parent / "out.json", no_progress)


def _resume_job(folder: Path) -> object:
    """As another shard goes on with a job."""
    from cellwright.api.predict import PredictPlan, run

    plan = PredictPlan((Path("field.tif"),), model=("run",), device="cpu", tile="128", labels="tiff", out=folder)
    return run(plan, dry_run=True)


class _expected_refusal:  # noqa: N801 - used like contextlib.suppress
    def __enter__(self) -> None: ...
    def __exit__(self, kind: object, error: object, place: object) -> bool:
        return isinstance(error, cw.OutputError)


def _read_checkpoint(name: str, folder: Path) -> object:
    from cellwright.training.checkpoint import load_checkpoint

    load_checkpoint(folder / name, _train_state())
    return None


@cache
def _train_state() -> Any:
    from cellwright.config import recipe as recipes
    from cellwright.models.build import build_network
    from cellwright.training.state import TrainState

    recipe = recipes.load("tiny.yaml").resolved()
    return TrainState.initial(build_network(recipe, 1), recipe.train)


def _read_recipe(folder: Path) -> object:
    from cellwright.config import recipe as recipes

    return recipes.dump(recipes.load(str(folder / "recipe.yaml")).resolved())


# --- weights of other frameworks ------------------------------------------------------------------------------------


def weights(root: Path) -> dict[str, list[Subject]]:
    """Small files in the three forms, read as ``model inspect`` reads them."""
    import torch
    from safetensors.torch import save_file

    folder = root / "weights"
    folder.mkdir()
    arrays = {"backbone.bottom_up.stem.conv1.weight": np.ones((4, 3, 7, 7), np.float32), "other": np.arange(3)}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"model": tensors}, folder / "a.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "a.safetensors")
    (folder / "a.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    files = {"pth": ("a.pth", "old.pth"), "pkl": ("a.pkl",), "safetensors": ("a.safetensors",)}
    return {
        f"weights in .{suffix}": [Subject(folder, (name,), partial(_read_weights, name)) for name in names]
        for suffix, names in files.items()
    }


def _read_weights(name: str, folder: Path) -> object:
    from cellwright.models.weights.sources import find_weights

    return sorted(find_weights(str(folder / name)).tensors)


# --- all ------------------------------------------------------------------------------------------------------------


def all_subjects(root: Path) -> dict[str, list[Subject]]:
    """By name; fills ``root``. The workshop must be the working directory."""
    prediction = root / "predictions_of_results"
    dataset = save_dataset(root / "in", {"a": _objects("coco_results")}, conformance.class_names("coco_results"))
    FORMATS["coco"].write(dataset, prediction / "predictions.json", WriteOptions())
    named = formats(root)
    named["predictions"].append(
        Subject(prediction, ("predictions.json",), partial(_read_annotations, "predictions", ".", dataset))
    )
    return {**named, **images(root), **own(root), **weights(root)}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
