"""Damaged files of every format, image kind and file of our own: read or refused, without any other exception, crash,
hang of 20 s, or more than 3 GB of memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from record import record
from warm_process import MEMORY_BYTES, End, Warm, output_of

FORMATS = (
    "coco", "predictions", "coco_results", "mask_folder", "class_masks", "rle_csv", "rle_csv_submission", "dsb2018_csv",
    "nuinsseg", "ctc", "voc", "inst_maps", "npy_stacks", "label_images", "label_folder", "xml_outlines", "imagej_roi",
    "geojson", "labelme", "yolo_seg", "image_folder", "tile_job", "label_zarr", "cellpose",
)  # fmt: skip
IMAGES = ("tif", "compressed tif", "tif of several images", "png", "jpg", "bmp", "webp")
OWN = (
    "dataset.json", "dataset.index", "predictions.json", "files of a prediction folder", "model.json",
    "job.json of a tile job", "tiles/* of a tile job",
    "weights.safetensors", "claim.json", "records of a job", "environment.json of a run", "inputs.json of a run",
    "log.csv of a run", "metrics.json of a run", "files of a run", "state.json of a checkpoint",
    "weights.safetensors of a checkpoint", "optimiser.safetensors of a checkpoint",
    "averaged.safetensors of a checkpoint", "recipe.yaml",
)  # fmt: skip
MADE_AGAIN = (
    "tiles/* of a tile job",
    "dataset.index",
    "environment.json of a run",
    "records of a job",
)  # where they are damaged
WEIGHTS = ("weights in .pth", "weights in .pkl", "weights in .safetensors")
ROWS = {
    "damaged annotations": FORMATS,
    "damaged images": IMAGES,
    "damaged files of our own": OWN,
    "damaged weights of other frameworks": WEIGHTS,
}
NAMES = [(row, name) for row, names in ROWS.items() for name in names]
N_CASES, N_SLOW_CASES = 30, 10_000


@pytest.fixture(scope="module", autouse=True)
def subjects(warm: Warm, workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    names = warm.prepare("damage_trials:prepare", tmp_path_factory.mktemp("damage"))
    assert sorted(name for _, name in NAMES) == sorted(names)


def read_damaged(warm: Warm, workshop: Path, folder: Path, name: str, cases: range) -> tuple[Counter[str], list[str]]:
    """How often each outcome occurred, and descriptions of the bad ones."""
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    first = cases.start
    while first < cases.stop:
        case, outcome, file, text = first, "nothing", "", ""
        arguments = {"workshop": str(workshop), "name": name, "first": first, "end": cases.stop}
        for value in warm.stream("damage_trials:read_damaged", folder, **arguments):
            if isinstance(value, End):
                break
            case, outcome, file, text = value
            if outcome == "started":
                continue
            outcomes[outcome] += 1
            if outcome in ("traceback", "wrong"):
                bad.append(f"case {case}, {file}: {outcome} {text}")
            elif outcome == "refused" and "where:" not in text:
                bad.append(f"case {case}, {file}: the message does not say where: {text}")
        if outcome == "started":
            outcomes["hang" if value.hung else "crash"] += 1
            bad.append(f"case {case}, {file}: {value}")
        else:
            assert value.status == 0, output_of(folder)
            assert value.peak_bytes < MEMORY_BYTES, value
        first = case + 1
    return outcomes, bad


def check(row: str, outcomes: Counter[str], bad: list[str]) -> None:
    n = outcomes.total()
    record(row, n, n - len(bad))
    assert not bad, f"{len(bad)} of {n} damaged files were not handled:\n" + "\n\n".join(bad[:5])


@pytest.mark.parametrize(("row", "name"), NAMES, ids=[name for _, name in NAMES])
def test_damaged_files(row: str, name: str, warm: Warm, workshop: Path, tmp_path: Path) -> None:
    outcomes, bad = read_damaged(warm, workshop, tmp_path, name, range(N_CASES))
    check(row, outcomes, bad)
    assert outcomes.total() == N_CASES
    assert outcomes["read"] < N_CASES * 0.95 or name in MADE_AGAIN


@pytest.mark.slow
@pytest.mark.parametrize(("row", "name"), NAMES, ids=[name for _, name in NAMES])
def test_many_damaged_files(row: str, name: str, warm: Warm, workshop: Path, tmp_path: Path) -> None:
    check(row, *read_damaged(warm, workshop, tmp_path, name, range(N_CASES, N_SLOW_CASES)))
