"""`NetworkSegmenter` with a network whose answers are known: sizes, padding, order, own resolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cellwright.config.input import InputConfig
from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.models.contract import Network, Segmenter
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import NetworkSegmenter, Predictor


class Bright(nn.Module):
    """A network that finds the two pixels at opposite corners of what it sees, and remembers what that was."""

    stride = 32

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = []

    def losses(self, batch):
        return {}

    def detect(self, images, image_hws, output_hws):
        self.calls.append((tuple(images.shape), list(image_hws), list(output_hws), self.training))
        found = []
        for height, width in output_hws:
            dense = np.zeros((2, height, width), bool)
            dense[0, 0, 0] = dense[1, -1, -1] = True
            found.append(Instances.from_masks(MaskSet.from_dense(dense), scores=np.array([0.3, 0.6], np.float32)))
        return found


def pictures(*sizes):
    return [Image.from_array(np.zeros((*size, 3), np.uint8)) for size in sizes]


def test_they_are_what_the_contract_says():
    segmenter = NetworkSegmenter(Bright(), InputConfig())
    assert isinstance(segmenter.network, Network)
    assert isinstance(segmenter, Segmenter)
    assert isinstance(Predictor(segmenter), Segmenter)


def test_images_are_resized_padded_to_the_stride_and_answered_at_their_own_size():
    network = Bright()
    segmenter = NetworkSegmenter(network, InputConfig(scale=0.5), batch_size=2)
    found = segmenter.predict(pictures((100, 60), (40, 80), (33, 33)))
    assert [one.image_hw for one in found] == [(100, 60), (40, 80), (33, 33)]
    assert found[0].boxes_xyxy.tolist() == [[59, 99, 60, 100], [0, 0, 1, 1]], "highest score first"
    assert network.calls[0] == ((2, 3, 64, 64), [(50, 30), (20, 40)], [(100, 60), (40, 80)], False)
    assert network.calls[1] == ((1, 3, 32, 32), [(17, 17)], [(33, 33)], False)


def test_no_images_no_results():
    assert NetworkSegmenter(Bright(), InputConfig()).predict([]) == []


def test_channels_that_do_not_fit_are_refused():
    two = Image(np.zeros((8, 8, 2), np.uint8), ("DAPI", "actin"))
    with pytest.raises(InputError, match="channels"):
        NetworkSegmenter(Bright(), InputConfig()).predict([two])


def test_a_predictor_applies_options_and_tells_what_they_left_out():
    predictor = Predictor(NetworkSegmenter(Bright(), InputConfig()), PredictOptions(score_threshold=0.5), model_cap=2)
    outcome = predictor.outcomes(pictures((20, 20)))[0]
    assert (len(outcome.instances), outcome.n_low_score, outcome.model_cap) == (1, 1, 2)
    assert len(predictor.predict(pictures((20, 20)))[0]) == 1
