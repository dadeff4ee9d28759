"""AP of COCO files compared with pycocotools on the same files: shuffled images and entries, tied scores, crowds."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import toBbox

import cellwright as cw
from cellwright.core.instances import Instances

Draw = Callable[..., tuple[Instances, Instances]]
CASES = Path(__file__).parents[1] / "cases" / "models" / "06_coco_ap_tied_scores"
STATS = ("AP@100", "AP50@100", "AP75@100", "AP_small@100", "AP_medium@100", "AP_large@100")


def write_files(folder: Path, draw: Draw, seed: int) -> tuple[Path, Path]:
    """The paths of a ground truth and of a results list; nothing in them is in ascending order."""
    rng = np.random.default_rng(seed)
    n_images, n_classes = int(rng.integers(2, 8)), int(rng.integers(1, 4))
    ids = rng.permutation(200)[:n_images].tolist()
    truth: dict[str, Any] = {"images": [], "annotations": [], "results": []}
    for image_id in ids:
        sides = draw(rng, n_truth=int(rng.integers(0, 20)), n_classes=n_classes)
        height, width = sides[0].image_hw
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        for records, side in zip((truth["annotations"], truth["results"]), sides, strict=True):
            for k, rle in enumerate(side.masks.to_rle()):
                record: dict[str, Any] = {"image_id": image_id, "category_id": 3 * int(side.class_ids[k]) + 2}
                record["segmentation"] = rle
                if side.scores is None:
                    record |= {"iscrowd": int(side.ignore[k]), "area": int(side.masks.areas[k])}
                    x0, y0, x1, y1 = side.boxes_xyxy[k].tolist()  # recorded boxes are not those of the masks
                    record["bbox"] = [round(v + rng.uniform(0, 3), 2) for v in (x0, y0, x1 - x0, y1 - y0)]
                else:
                    record["score"] = float(side.scores[k])  # of 11 values: many are equal
                records.append(record)
    for records in truth.values():
        rng.shuffle(records)
    # pycocotools takes the annotation with id 0 for none.
    annotations = [{**record, "id": k + 1} for k, record in enumerate(truth["annotations"])]
    categories = [{"id": 3 * k + 2, "name": f"c{k}"} for k in range(n_classes)]
    content = {"images": truth["images"], "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(truth["results"]))
    return folder / "truth.json", folder / "results.json"


def pycocotools_stats(truth: Path, results: Path, kind: str = "segm") -> list[float]:
    """``summarize`` of the two files: AP and AR with at most 100 results per image."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(truth))
        records = json.loads(results.read_text())
        for record in records if kind == "bbox" else ():  # else the API takes areas of masks for those of boxes
            record["bbox"] = toBbox(record["segmentation"]).tolist()
        evaluation = COCOeval(api, api.loadRes(records), kind)  # type: ignore[arg-type]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [*evaluation.stats[:6], evaluation.stats[8]]


@pytest.mark.parametrize("seed", range(8))
def test_files_in_any_order_give_the_values_of_pycocotools(tmp_path: Path, draw: Draw, seed: int) -> None:
    truth, results = write_files(tmp_path, draw, seed)
    report = cw.evaluate(results, truth, metrics=["coco_ap"])
    for prefix, kind in (("", "segm"), ("box_", "bbox")):
        ours = [report[prefix + name] for name in (*STATS, "AR@100")]
        theirs = pycocotools_stats(truth, results, kind)
        np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), theirs, rtol=0, atol=1e-12, err_msg=kind)


@pytest.mark.parametrize("truth", ["gt_12.json", "gt_21.json"])
def test_the_order_of_images_does_not_matter(truth: str) -> None:
    report = cw.evaluate(CASES / "pred.json", CASES / truth, metrics=["coco_ap"])
    assert report["AP50@100"] == pytest.approx(51 / 202, abs=1e-12)  # .2525 (pycocotools 2.0.11)
    assert report["AP50@100"] == pytest.approx(pycocotools_stats(CASES / truth, CASES / "pred.json")[1], abs=1e-12)
