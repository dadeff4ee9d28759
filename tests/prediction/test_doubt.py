"""Images whose objects are unlike those of the training are said; ordinary ones are not."""

import csv

import numpy as np
import pytest
from drawn import run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage import data

import cellwright as cw
from cellwright.data.synthetic import draw_field
from cellwright.prediction.diameter import UNCERTAIN
from cellwright.prediction.doubt import DOUBTFUL, FEW, LEAST_OBJECT, LEAST_OF_FEW, LEAST_SCORE, doubts


@given(arrays(np.float64, st.integers(0, 40), elements=st.floats(0, 1)))
def test_the_median_of_the_objects_decides(scores):
    counted = np.sort(scores[scores >= LEAST_OBJECT])
    lower_median = counted[(len(counted) - 1) // 2] if len(counted) else 1.0
    least = LEAST_OF_FEW if len(counted) < FEW else LEAST_SCORE
    assert bool(doubts(scores)) == (len(counted) > 0 and lower_median < least)


@given(arrays(np.int64, 101, elements=st.integers(0, 5)))
def test_counts_are_objects(counts):
    scores = np.linspace(0, 1, 101)
    assert doubts(scores, counts) == doubts(np.repeat(scores, counts))


@pytest.mark.parametrize("tile", ["none", "400"])
def test_immunohistochemistry_is_flagged(tmp_path, capsys, tile):
    """The bundled model was not trained on it, and takes specks for nuclei."""
    image = tmp_path / "ihc.png"
    Image.fromarray(data.immunohistochemistry()[:384, :384]).save(image)
    assert run("predict", image, "--out", tmp_path / "out", "--tile", tile) == 0
    said = capsys.readouterr().err
    assert DOUBTFUL in said or UNCERTAIN in said
    with (tmp_path / "out" / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert DOUBTFUL in row["notes"] or UNCERTAIN in row["notes"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<code>diameter</code>" in page


def test_an_ordinary_image_is_not_flagged():
    image, truth = draw_field(0, (200, 200), 40)
    prediction = cw.load_model("nuclei").predictions(image)
    assert len(prediction.instances) > len(truth) / 2
    assert DOUBTFUL not in {note.kind for note in prediction.notes}
