"""The annotations most likely wrong, worst first: `rank_suspects`.

Five kinds of errors are looked for, each by what it does to an outline and to what the image shows under it:

- merged: two nuclei in one mask; lobes with a neck between them, or loose parts.
- split: one nucleus in two masks; a long, straight border, no seam in the image, together convex.
- displaced: an outline beside its nucleus; little contrast, much more nearby, other objects under it.
- tiny: a speck far below the dataset's 1st percentile.
- open: an outline that was never filled, or a ring left open; thin all over, and little of its hull covered.

The evidence of a kind is added up by a logistic model of two to six terms. Its weights were fitted to errors planted in
a third of DSB2018 (`tests/data/fit_suspects.py`: of each kind 20 among 11,000 good objects, four times over). It makes
the scores of the kinds comparable, so that the list is shared by how sure each is. VRDL, on which it is tested, was not
fitted to. A score is no chance of being wrong in *your* data: that depends on how many errors it holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError, UsageError
from cellwright.core.files import write_text
from cellwright.core.image import Image
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.files import read_image
from cellwright.data.suspect_signals import ObjectSignals, PairSignals, measure_sample

SuspectKind = Literal["merged", "split", "displaced", "tiny", "open"]
KINDS: tuple[SuspectKind, ...] = ("merged", "split", "displaced", "tiny", "open")
LEAST_SCORE = 0.01  # below, the list would be made of good objects
CRUMB_SHARE = 0.05  # of the median area: what is smaller is tiny, however many there are

_BIAS: Mapping[SuspectKind, float] = {"merged": -7.8, "split": -12.0, "displaced": -8.8, "tiny": -5.1, "open": -18.6}
_WEIGHTS: Mapping[SuspectKind, Mapping[str, float]] = {
    "merged": {"neck": 6.3, "lobe": 4.8, "size": 0.59},
    "split": {"border": 2.8, "bend": -10.0, "fill_gain": 60.0, "balance": 15.0, "gap": -0.35, "difference": -1.5},
    "displaced": {"contrast": -0.61, "better_place": 4.4, "overlap": 8.0},
    "tiny": {"size": -5.2, "border": -1.4},
    "open": {"fill": -6.4, "thickness": -29.0},
}


@dataclass(frozen=True)
class Suspect:
    """One annotation to look at: where, what it seems to be, how sure (0..1, comparable among kinds), and why."""

    sample_id: str
    object_id: int
    kind: SuspectKind
    score: float
    why: str


def rank_suspects(dataset: Dataset, *, limit: int = 1000, track: Track = no_progress) -> list[Suspect]:
    """Up to ``limit`` suspects, worst first, each object once; of a split pair the smaller id is named.

    One pass: every image and mask is decoded once. A sample without an image, or whose image cannot be read or has
    another size, is judged by its shapes alone; one whose objects cannot be read, empty masks and ignored objects are
    left out (`check_dataset` reports these). No objects give an empty list. Raises `UsageError` for a limit below 1.
    """
    if limit < 1:
        raise UsageError("the list of suspects needs room", where="limit", got=limit, expected="1 or more")
    parts = [_measured(sample) for sample in track(dataset, "looking for suspects", len(dataset))]
    parts = [part for part in parts if part is not None]
    if not parts:
        return []
    pool = _Pool.of(parts)
    found: list[Suspect] = []
    listed: set[int] = set()
    for score, kind, members, why in pool.candidates():
        if listed.isdisjoint(members):
            listed.update(members)
            found.append(Suspect(pool.sample_ids[members[0]], int(pool.object_ids[members[0]]), kind, score, why))
        if len(found) == limit:
            break
    return found


def write_suspects(suspects: list[Suspect], path: Path) -> None:
    """A CSV with a line for each suspect, worst first: rank, sample, object, kind, score, why."""
    import csv
    import io

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("rank", "sample", "object", "kind", "score", "why"))
    for rank, one in enumerate(suspects, 1):
        table.writerow((rank, one.sample_id, one.object_id, one.kind, f"{one.score:.4f}", one.why))
    write_text(path, text.getvalue())


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """Evidence on the objects of one sample."""

    sample_id: str
    object_ids: np.ndarray
    objects: ObjectSignals
    pairs: PairSignals


def _measured(sample: Sample) -> _Measured | None:
    try:
        cells = sample.read_instances()
    except CellwrightError:
        return None
    kept = cells[(cells.masks.areas > 0) & ~cells.ignore]
    if not len(kept):
        return None
    return _Measured(sample.id, kept.ids, *measure_sample(kept.masks, _image_of(sample, kept.image_hw)))


def _image_of(sample: Sample, image_hw: tuple[int, int]) -> Image | None:
    if sample.image_path is None:
        return None
    try:
        image = read_image(sample.image_path)
    except CellwrightError:
        return None
    return image if image.image_hw == image_hw else None


# --- weighing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool:
    """The evidence of all samples, one after the other; pairs count their objects through."""

    sample_ids: np.ndarray
    object_ids: np.ndarray
    objects: ObjectSignals
    pairs: PairSignals

    @staticmethod
    def of(parts: list[_Measured]) -> _Pool:
        counts = [len(part.object_ids) for part in parts]
        starts = np.cumsum([0, *counts[:-1]])
        pairs = [
            dataclasses.replace(part.pairs, i=part.pairs.i + start, j=part.pairs.j + start)
            for part, start in zip(parts, starts, strict=True)
        ]
        return _Pool(
            np.repeat(np.array([part.sample_id for part in parts], object), counts),
            np.concatenate([part.object_ids for part in parts]),
            ObjectSignals(*_joined([part.objects for part in parts])),
            PairSignals(*_joined(pairs)),
        )

    def evidence(self) -> dict[SuspectKind, dict[str, np.ndarray]]:
        """The terms of each kind's model, (N,) each, or (P,) for "split". Cut where more would say no more.

        What is usual in this dataset (its median fill and thickness, how much its objects overlap) tells nothing.
        """
        one, pair = self.objects, self.pairs
        fill, thickness = one.fill - np.median(one.fill), one.thickness - np.median(one.thickness)
        usual_overlap = float(np.quantile(one.overlap, 0.95))
        return {
            "merged": {"neck": one.neck, "lobe": one.lobe, "size": one.size_z.clip(-3, 3)},
            "split": {
                "border": pair.border.clip(0, 2),
                "bend": pair.bend.clip(0, 3),
                "fill_gain": pair.fill_gain.clip(-0.1, 0.1),
                "balance": pair.balance.clip(0, 0.7),
                "gap": np.abs(pair.gap).clip(0, 2),
                "difference": pair.difference.clip(0, 2),
            },
            "displaced": {
                "contrast": one.contrast_z.clip(-4, 1),
                "better_place": one.better_place.clip(-1, 3),
                "overlap": (one.overlap - usual_overlap).clip(0, 0.5),
            },
            "tiny": {"size": np.log(one.area / self.tiny_px), "border": one.at_border},
            "open": {"fill": fill.clip(-0.7, 0.1), "thickness": thickness.clip(-0.7, 0.1)},
        }

    @property
    def tiny_px(self) -> float:
        """The area below which an object is small for this dataset: its 1st percentile, if that is not tiny too."""
        return float(max(np.quantile(self.objects.area, 0.01), CRUMB_SHARE * np.median(self.objects.area)))

    def candidates(self) -> Iterator[tuple[float, SuspectKind, tuple[int, ...], str]]:
        """Score, kind, members (one object, or the two of a pair, smaller id first) and why; worst first."""
        logits, kinds, rows = [], [], []
        for kind, terms in self.evidence().items():
            logit = np.add.reduce([_WEIGHTS[kind][name] * values for name, values in terms.items()]) + _BIAS[kind]
            enough = np.flatnonzero(logit > np.log(LEAST_SCORE / (1 - LEAST_SCORE)))
            logits.append(logit[enough])
            kinds.append(np.full(len(enough), KINDS.index(kind)))
            rows.append(enough)
        logit, kind_of, row_of = np.concatenate(logits), np.concatenate(kinds), np.concatenate(rows)
        for at in np.lexsort((row_of, kind_of, -logit)):  # ties in the dataset's order, so that the list is one
            kind, row = KINDS[kind_of[at]], int(row_of[at])
            score = float(1 / (1 + np.exp(-logit[at])))
            yield score, kind, self._members(kind, row), self._why(kind, row)

    def _members(self, kind: SuspectKind, row: int) -> tuple[int, ...]:
        if kind != "split":
            return (row,)
        both = (int(self.pairs.i[row]), int(self.pairs.j[row]))
        return both if self.object_ids[both[0]] < self.object_ids[both[1]] else both[::-1]

    def _why(self, kind: SuspectKind, row: int) -> str:
        one, pair = self.objects, self.pairs
        if kind == "merged":
            if one.loose_part[row] > 0:
                return f"in loose parts: {one.loose_part[row]:.0%} of it lies apart"
            share = f"a lobe of {one.lobe[row]:.0%} of the area"
            return f"{share} hangs on by a neck; in size {one.size_z[row]:+.1f} sd from this image's others"
        if kind == "split":
            other = int(self.object_ids[self._members(kind, row)[1]])
            line = f"a border of {pair.border[row]:.1f} diameters, {pair.bend[row]:.1f} px off a straight line"
            return f"with object {other}: {line}; together they fill {pair.fill[row]:.0%} of their hull"
        if kind == "displaced":
            parts = [f"contrast {one.contrast_z[row]:+.1f} sd from this image's others"]
            if one.better_place[row] > 0:
                parts.append(f"{one.better_place[row]:.1f} sd more of it on free ground nearby")
            if one.overlap[row] > 0:
                parts.append(f"{one.overlap[row]:.0%} of it lies on other objects")
            return "; ".join(parts)
        if kind == "tiny":
            return f"{one.area[row]:.0f} px, where small objects here have {self.tiny_px:.0f}"
        widest = f"at most {one.thickness[row]:.2f} of its diameter thick"
        return f"covers {one.fill[row]:.0%} of its hull and is {widest}"


def _joined(parts: list[ObjectSignals] | list[PairSignals]) -> list[np.ndarray]:
    names = [field.name for field in dataclasses.fields(parts[0])]
    return [np.concatenate([getattr(part, name) for part in parts]) for name in names]
