"""What is said about an image whose objects are unlike those that the model was trained on, or in which it finds none.

Calibrated scores are expected IoUs, so their median tells how well the outlines of an image fit, without annotations.
Of 107 images that `nuclei` was not trained on, 11 are doubted, all of them H&E: their accuracy@0.5 is .21, that of the
others .70 (`benchmarks/doubt.py`).
"""

from __future__ import annotations

import numpy as np

from cellwright.core.notes import Note

# A few objects say less than many, and below this expected IoU an object is hardly one.
LEAST_SCORE, LEAST_OF_FEW, FEW, LEAST_OBJECT = 0.6, 0.58, 5, 0.3
DOUBTFUL = "the objects are unlike those that the model was trained on"
NOTHING = "no object was found"
REMEDY = "look at the picture, then try `diameter` or `channel`, or fine-tune the model (recipe nuclei/finetune)"


def doubts(scores: np.ndarray, counts: np.ndarray | None = None) -> tuple[Note, ...]:
    """A note about an image, given the calibrated scores (N,) of its objects; none if there is no reason to doubt.

    counts: (N,) the number of objects with each of the scores; None: one.

    >>> doubts(np.full(20, 0.8))
    ()
    >>> doubts(np.full(20, 0.45))[0].text[:94]
    'the objects are unlike those that the model was trained on: their median expected IoU is 0.45,'
    """
    counts = np.ones(len(scores), np.int64) if counts is None else counts
    order = np.argsort(scores)
    order = order[(scores[order] >= LEAST_OBJECT) & (counts[order] > 0)]
    below = np.cumsum(counts[order])
    if not len(order):
        return ()
    median = float(scores[order][np.searchsorted(below, (below[-1] + 1) // 2)])
    least = LEAST_OF_FEW if below[-1] < FEW else LEAST_SCORE
    if median >= least:
        return ()
    text = f"{DOUBTFUL}: their median expected IoU is {median:.2f}, below {least}; {REMEDY}"
    return (Note(DOUBTFUL, text),)


def nothing_found(n_low_score: int = 0, n_small: int = 0, n_border: int = 0, *, uses_diameter: bool) -> Note:
    """A note about an image without objects, given the numbers of objects that options omitted.

    >>> nothing_found(3, uses_diameter=True).text
    'no object was found: 3 were omitted for a low score. If the image shows some, try `score`, `diameter` or `channel`'
    """
    reasons = {"a low score": n_low_score, "a small area": n_small, "touching the border": n_border}
    omitted = [f"{n} {'was' if n == 1 else 'were'} omitted for {reason}" for reason, n in reasons.items() if n]
    options = ["`score`"] * bool(n_low_score) + ["`diameter`"] * uses_diameter
    found = f"{NOTHING}: {', '.join(omitted)}" if omitted else NOTHING
    remedy = f"{', '.join(options)} or `channel`" if options else "`channel`"
    return Note(NOTHING, f"{found}. If the image shows some, try {remedy}")
