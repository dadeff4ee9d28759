"""The conformance suite of file formats: what every `Format` must do."""

from __future__ import annotations

import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellwright.core.dataset import Dataset
from cellwright.core.errors import CellwrightError, OutputError
from cellwright.core.instances import Instances
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.testing.damage import damage_file
from cellwright.testing.objects import (
    CLASS_NAMES,
    by_position,
    check_equal,
    draw_objects,
    expect,
    flattened,
    save_dataset,
)

DAMAGED_FILES = 60


@dataclass(frozen=True)
class Carries:
    """What a format keeps when a dataset is written and read again. Set to False what it loses.

    classes: the class of each object. If False, the suite writes datasets of one class.
    class_names: the names of the classes. If False, the files number the classes, and `ReadOptions.class_names` names
        them.
    ids: the ids of the objects. If False, they must be 1..N after reading, in each image or, if ``numbered_through``,
        in the whole dataset.
    scores: the scores of predictions.
    ignore: regions that are not annotated, as objects with an ignore flag. If False, the suite writes none.
    overlaps: pixels shared by several objects. If False, they must go to the object with the higher score, with a
        warning, or writing must raise `OutputError`.
    names: the sample ids to write, for a format that only stores some, such as ("01/t000", "01/t001", "01/t002");
        None: any.
    nested_ids: sample ids that contain "/".
    ground_truth: False for a format that stores predictions only, whose objects always have scores.
    partial_files: True if a truncated file may be a valid, shorter one, as in a table with one row per object.
    out: name of the file or folder that the suite asks the format to write.
    annotation_files: pattern of the names of the files that contain the annotations; images never count.
    """

    classes: bool = True
    class_names: bool = True
    ids: bool = True
    numbered_through: bool = False
    scores: bool = True
    ignore: bool = True
    overlaps: bool = True
    names: tuple[str, ...] | None = None
    nested_ids: bool = True
    ground_truth: bool = True
    partial_files: bool = False
    out: str = "out"
    annotation_files: str = "*"


def check_format(
    format: Format,  # noqa: A002
    folder: Path,
    *,
    carries: Carries = Carries(),
    example: Path | None = None,
) -> None:
    """Check that a format does what `cellwright.Format` requires; `AssertionError` says what was expected.

    Args:
        format: the format to check.
        folder: an empty folder for the files of the suite, such as pytest's ``tmp_path``.
        carries: what the format keeps when it writes and reads.
        example: a file or small folder in this format; required for a format that is read only.

    >>> import tempfile
    >>> from cellwright.data.formats import FORMATS
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     check_format(FORMATS["geojson"], Path(folder))
    """
    for name, check in format_checks(format, carries=carries, example=example).items():
        check(Path(folder) / name)


def format_checks(
    format: Format,  # noqa: A002
    *,
    carries: Carries = Carries(),
    example: Path | None = None,
) -> dict[str, Callable[[Path], None]]:
    """The checks of `check_format` that apply to ``format``, by name. Each takes an empty folder."""
    expect(isinstance(format, Format), f"expected an instance of a class derived from cellwright.Format, got {format}")
    expect(
        format.is_writable or example is not None,
        f"{format.name} is read only: give `example`, a file or small folder in this format",
    )
    suite = _Suite(format, carries, example)
    checks = [suite.has_a_description, suite.survives_foreign_files, suite.reports_an_absent_path]
    checks += [suite.recognises_its_files, suite.gives_valid_samples, suite.reads_lazily, suite.reports_damage]
    if not format.is_writable:
        return {check.__name__: check for check in checks}
    checks += [suite.keeps_objects, suite.keeps_empty_images, suite.keeps_empty_datasets]
    checks += [suite.stays_in_its_folder, suite.reports_truncation]
    checks += [suite.keeps_unicode_names] if carries.names is None else []
    checks += [suite.keeps_nested_ids] if carries.names is None and carries.nested_ids else []
    checks += [suite.keeps_overlaps if carries.overlaps else suite.resolves_overlaps]
    checks += [suite.keeps_scores] if carries.scores else []
    return {check.__name__: check for check in checks}


class _Suite:
    """The checks, and the steps that they share."""

    def __init__(self, format: Format, carries: Carries, example: Path | None) -> None:  # noqa: A002
        self.format, self.carries, self.example = format, carries, example

    # Checks of any format

    def has_a_description(self, folder: Path) -> None:
        name, description = self.format.name, self.format.description
        expect(re.fullmatch(r"[a-z][a-z0-9_]*", name), f"expected a name such as 'my_format', got {name!r}")
        expect(description.strip() and "\n" not in description, f"{name}: expected a description of one line")

    def survives_foreign_files(self, folder: Path) -> None:
        """`sniff` never raises; `read` raises our errors only."""
        folder.mkdir(parents=True)
        for path in _foreign_files(folder):
            matches = self._sniff(path)
            if matches and path.exists():
                self._try_to_read(path, ReadOptions(require_images=False), f"reading {path.name}")

    def reports_an_absent_path(self, folder: Path) -> None:
        path = folder / "absent.json"
        expect(not self._sniff(path), f"{self.format.name}: expected sniff to be False for a path that does not exist")
        error = self._try_to_read(path, ReadOptions(images=Dataset((), ("cell",))), "reading an absent path")
        expect(error, f"{self.format.name}: expected InputError for a path that does not exist")
        expect("absent.json" in str(error), f"{self.format.name}: expected the path in the message, got: {error}")

    def recognises_its_files(self, folder: Path) -> None:
        path, _ = self._files(folder)
        expect(self._sniff(path), f"{self.format.name}: expected sniff to be True for {path}")

    def gives_valid_samples(self, folder: Path) -> None:
        """Samples agree with their objects, and loaders survive pickling (for worker processes)."""
        path, options = self._files(folder)
        dataset = self.format.read(path, options)
        expect(isinstance(dataset, Dataset), f"{self.format.name}: expected a Dataset, got {type(dataset).__name__}")
        expect(len(dataset), f"{self.format.name}: expected at least one sample in {path}")
        for sample in dataset:
            what = f"{self.format.name}, sample {sample.id}"
            instances = sample.read_instances()
            expect(
                instances.image_hw == sample.image_hw,
                f"{what}: the size of the sample is {sample.image_hw}, that of its objects {instances.image_hw}",
            )
            highest = int(instances.class_ids.max(initial=0))
            expect(
                highest < len(dataset.class_names),
                f"{what}: expected class ids below {len(dataset.class_names)} (the number of names), got {highest}",
            )
            if sample.image_path is not None:
                expect(sample.image_path.is_file(), f"{what}: expected an image file at {sample.image_path}")
            try:
                load = pickle.loads(pickle.dumps(sample.load))
            except Exception as error:  # whatever a class raises when it is pickled
                raise AssertionError(
                    f"{what}: expected `load` to survive pickling (use a dataclass at the top level of a module, not a "
                    f"nested function): {error}"
                ) from error
            check_equal(instances, load(), f"{what}, read again")

    def reads_lazily(self, folder: Path) -> None:
        path, options = self._files(folder)
        with _count_objects() as counted:
            self.format.read(path, options)
        expect(
            not counted,
            f"{self.format.name}: expected read to leave decoding to Sample.load, but it decoded {sum(counted)}",
        )

    def reports_damage(self, folder: Path) -> None:
        """A damaged file gives an error of ours or a result, but no other exception."""
        path, options = self._files(folder / "good")
        files = [file.relative_to(folder / "good") for file in self._annotation_files(path, options)]
        expect(
            files, f"{self.format.name}: found no file below {path} with a name like {self.carries.annotation_files}"
        )
        for case in range(DAMAGED_FILES):
            rng = np.random.default_rng([20, case])
            shutil.rmtree(folder / "damaged", ignore_errors=True)
            shutil.copytree(folder / "good", folder / "damaged")
            file = folder / "damaged" / files[rng.integers(len(files))]
            damage_file(file, rng)
            target = folder / "damaged" / path.relative_to(folder / "good")
            self._sniff(target)
            self._try_to_read(target, options, f"reading {file.name} with random damage (case {case})")

    # Checks of a format that can write

    def keeps_objects(self, folder: Path) -> None:
        objects = {"a": self._draw(1), "b-2": self._draw(2, image_hw=(70, 33)), "c": self._draw(3, n=1)}
        self._check_round_trip(folder, objects)

    def keeps_empty_images(self, folder: Path) -> None:
        self._check_round_trip(folder, {"full": self._draw(1), "none": self._empty()})

    def keeps_empty_datasets(self, folder: Path) -> None:
        self._check_round_trip(folder, {"none": self._empty()})

    def keeps_unicode_names(self, folder: Path) -> None:
        objects = {"Zellkern größe 1": self._draw(4), "細胞 (2), b": self._draw(5), "a.b c": self._draw(6)}
        self._check_round_trip(folder / "ä", objects)

    def keeps_nested_ids(self, folder: Path) -> None:
        self._check_round_trip(folder, {"day 1/a": self._draw(7), "day 2/b": self._draw(8)})

    def keeps_overlaps(self, folder: Path) -> None:
        self._check_round_trip(folder, {"a": self._draw(9, n=25, overlaps=True)})

    def keeps_scores(self, folder: Path) -> None:
        empty = Instances.empty((20, 31), scored=True)
        self._check_round_trip(folder, {"a": self._draw(10, scored=True), "none": empty})

    def resolves_overlaps(self, folder: Path) -> None:
        """Shared pixels go to the higher score, and a warning says so; `OutputError` is accepted as well."""
        objects = draw_objects(9, n=25, overlaps=True, scored=True, n_classes=1)
        dataset = save_dataset(folder / "in", self._named({"a": objects}), CLASS_NAMES[:1])
        with _warnings() as messages:
            try:
                out = self._write(dataset, folder)
            except OutputError:
                return
        what = f"{self.format.name}, overlapping objects"
        expect(any("overlap" in text for text in messages), f"{what}: expected a warning about overlaps while writing")
        again = self._read(out, dataset)
        self._check_objects(dataset, flattened(objects), again, again[0].read_instances(), what)

    def stays_in_its_folder(self, folder: Path) -> None:
        """A sample id such as ``../a`` raises an error of ours, or at least writes nothing outside the output."""
        sample = save_dataset(folder / "in", {"a": self._draw(15)}, self._class_names)[0]
        before = set(folder.rglob("*"))
        for sample_id in ("../a", "/a", "x/../../a"):
            moved = Dataset((replace(sample, id=sample_id),), self._class_names)
            out, what = folder / "deep" / self.carries.out, f"{self.format.name}, a sample with the id {sample_id!r}"
            try:
                self.format.write(moved, out, WriteOptions(copy_images=True))
            except CellwrightError:
                pass
            except Exception as error:  # the point of the check
                raise AssertionError(f"{what}: expected OutputError or a file in {out}, got {error!r}") from error
            new = set(folder.rglob("*")) - before
            outside = [path for path in new if path not in (out, *out.parents) and out not in path.parents]
            expect(not outside, f"{what}: expected no file outside {out}, got {outside}")

    def reports_truncation(self, folder: Path) -> None:
        """A truncated file gives an error of ours, unless nothing is missing or `Carries.partial_files` is set."""
        path, options = self._files(folder)
        before = [sample.read_instances() for sample in self.format.read(path, options)]
        files = {file: file.read_bytes() for file in self._annotation_files(path, options)}
        for share in (0.0, 0.3, 0.7, 0.97):
            for file, content in files.items():
                file.write_bytes(content[: int(len(content) * share)])
            what = f"{self.format.name}, a file truncated to {share:.0%}"
            after: list[Instances] = []
            error = self._try_to_read(path, options, what, after)
            if error is not None:
                expect("where:" in str(error), f"{what}: expected an error that says where, got: {error}")
                continue
            complete = [by_position(a).masks == by_position(b).masks for a, b in zip(after, before, strict=False)]
            n_after, n_before = (sum(map(len, results)) for results in (after, before))
            expect(n_after <= n_before, f"{what}: expected at most {n_before} objects, got {n_after}")
            expect(
                self.carries.partial_files or (all(complete) and len(after) == len(before)),
                f"{what}: expected an error, but reading it gave other objects",
            )

    # Steps

    @property
    def _class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES if self.carries.classes else CLASS_NAMES[:1]

    def _draw(
        self,
        seed: int,
        *,
        n: int = 9,
        image_hw: tuple[int, int] = (41, 58),
        overlaps: bool = False,
        scored: bool = False,
    ) -> Instances:
        scored = scored or not self.carries.ground_truth
        n_classes = len(self._class_names)
        drawn = draw_objects(seed, n=n, image_hw=image_hw, overlaps=overlaps, scored=scored, n_classes=n_classes)
        return drawn if self.carries.ignore else replace(drawn, ignore=np.zeros(len(drawn), bool))

    def _empty(self) -> Instances:
        return Instances.empty((20, 31), scored=not self.carries.ground_truth)

    def _write(self, dataset: Dataset, folder: Path) -> Path:
        out = folder / self.carries.out
        paths = self.format.write(dataset, out, WriteOptions(copy_images=True))
        missing = [path for path in paths if not path.exists()]
        expect(paths and not missing, f"{self.format.name}: expected write to return the paths it wrote, got {paths}")
        return out

    def _read_options(self, original: Dataset) -> ReadOptions:
        names = None if self.carries.class_names else original.class_names
        return ReadOptions(images=original, class_names=names)

    def _read(self, out: Path, original: Dataset) -> Dataset:
        return self.format.read(out, self._read_options(original))

    def _files(self, folder: Path) -> tuple[Path, ReadOptions]:
        """Files of this format inside ``folder``, written or copied from the example, and the options to read them."""
        if self.example is not None:
            root = self.example if self.example.is_dir() else self.example.parent
            shutil.copytree(root, folder / root.name)
            return folder / root.name / self.example.relative_to(root), ReadOptions(require_images=False)
        objects = {"a": self._draw(12), "b": self._draw(13)}
        dataset = save_dataset(folder.with_name(f"{folder.name} images"), self._named(objects), self._class_names)
        folder.mkdir(parents=True, exist_ok=True)
        return self._write(dataset, folder), self._read_options(dataset)

    def _annotation_files(self, path: Path, options: ReadOptions) -> list[Path]:
        images = {sample.image_path for sample in self.format.read(path, options)}
        files = sorted(path.rglob(self.carries.annotation_files)) if path.is_dir() else [path]
        return [file for file in files if file.is_file() and file not in images]

    def _sniff(self, path: Path) -> bool:
        try:
            matches = self.format.sniff(path)
        except Exception as error:  # the point of the check
            raise AssertionError(f"{self.format.name}: sniff must never raise, got {error!r} for {path}") from error
        expect(isinstance(matches, bool), f"{self.format.name}: expected sniff to return a bool, got {matches!r}")
        return matches

    def _try_to_read(
        self, path: Path, options: ReadOptions, what: str, results: list[Instances] | None = None
    ) -> CellwrightError | None:
        """Read everything; returns the error if it is one of ours. Appends to ``results`` what was read."""
        try:
            for sample in self.format.read(path, options):
                instances = sample.read_instances()
                if results is not None:
                    results.append(instances)
        except CellwrightError as error:
            return error
        except Exception as error:  # the point of the check
            raise AssertionError(
                f"{self.format.name}, {what}: expected InputError or FormatError, got {error!r}"
            ) from error
        return None

    def _check_round_trip(self, folder: Path, objects: Mapping[str, Instances]) -> None:
        dataset = save_dataset(folder / "in", self._named(objects), self._class_names)
        again = self._read(self._write(dataset, folder), dataset)
        got, expected = (sorted(sample.id for sample in data) for data in (again, dataset))
        expect(got == expected, f"{self.format.name}: expected the sample ids {expected}, got {got}")
        for sample in dataset:
            other, what = again.sample(sample.id), f"{self.format.name}, sample {sample.id}"
            expect(other.image_hw == sample.image_hw, f"{what}: expected {sample.image_hw}, got {other.image_hw}")
            path = other.image_path
            expect(path is not None and path.is_file(), f"{what}: expected the path of its image, got {path}")
            self._check_objects(dataset, sample.read_instances(), again, other.read_instances(), what)
        if self.carries.numbered_through:
            ids = sorted(number for sample in again for number in sample.read_instances().ids.tolist())
            expect(ids == list(range(1, len(ids) + 1)), f"{self.format.name}: expected the ids 1..N in the dataset")

    def _named(self, objects: Mapping[str, Instances]) -> dict[str, Instances]:
        """The objects of each image, with sample ids that the format can store."""
        return dict(zip(self.carries.names or objects, objects.values(), strict=False))

    def _check_objects(self, dataset: Dataset, before: Instances, again: Dataset, after: Instances, what: str) -> None:
        """Equal masks; equal ids, classes, scores and ignore flags if the format carries them."""
        before, after = by_position(before), by_position(after)
        expect(len(after) == len(before), f"{what}: wrote {len(before)} objects, read {len(after)}")
        expect(after.masks == before.masks, f"{what}: the masks read differ from those written")
        if self.carries.ids:
            ids = after.ids.tolist(), before.ids.tolist()
            expect(ids[0] == ids[1], f"{what}: expected the ids {ids[1]}, got {ids[0]}")
        elif not self.carries.numbered_through:
            expect(sorted(after.ids.tolist()) == list(range(1, len(after) + 1)), f"{what}: expected the ids 1..N")
        if self.carries.classes:
            names = _class_names_of(again, after), _class_names_of(dataset, before)
            expect(names[0] == names[1], f"{what}: expected the classes {names[1]}, got {names[0]}")
        keeps_scores = before.scores is not None and self.carries.scores
        expect((after.scores is not None) == keeps_scores, f"{what}: expected {'' if keeps_scores else 'no '}scores")
        if after.scores is not None and before.scores is not None:
            scores = after.scores.tolist(), before.scores.tolist()
            expect(scores[0] == scores[1], f"{what}: expected the scores {scores[1]}, got {scores[0]}")
        if self.carries.ignore:
            expect(after.ignore.tolist() == before.ignore.tolist(), f"{what}: the ignore flags differ")


def _class_names_of(dataset: Dataset, instances: Instances) -> list[str]:
    names = dict(enumerate(dataset.class_names))
    return [names.get(k, f"(class {k} without a name)") for k in instances.class_ids.tolist()]


def _foreign_files(folder: Path) -> Iterator[Path]:
    """Paths with unrelated content: absent, empty, random bytes under many suffixes, folders, a broken link."""
    noise = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    contents = {"empty": b"", "noise": noise, "text": b"a,b\n1,2\n", "json": b'{"a": [1, 2]}', "null": b"null"}
    suffixes = (
        "",
        ".csv",
        ".geojson",
        ".index",
        ".jpg",
        ".json",
        ".npy",
        ".png",
        ".roi",
        ".tif",
        ".txt",
        ".xml",
        ".zip",
    )
    for name, content in contents.items():
        (folder / name).mkdir()
        yield folder / name
        for suffix in suffixes:
            path = folder / name / f"{name}{suffix}"
            path.write_bytes(content)
            yield path
    for name in ("folder.json", "folder.tif", "images", "masks"):
        (folder / name).mkdir()
        yield folder / name
    link = folder / "link.json"
    try:
        link.symlink_to(folder / "missing")
    except OSError:  # not permitted on every system
        return
    yield link
    yield folder


@contextmanager
def _count_objects() -> Iterator[list[int]]:
    """Filled with the number of objects of each `Instances` that is made inside."""
    counted: list[int] = []
    original = Instances.__post_init__

    def count(self: Instances) -> None:
        original(self)
        if len(self):
            counted.append(len(self))

    Instances.__post_init__ = count
    try:
        yield counted
    finally:
        Instances.__post_init__ = original


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Filled with the messages of all warnings that are logged inside."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)
