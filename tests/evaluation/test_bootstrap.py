"""Resampled values compared with evaluating the resampled images, and paired comparison of known differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cellwright.core.errors import InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.evaluation import bootstrap
from cellwright.evaluation.bootstrap import compare, intervals
from cellwright.evaluation.evaluate import evaluate_pairs

Draw = Callable[..., tuple[Instances, Instances]]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Instances, Instances]]:
    from drawn_pairs import draw_pair

    rng = np.random.default_rng(6)
    drawn = [draw_pair(rng, n_truth=int(n)) for n in rng.integers(4, 25, 8)]
    # Distinct scores within an image: ties would have another order in copies of the image. Ties between images occur.
    return [(t, replace(p, scores=rng.permutation(len(p)).astype(np.float32) / 64)) for t, p in drawn]


NAMES = ["AP@all", "AP50@100", "box_AP75@all", "accuracy@0.5", "kaggle_score", "pooled_pq", "pooled_aji",
         "pooled_kaggle_score", "boundary_iou@2px"]  # fmt: skip


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 3, 5, 5, 5, 6, 7]])
def test_a_resample_equals_evaluating_its_images(pairs: list, chosen: list[int]) -> None:
    report = evaluate_pairs([p for _, p in pairs], [t for t, _ in pairs])
    resample = evaluate_pairs([pairs[k][1] for k in chosen], [pairs[k][0] for k in chosen])
    weights = np.bincount(chosen, minlength=len(pairs))[None]
    for name in NAMES:
        assert bootstrap._resampled(report, name, weights)[0] == pytest.approx(resample[name], abs=1e-12), name


def test_intervals_contain_the_value_and_are_seeded(pairs: list) -> None:
    report = evaluate_pairs([p for _, p in pairs], [t for t, _ in pairs])
    table = intervals(report, NAMES, samples=300)
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert table.equals(intervals(report, NAMES, samples=300))
    narrow = intervals(report, NAMES, samples=300, level=0.5)
    assert ((narrow["high"] - narrow["low"]) < (table["high"] - table["low"])).all()
    assert list(intervals(report, samples=10)["metric"]) == [name for name, _ in report.headline()]


def test_paired_comparison(pairs: list) -> None:
    truth, predictions = [t for t, _ in pairs], [p for _, p in pairs]
    perfect = [replace(t, scores=np.ones(len(t), np.float32)) for t in truth]
    first, second = evaluate_pairs(predictions, truth), evaluate_pairs(perfect, truth)
    table = compare(first, second, ["AP@all", "pq"], samples=200).set_index("metric")
    assert (table["difference"] > 0.2).all()
    assert (table["low"] > 0).all()
    assert (table["p"] == 1 / 200).all()
    identical = compare(first, first, ["AP@all", "pq"], samples=200)
    assert (identical[["difference", "low", "high"]] == 0).all(axis=None)
    assert (identical["p"] == 1).all()


def test_too_few_images_and_undefined_metrics(pairs: list) -> None:
    truth, predicted = pairs[0]
    single = intervals(evaluate_pairs([predicted], [truth]), samples=10)
    assert single[["low", "high"]].isna().all(axis=None)
    assert intervals(evaluate_pairs([], []), samples=10)[["value", "low", "high"]].isna().all(axis=None)
    unscored = [replace(p, scores=None) for _, p in pairs]
    without = intervals(evaluate_pairs(unscored, [t for t, _ in pairs]), ["AP@all", "pq"], samples=10)
    assert without["low"].isna().tolist() == [True, False]


def test_messages(pairs: list) -> None:
    report = evaluate_pairs([p for _, p in pairs[:2]], [t for t, _ in pairs[:2]])
    with pytest.raises(UsageError, match="no confidence interval"):
        intervals(report, ["class_mean_pq"])
    other = evaluate_pairs([pairs[0][1]], [pairs[0][0]])
    with pytest.raises(InputError, match="same images"):
        compare(report, other)
