"""Model folders that an earlier version wrote load, and predict what they did: ``written_by_0_1`` is of 0.1.0.

For the next minor version, add a folder beside it: trained for some steps on drawn nuclei, exported with ``--to half``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import cellwright as cw
from cellwright.data.synthetic import draw_field

WRITTEN = Path(__file__).parent / "written_by_0_1"
# Of the objects in the field below, the best first: scores, areas, and the left upper corners of their boxes.
EXPECTED = json.loads((WRITTEN / "objects.json").read_text())


def described(folder: Path) -> dict[str, list[float]]:
    image = draw_field(3, (128, 160), 14)[0]
    found = cw.load_model(folder, device="cpu", backend="torch").with_options(score=0.0).predict(image)
    assert found.scores is not None
    best = np.argsort(-found.scores, kind="stable")[:6]
    corners = found.masks.boxes[best, :2].round(1)
    return {
        "scores": found.scores[best].round(4).tolist(),
        "areas": found.masks.areas[best].tolist(),
        "corners": corners.ravel().tolist(),
    }


@pytest.mark.parametrize("name", ["rcnn", "unet"])
def test_a_model_folder_of_0_1_predicts_what_it_did(name: str) -> None:
    info = json.loads((WRITTEN / name / "model.json").read_text())
    assert (info["version"], info["schema_version"]) == ("0.1.0", 1)
    now, then = described(WRITTEN / name), EXPECTED[name]
    np.testing.assert_allclose(now["scores"], then["scores"], atol=0.002)
    np.testing.assert_allclose(now["areas"], then["areas"], atol=3)
    np.testing.assert_allclose(now["corners"], then["corners"], atol=1)
