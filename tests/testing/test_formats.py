"""The format suite accepts a correct format and rejects each fault."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError, InputError, OutputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import FORMATS, Format, ReadOptions, get_format, read_dataset
from cellwright.testing import Carries, check_format, format_checks

CARRIES = Carries(class_names=False, ignore=False, nested_ids=False, out="out.boxes")


@dataclass(frozen=True)
class LoadRle:
    """Reads one entry of the file again when its objects are needed."""

    path: Path
    position: int

    def __call__(self) -> Instances:
        entry = parse(self.path)[self.position]
        try:
            masks = MaskSet.from_rle(entry["rle"], tuple(entry["hw"])) if entry["rle"] else MaskSet.empty(entry["hw"])
            return Instances.from_masks(
                masks,
                ids=entry["ids"],
                class_ids=entry["classes"],
                scores=None if entry["scores"] is None else np.array(entry["scores"], np.float32),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError("malformed entry", where=self.path, got=str(error), remedy="write it again") from error


def parse(path: Path) -> list:
    try:
        entries = json.loads(path.read_text())
        assert all({*entry} == {"id", "image", "hw", "rle", "ids", "classes", "scores"} for entry in entries)
        assert all(entry["hw"][0] * entry["hw"][1] < 1e6 and min(entry["hw"]) > 0 for entry in entries)
        assert all(len({len(e["rle"]), len(e["ids"]), len(e["classes"])}) == 1 for e in entries)
        assert all(
            type(e["id"]) is str and {*map(type, [*e["hw"], *e["ids"], *e["classes"]])} <= {int} for e in entries
        )
        assert all(len(e["hw"]) == 2 and type(e["image"]) is str and "\0" not in e["image"] for e in entries)
        return entries
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, remedy="check the path") from error
    except (OSError, ValueError, AssertionError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise FormatError("not a .boxes file", where=path, got=repr(error), remedy="write it again") from error


class Good(Format):
    name, description = "boxes", "a JSON list of images with RLE"

    def sniff(self, path):
        return path.suffix == ".boxes" and path.is_file()

    def read(self, path, options):
        samples = [
            Sample(e["id"], path.parent / e["image"], tuple(e["hw"]), LoadRle(path, k))
            for k, e in enumerate(parse(path))
        ]
        return Dataset(tuple(samples), options.name_classes(["a"]), path.parent)

    def write(self, dataset, out, options):
        entries = []
        for sample in dataset:
            if "/" in sample.id:
                raise OutputError("ids must not contain /", where=out, got=sample.id, remedy="rename the image")
            objects = sample.read_instances()
            image = out.with_name(f"{sample.id}.copy.png")
            image.write_bytes(sample.image_path.read_bytes())
            entries.append(
                {
                    "id": sample.id,
                    "image": image.name,
                    "hw": list(sample.image_hw),
                    "rle": objects.masks.to_rle(),
                    "ids": objects.ids.tolist(),
                    "classes": objects.class_ids.tolist(),
                    "scores": None if objects.scores is None else objects.scores.tolist(),
                }
            )
        out.write_text(json.dumps(entries))
        return [out]


def test_the_suites_need_neither_torch_nor_pytest():
    code = "import sys, cellwright.testing; print([name for name in ('torch', 'pytest') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_correct_format_passes(tmp_path):
    check_format(Good(), tmp_path, carries=CARRIES)


def test_the_checks_have_names_and_depend_on_what_a_format_carries():
    names = set(format_checks(Good(), carries=CARRIES))
    assert {"keeps_objects", "keeps_overlaps", "keeps_scores", "reports_damage", "reads_lazily"} <= names
    assert "keeps_nested_ids" not in names
    assert "resolves_overlaps" in format_checks(Good(), carries=Carries(overlaps=False))


class Mirrored(Good):
    def write(self, dataset, out, options):
        flipped = [Sample(s.id, s.image_path, s.image_hw, Loaded(mirror(s.read_instances()))) for s in dataset]
        return super().write(dataset.with_samples(flipped), out, options)


def mirror(objects: Instances) -> Instances:
    if not len(objects):
        return objects
    masks = MaskSet.from_dense(objects.masks.to_dense()[:, :, ::-1])
    return Instances.from_masks(masks, ids=objects.ids, class_ids=objects.class_ids, scores=objects.scores)


class Eager(Good):
    def read(self, path, options):
        dataset = super().read(path, options)
        return dataset.with_samples([Sample(s.id, s.image_path, s.image_hw, Loaded(s.load())) for s in dataset])


class Unpicklable(Good):
    def read(self, path, options):
        dataset = super().read(path, options)
        samples = [Sample(s.id, s.image_path, s.image_hw, lambda s=s: s.load()) for s in dataset]
        return dataset.with_samples(samples)


class RaisesWhenSniffing(Good):
    def sniff(self, path):
        return bool(json.loads(path.read_text()))


class SniffsTruthy(Good):
    def sniff(self, path):
        return path.suffix == ".boxes" and path


class RaisesForeignErrors(Good):
    def read(self, path, options):
        entries = json.loads(path.read_text()) if path.exists() else parse(path)
        samples = [
            Sample(e["id"], path.parent / e["image"], tuple(e["hw"]), LoadRle(path, k)) for k, e in enumerate(entries)
        ]
        return Dataset(tuple(samples), options.name_classes(["a"]), path.parent)


class LosesEmptyImages(Good):
    def read(self, path, options):
        dataset = super().read(path, options)
        return dataset.with_samples([sample for sample in dataset if len(sample.read_instances())])


class ReturnsNothing(Good):
    def write(self, dataset, out, options):
        super().write(dataset, out, options)
        return []


class LeavesItsFolder(Good):
    def write(self, dataset, out, options):
        for sample in dataset:
            target = out.parent / f"{sample.id}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("x")
        return super().write(dataset, out, options)


class HasNoName(Good):
    name = "My format"


@pytest.mark.parametrize(
    ("wrong", "check", "message"),
    [
        (Mirrored, "keeps_objects", "masks"),
        (Eager, "reads_lazily", "leave decoding to Sample.load"),
        (Unpicklable, "gives_valid_samples", "survive pickling"),
        (RaisesWhenSniffing, "survives_foreign_files", "sniff must never raise"),
        (SniffsTruthy, "recognises_its_files", "to return a bool"),
        (RaisesForeignErrors, "reports_damage", "expected InputError or FormatError"),
        (LosesEmptyImages, "keeps_empty_images", "sample ids"),
        (ReturnsNothing, "keeps_objects", "paths it wrote"),
        (LeavesItsFolder, "stays_in_its_folder", "expected no file outside"),
        (HasNoName, "has_a_description", "a name such as"),
    ],
)
def test_a_fault_is_found(wrong, check, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        format_checks(wrong(), carries=CARRIES)[check](tmp_path / "folder")


@pytest.mark.parametrize(
    ("carries", "check", "message"),
    [
        (Carries(class_names=False), "keeps_objects", "ignore flags"),
        (Carries(ignore=False), "keeps_objects", "class"),
        (Carries(class_names=False, ignore=False, overlaps=False), "resolves_overlaps", "a warning about overlaps"),
    ],
)
def test_a_claim_that_is_not_true_is_found(carries, check, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        format_checks(Good(), carries=carries)[check](tmp_path / "folder")


def test_a_format_that_only_reads_needs_an_example(tmp_path):
    class ReadOnly(Good):
        write = Format.write

    with pytest.raises(AssertionError, match="read only: give `example`"):
        check_format(ReadOnly(), tmp_path)
    with pytest.raises(UsageError, match="the format boxes is read only"):
        ReadOnly().write(Dataset((), ()), tmp_path, None)
    with pytest.raises(AssertionError, match="derived from cellwright.Format"):
        check_format(ReadOnly, tmp_path)  # type: ignore[arg-type]


def test_a_format_is_used_by_passing_an_instance(tmp_path):
    assert get_format("coco") is FORMATS["coco"]
    assert repr(Good()) == "Good(name='boxes', read and write)"
    (tmp_path / "a.boxes").write_text("[]")
    assert len(read_dataset(tmp_path / "a.boxes", format=Good())) == 0
    with pytest.raises(UsageError, match=r"the class Good(.|\n)*pass an instance: Good\(\)"):
        read_dataset(tmp_path / "a.boxes", format=Good)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="an instance of a class derived from cellwright.Format"):
        read_dataset(tmp_path / "a.boxes", format=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Format,), {"name": "half", "description": "half a format"})()


def test_read_options_name_classes():
    assert ReadOptions().name_classes(["class1", "class2"]) == ("class1", "class2")
    assert ReadOptions(class_names=("a", "b", "c")).name_classes(["class1"]) == ("a", "b", "c")
    assert ReadOptions().select_classes([]) == ("cell",)
    assert ReadOptions(class_names=("b",)).select_classes(["a", "b"]) == ("b",)
    with pytest.raises(UsageError, match="did you mean 'nucleus'"):
        ReadOptions(class_names=("nuclei",)).select_classes(["nucleus", "x"])
