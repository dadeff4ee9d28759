"""`Prediction`: what a predictor returns for one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellwright.core.instances import Instances
from cellwright.core.notebook import card, drawing
from cellwright.core.notes import Note
from cellwright.core.public import public
from cellwright.core.text import count
from cellwright.data.views import View
from cellwright.prediction.diameter import Diameter


@public
@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The objects predicted for one image, and which objects were omitted and why.

    instances: the predicted objects, best first, ids 1..N.
    candidates: ``instances``, followed by the objects omitted only because of their score, with the ids that follow.
        Average precision uses these uncertain objects too. Only ``instances`` if they were not asked for.
    cells: of `PredictOptions.expand`, the cell of each of the ``instances``, with the same ids; None without it.
    n_low_score, n_small, n_border, n_over_cap: numbers of objects omitted because of their score, their area, the
        border of the image, or the largest number of objects, in this order.
    pixels_resolved: pixels removed from lower-scoring objects where overlaps were resolved.
    model_cap: the model's own limit on the number of objects if the image reached it, so that objects may be missing;
        None otherwise.
    diameter: the object diameter by which the image was resized; None for models that do not use one.
    views: the views of test-time augmentation; empty for methods without views.
    notes: what was assumed about the image.
    network: the name of the network that was chosen for the image; empty for models that are one network.

    >>> from cellwright import Instances, MaskSet
    >>> masks, _ = MaskSet.from_label_map(np.array([[1, 1, 0, 2], [1, 1, 0, 2]]))
    >>> Prediction.of(Instances.from_masks(masks, scores=np.array([0.9, 0.4])))
    Prediction(2 objects in 2 x 4 px)
    """

    instances: Instances
    candidates: Instances
    n_low_score: int = 0
    n_small: int = 0
    n_border: int = 0
    n_over_cap: int = 0
    pixels_resolved: int = 0
    model_cap: int | None = None
    diameter: Diameter | None = None
    views: tuple[View, ...] = ()
    notes: tuple[Note, ...] = ()
    cells: Instances | None = None
    network: str = ""

    @staticmethod
    def of(
        instances: Instances,
        *,
        model_cap: int | None = None,
        diameter: Diameter | None = None,
        views: tuple[View, ...] = (),
        notes: tuple[Note, ...] = (),
    ) -> Prediction:
        """A prediction from which nothing was omitted."""
        return Prediction(instances, instances, model_cap=model_cap, diameter=diameter, views=views, notes=notes)

    def __repr__(self) -> str:
        return f"Prediction({'; '.join(self._facts())})"

    def _repr_html_(self) -> str:
        """A card with a picture of the objects, for notebooks."""
        first, *others = self._facts()
        scores, rows = self.instances.scores, []
        if len(self.instances) and scores is not None:
            areas = self.instances.masks.areas
            rows += [
                ("scores", f"{scores.min():.2f} to {scores.max():.2f}"),
                ("median area", f"{np.median(areas):,.0f} px"),
            ]
        rows += [(name, text) for name, _, text in (fact.partition(": ") for fact in others)]
        rows += [("note", note.text) for note in self.notes[:3]]
        return card(f"Prediction: {first}", rows, drawing(self.instances))

    def _facts(self) -> list[str]:
        height, width = self.instances.image_hw
        omitted = {
            "low score": self.n_low_score,
            "small": self.n_small,
            "at the border": self.n_border,
            "over the maximum": self.n_over_cap,
        }
        parts = [f"{count(len(self.instances), 'object')} in {height} x {width} px"]
        if any(omitted.values()):
            parts.append("omitted: " + ", ".join(f"{n:,} {reason}" for reason, n in omitted.items() if n))
        if self.model_cap is not None:
            parts.append(f"the model's limit of {self.model_cap:,} objects was reached")
        if self.diameter is not None and self.diameter.px is not None:
            parts.append(f"diameter {self.diameter.px:.1f} px {'estimated' if self.diameter.estimated else 'given'}")
        if len(self.views) > 1:
            parts.append(count(len(self.views), "view"))
        if self.network:
            parts.append(f"network: {self.network}")
        return parts
