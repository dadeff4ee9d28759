"""Predictors with networks and segmenters whose results are known: sizes, padding, order, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cellwright.config.input import InputConfig
from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.views import PLAIN, parse_views
from cellwright.models.contract import Network
from cellwright.prediction.backends.torch import TorchPredictor
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import FilteredPredictor, SegmenterPredictor


class Bright(nn.Module):
    """A network that detects the pixels at two opposite corners of its input, and records its calls."""

    stride = 32

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = []

    def losses(self, batch):
        return {}

    def detect(self, images, image_hws, output_hws):
        self.calls.append((tuple(images.shape), list(image_hws), list(output_hws), self.training))
        results = []
        for height, width in output_hws:
            dense = np.zeros((2, height, width), bool)
            dense[0, 0, 0] = dense[1, -1, -1] = True
            results.append(Instances.from_masks(MaskSet.from_dense(dense), scores=np.array([0.3, 0.6], np.float32)))
        return results


def pictures(*sizes):
    return [Image.from_array(np.zeros((*size, 3), np.uint8)) for size in sizes]


def test_images_are_resized_padded_to_the_stride_and_predicted_at_their_own_size():
    network = Bright()
    assert isinstance(network, Network)
    predictor = TorchPredictor(network, InputConfig(scale=0.5), batch_size=2)
    predictions = predictor.predict(pictures((100, 60), (40, 80), (33, 33)))
    assert [prediction.instances.image_hw for prediction in predictions] == [(100, 60), (40, 80), (33, 33)]
    assert all(prediction.candidates is prediction.instances for prediction in predictions)
    assert predictions[0].instances.boxes_xyxy.tolist() == [[59, 99, 60, 100], [0, 0, 1, 1]], "highest score first"
    assert network.calls[0] == ((2, 3, 64, 64), [(50, 30), (20, 40)], [(100, 60), (40, 80)], False)
    assert network.calls[1] == ((1, 3, 32, 32), [(17, 17)], [(33, 33)], False)


def test_no_images_no_results():
    assert TorchPredictor(Bright(), InputConfig()).predict([]) == []


def test_channels_that_do_not_fit_are_refused():
    two = Image(np.zeros((8, 8, 2), np.uint8), ("DAPI", "actin"))
    with pytest.raises(InputError, match="channels"):
        TorchPredictor(Bright(), InputConfig()).predict([two])


def test_options_are_applied_and_omitted_objects_counted():
    network = TorchPredictor(Bright(), InputConfig(), model_cap=2)
    (prediction,) = FilteredPredictor(network, PredictOptions(score_threshold=0.5)).predict(pictures((20, 20)))
    assert (len(prediction.instances), prediction.n_low_score, prediction.model_cap) == (1, 1, 2)
    assert prediction.views == PLAIN
    assert repr(prediction) == (
        "Prediction(1 object in 20 x 20 px; omitted: 1 low score; the model's limit of 2 objects was reached)"
    )
    (larger,) = TorchPredictor(Bright(), InputConfig(), model_cap=3).predict(pictures((20, 20)))
    assert larger.model_cap is None


def test_a_network_without_views_says_so():
    predictor = TorchPredictor(Bright(), InputConfig())
    assert predictor.with_views(PLAIN).views == PLAIN
    with pytest.raises(UsageError, match="does not support test-time augmentation"):
        predictor.with_views(parse_views("flips"))
    assert not predictor.explains
    with pytest.raises(UsageError, match="does not report its candidates"):
        predictor.explain(pictures((8, 8))[0], np.zeros((1, 4)))


class Returns:
    """A segmenter that returns given results."""

    def __init__(self, *results):
        self.results = list(results)

    def predict(self, images):
        return self.results


NOTHING = Instances.empty((8, 8), scored=True)


def test_a_segmenter_becomes_a_predictor():
    (prediction,) = SegmenterPredictor(Returns(NOTHING)).predict(pictures((8, 8)))
    assert prediction.instances is prediction.candidates is NOTHING
    assert (prediction.diameter, prediction.views) == (None, ())
    assert SegmenterPredictor(Returns()).predict([]) == []


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "0 results for 1 images"),
        ([np.zeros((8, 8), int)], "ndarray instead of Instances"),
        ([Instances.empty((9, 9), scored=True)], r"size \(9, 9\) for an image of size \(8, 8\)"),
        ([Instances.empty((8, 8))], "without scores"),
    ],
)
def test_what_a_segmenter_must_return(results, message):
    with pytest.raises(UsageError, match=f"Returns.predict[\\s\\S]*{message}[\\s\\S]*one Instances per image"):
        SegmenterPredictor(Returns(*results)).predict(pictures((8, 8)))


def test_a_segmenter_has_no_diameter_no_views_and_no_candidates():
    predictor = SegmenterPredictor(Returns(NOTHING))
    assert not predictor.uses_diameter
    assert not predictor.explains
    with pytest.raises(UsageError, match="does not use a diameter"):
        predictor.with_diameter(12.0)
    with pytest.raises(UsageError, match="only networks support test-time augmentation"):
        predictor.with_views(PLAIN)
    with pytest.raises(UsageError, match="only networks have candidates"):
        predictor.explain(pictures((8, 8))[0], np.zeros((1, 4)))
