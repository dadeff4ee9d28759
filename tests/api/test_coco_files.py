"""Metrics of an annotation file and a results file, compared with pycocotools on the same files."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellwright.api.evaluate import EvaluatePlan, run
from cellwright.core.masks import MaskSet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HW = (150, 200)


def ellipse(rng: np.random.Generator, centre: np.ndarray, radius: float) -> list[float]:
    angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    points = centre + radius * np.stack([np.cos(angle), rng.uniform(0.5, 1) * np.sin(angle)], 1)
    return [float(v) for v in points.round(2).ravel()]


def write_files(folder: Path) -> tuple[Path, Path]:
    """Polygons with recorded areas, a crowd region, two classes with gaps in their ids, fractional scores, ties."""
    rng = np.random.default_rng(5)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]
    results = []
    for image_id in (4, 9, 11):
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.png", "height": HW[0], "width": HW[1]})
        for _ in range(25):
            centre, radius = rng.uniform((5, 5), (195, 145)), rng.choice([rng.uniform(3, 20), rng.uniform(20, 90)])
            polygon = ellipse(rng, centre, radius)
            masks = MaskSet.from_coco_polygons([[polygon]], HW)
            x0, y0, x1, y1 = (int(v) for v in masks.boxes[0])
            category = int(rng.choice([3, 7]))
            common = {"image_id": image_id, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            crowd = int(rng.random() < 0.08)
            segmentation: Any = [polygon]
            if crowd:
                segmentation = {"size": list(HW), "counts": masks.to_rle_counts()[0]}
            number = len(truth["annotations"]) + 1
            area = float(masks.areas[0]) * 1.07 + 0.5  # like the area of a polygon: not the number of pixels
            truth["annotations"].append(
                {**common, "id": number, "area": area, "iscrowd": crowd, "segmentation": segmentation}
            )
            for _ in range(rng.integers(0, 3)):
                moved = MaskSet.from_coco_polygons([[ellipse(rng, centre + rng.normal(0, 2, 2), radius)]], HW)
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": int(rng.choice([category, category, 3, 7])),
                        "score": round(float(rng.random()), 2),
                        "segmentation": moved.to_rle()[0],
                    }
                )
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return folder / "truth.json", folder / "results.json"


def test_average_precision_equals_pycocotools(tmp_path: Path) -> None:
    truth_file, results_file = write_files(tmp_path)
    plan = EvaluatePlan((results_file,), data=truth_file, out=tmp_path / "out", metrics=("coco_ap",), pictures=0)
    result = run(plan)
    assert result is not None
    report = result.evaluations[0].report
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        evaluation = COCOeval(truth, truth.loadRes(str(results_file)), "segm")
        evaluation.params.maxDets = [1, 100, 10000]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (T, R, K, A, M)
    bands = {"": 0, "_small": 1, "_medium": 2, "_large": 3}
    for cap, m in (("100", 1), ("all", 2)):
        for band, a in bands.items():
            values = precision[:, :, :, a, m]
            assert report[f"AP{band}@{cap}"] == pytest.approx(values[values > -1].mean(), abs=1e-12), (band, cap)
        assert report[f"AP50@{cap}"] == pytest.approx(precision[0, :, :, 0, m].mean(), abs=1e-12)
        assert report[f"AP75@{cap}"] == pytest.approx(precision[5, :, :, 0, m].mean(), abs=1e-12)
    by_class = report.per_class.set_index("class")
    assert by_class.loc["b", "AP@all"] == pytest.approx(precision[:, :, 1, 0, 2].mean(), abs=1e-12)
