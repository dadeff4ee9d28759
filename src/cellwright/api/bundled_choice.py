"""Which of two bundled networks fits a dataset, where a name such as ``nuclei`` stands for both."""

from __future__ import annotations

from collections.abc import Sequence

from cellwright.api.recipe_facts import evenly
from cellwright.core.dataset import Sample
from cellwright.core.errors import CellwrightError
from cellwright.core.text import count
from cellwright.data.images.channels import is_stained
from cellwright.data.images.reading import Reading

# Images of a dataset that are looked at.
_LOOKED_AT = 16


def network_for(name: str, samples: Sequence[Sample], reading: Reading) -> tuple[str, str]:
    """The network that suits most of the images, and a note that says so; any other ``name`` as it is, without a note.

    Images that cannot be read do not count.
    """
    from cellwright.models.weights.model_folder import CHOICES

    if name not in CHOICES:
        return name, ""
    other, stained = CHOICES[name]
    found = [found for sample in evenly(samples, _LOOKED_AT) if (found := _looks_stained(sample, reading)) is not None]
    n = sum(found)
    chosen, rest = (stained, other) if n > len(found) / 2 else (other, stained)
    if 0 < n < len(found):
        seen = f"{n} of {count(len(found), 'image')} show stained cells or tissue"
        return chosen, f"{name} is {chosen} here: {seen}; for the others, {rest} is better"
    return chosen, f"{name} is {chosen} here, as the images are {'stained' if n else 'not stained'}"


def _looks_stained(sample: Sample, reading: Reading) -> bool | None:
    if sample.image_path is None:
        return None
    try:
        return is_stained(reading.of(sample).chosen(sample.image_path))
    except CellwrightError:
        return None  # whoever reads it for its pixels says why
