"""Fit and print the weights of `cellwright.data.suspects`, with errors inserted into DSB2018.

    python tests/data/fit_suspects.py FOLDER_OF_DSB2018_STAGE1_TRAIN

Every third image is used, with seeds 1 to 4 and 20 errors of each kind. For each kind a logistic regression against all
other objects is fitted, with a ridge penalty on the standardised terms; the weights are rounded to two digits. VRDL is
not used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from planted import plant
from scipy.optimize import minimize

from cellwright.core.dataset import Dataset
from cellwright.data.formats import ReadOptions
from cellwright.data.formats.mask_folder import MaskFolder
from cellwright.data.suspects import KINDS, _Evidence, _measure

SEEDS = (1, 2, 3, 4)
RIDGE = 1.0
SMALLEST_SD = 0.02  # so that terms that hardly vary among correct objects are not amplified


def labelled(dataset: Dataset, seed: int) -> dict[str, tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, terms (rows, names) and ground truth (rows,) for the model of each kind."""
    changed, planted = plant(dataset, seed)
    evidence = _Evidence.of([part for part in map(_measure, changed) if part is not None])
    keys = list(zip(evidence.sample_ids, evidence.object_ids.tolist(), strict=True))
    kind_of = {(error.sample_id, i): error.kind for error in planted for i in error.object_ids}
    halves = {(error.sample_id, *error.object_ids) for error in planted if error.kind == "split"}
    kinds = np.array([kind_of.get(key, "") for key in keys])
    is_split = [(*keys[i], keys[j][1]) in halves for i, j in zip(evidence.pairs.i, evidence.pairs.j, strict=True)]
    return {
        kind: (
            list(terms),
            np.stack(list(terms.values()), axis=1),
            np.array(is_split, float) if kind == "split" else (kinds == kind).astype(float),
        )
        for kind, terms in evidence.terms().items()
    }


def fitted(terms: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """The weights of the terms, and the bias."""
    middle, spread = terms.mean(0), np.maximum(terms.std(0), SMALLEST_SD)
    rows = np.c_[(terms - middle) / spread, np.ones(len(terms))]
    ridge = np.r_[np.full(terms.shape[1], RIDGE), 0]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logit = rows @ weights
        likely = 1 / (1 + np.exp(-logit.clip(-500, 500)))
        value = np.logaddexp(0, logit).sum() - logit @ truth + (ridge * weights**2).sum() / 2
        return float(value), rows.T @ (likely - truth) + ridge * weights

    start = np.r_[np.zeros(terms.shape[1]), -5]
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-12}).x
    weights = best[:-1] / spread
    return weights, float(best[-1] - weights @ middle)


if __name__ == "__main__":
    every = MaskFolder().read(Path(sys.argv[1]), ReadOptions())
    dataset = every.with_samples(list(every)[::3])
    rounds = [labelled(dataset, seed) for seed in SEEDS]
    for kind in KINDS:
        weights, bias = fitted(
            np.concatenate([part[kind][1] for part in rounds]), np.concatenate([part[kind][2] for part in rounds])
        )
        named = {name: float(f"{w:.2g}") for name, w in zip(rounds[0][kind][0], weights, strict=True)}
        print(kind, round(bias, 1), named)
