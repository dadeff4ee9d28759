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
from cellwright.core.instances import Instances
from cellwright.data.synthetic import draw_field
from cellwright.data.value_range import OUTLIERS
from cellwright.prediction.diameter import UNCERTAIN, Diameter
from cellwright.prediction.doubt import DOUBTFUL, FEW, LEAST_OBJECT, LEAST_OF_FEW, LEAST_SCORE, NOTHING, doubts
from cellwright.prediction.predictor import FilteredPredictor
from cellwright.prediction.record import Prediction


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
    assert NOTHING not in {note.kind for note in prediction.notes}


def test_a_diameter_at_which_nothing_is_found_is_doubted(tmp_path, capsys):
    image, _ = draw_field(0, (40, 40), 2)
    model = cw.load_model("nuclei@1").with_options(diameter=2000)
    prediction = model.predictions(image)
    assert not len(model.predict(image)), "no warning, as the result says it"
    assert not len(prediction.instances)
    (note,) = [note for note in prediction.notes if note.kind == NOTHING]
    assert "try `diameter` or `channel`" in note.text
    Image.fromarray(image.data[..., 0]).save(tmp_path / "x.png")
    assert (
        run("predict", tmp_path / "x.png", "--model", "nuclei@1", "--diameter", "2000", "--out", tmp_path / "out") == 0
    )
    said = capsys.readouterr().err
    assert "no object was found" in said
    assert "try --diameter or --channel" in said
    assert "1 image could not be reduced as much as the diameter requires" in said
    assert "check --diameter" in said


def test_noise_in_which_nothing_is_predicted_has_one_note():
    class Silent:
        uses_diameter, n_channels = True, 1

        def predict(self, images):
            empty = Instances.empty(images[0].image_hw, scored=True)
            return [
                Prediction.of(empty, diameter=Diameter(None, True, is_noise=is_noise)) for is_noise in (True, False)
            ]

    images = [cw.Image.from_array(np.zeros((8, 8), np.uint8))] * 2
    of_noise, other = FilteredPredictor(Silent()).predict(images)
    assert of_noise.notes == ()
    assert [note.kind for note in other.notes] == [NOTHING]


def test_objects_that_options_omit_are_counted():
    image, _ = draw_field(0, (200, 200), 40)
    model = cw.load_model("nuclei").with_options(min_area=1e6)
    prediction = model.predictions(image)
    (note,) = [note for note in prediction.notes if note.kind == NOTHING]
    assert f"{prediction.n_small} were omitted for a small area" in note.text


@pytest.mark.parametrize("tile", ["none", "256"])
def test_an_empty_image_without_a_diameter_to_try(tmp_path, capsys, tile):
    Image.fromarray(np.full((300, 400), 50, np.uint8)).save(tmp_path / "x.png")
    assert run("predict", tmp_path / "x.png", "--model", "classical", "--out", tmp_path / "out", "--tile", tile) == 0
    said = capsys.readouterr().err
    assert "no object was found. If the image shows some, try --channel" in said


@pytest.mark.parametrize("tile", ["none", "256"])
def test_hot_pixels_are_said_unless_their_values_are_cut_off(tmp_path, tile):
    image, _ = draw_field(0, (300, 300), 40)
    pixels = image.data[..., 0].astype(np.uint16) * 16 + 100
    Image.fromarray(pixels).save(tmp_path / "clean.png")
    pixels[7, 7] = 65535
    Image.fromarray(pixels).save(tmp_path / "one.png")
    pixels[::60, ::60] = 65535
    Image.fromarray(pixels).save(tmp_path / "hot.png")
    notes = {}
    for backend in ("openvino", "openvino-int8"):
        for name in ("clean", "one", "hot"):
            out = tmp_path / f"{backend}_{name}"
            assert run("predict", tmp_path / f"{name}.png", "--backend", backend, "--tile", tile, "--out", out) == 0
            with (out / "summary.csv").open() as file:
                (row,) = csv.DictReader(file)
            notes[backend, name] = OUTLIERS in row["notes"]
    assert [key for key, is_said in notes.items() if is_said] == [("openvino", "hot")]
