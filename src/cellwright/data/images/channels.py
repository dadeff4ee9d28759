"""Which channels of an image are used: chosen by the user, or assumed where one name means nuclei.

`read_image` returns all channels, so that all can be measured. What a network sees is chosen here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeAlias

from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image, channel_index
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.images.pixels import finite_pixels

ChannelChoice: TypeAlias = str | int | Sequence[str | int]
"""A name, a 0-based index, alternatives ("DAPI|Hoechst"), or a list of these."""

RGB = ("R", "G", "B")
ASSUMED_NUCLEI = "a channel was assumed to show the nuclei"

# Words in the name of a channel that shows nuclei: dyes and labels of DNA. Names are compared in lower case, with all
# punctuation as spaces.
_NUCLEAR = re.compile(
    r"dapi|hoechst|draq ?[57]|nuclei|nucleus|nuclear|h ?333(42|58)|h2b|nucblue|nucspot|sytox|to ?pro ?3|7 ?aad"
    r"|\b(nuc|dna|nls) ?\d*\b|\bh3\b"
)


def choose_channels(image: Image, wanted: ChannelChoice | None, n_network: int | None) -> Image:
    """The channels of ``image`` that a network of ``n_network`` channels is to see (None: a method that takes all).

    wanted: see `select_channels`. None takes what leaves no doubt:

    - one channel, or red, green and blue, each with or without alpha (`network_input` fits them to the network);
    - all channels, for a network that was trained on as many and not on grey or RGB (1 or 3);
    - the only channel whose name means nuclei (DAPI, Hoechst, DRAQ5, nuclei, H2B, ...), with a note in ``notes``.

    Pixels that are not finite, which no method can use, are replaced with a note: NaN and minus infinity by the
    smallest finite value of the channel, infinity by the largest.

    Raises `InputError` that lists the channels if there is doubt, or if a channel has no finite pixel, and `UsageError`
    for a choice that does not exist.

    >>> import numpy as np
    >>> image = Image(np.zeros((4, 5, 2), np.uint8), ("actin", "DAPI"))
    >>> choose_channels(image, None, 3).channels, choose_channels(image, "actin", 3).channels
    (('DAPI',), ('actin',))
    >>> choose_channels(image, None, 3).notes[0].text
    'channel DAPI of actin, DAPI was assumed to show the nuclei; choose another with `channel`'
    """
    if wanted is not None:
        return finite_pixels(select_channels(image, wanted))
    return finite_pixels(_without_doubt(image, n_network))


def _without_doubt(image: Image, n_network: int | None) -> Image:
    opaque = image.without_alpha()
    if opaque.n_channels == 1 or opaque.channels == RGB or n_network is None:
        return image
    if opaque.n_channels == n_network and n_network != len(RGB):
        return opaque
    nuclear = [k for k, name in enumerate(opaque.channels) if means_nuclei(name)]
    listed = ", ".join(opaque.channels)
    if len(nuclear) == 1:
        name = opaque.channels[nuclear[0]]
        text = f"channel {name} of {listed} was assumed to show the nuclei; choose another with `channel`"
        chosen = opaque.with_channels(nuclear)
        return dataclasses.replace(chosen, notes=(*chosen.notes, Note(ASSUMED_NUCLEI, text, image.path or "")))
    example = opaque.channels[nuclear[0] if nuclear else 0]
    raise InputError(
        "this image has several channels that are not red, green and blue, and none was chosen",
        where=image.path,
        got=f"{count(opaque.n_channels, 'channel')}: {numbered(opaque.channels)}",
        remedy=f'choose one with `channel`, by name or number, such as `channel="{example}"`',
    )


def select_channels(image: Image, wanted: ChannelChoice) -> Image:
    """The image with only the channels ``wanted``, in this order.

    wanted: a name (in any case where that is unambiguous), a 0-based index, alternatives such as "DAPI|Hoechst" (the
    first that exists), or a list of these. Raises `UsageError` for a channel that does not exist.

    >>> import numpy as np
    >>> image = Image(np.zeros((4, 5, 3), np.uint8), ("actin", "DAPI", "tubulin"))
    >>> select_channels(image, ["hoechst|dapi", 0]).channels
    ('DAPI', 'actin')
    """
    choices = [wanted] if isinstance(wanted, str | int) else list(wanted)
    if not choices:
        raise UsageError("no channel was chosen", where=image.path, expected=numbered(image.channels))
    return image.with_channels([channel_index(image.channels, choice, image.path) for choice in choices])


def means_nuclei(name: str) -> bool:
    """Whether the name of a channel says that it shows nuclei.

    >>> [name for name in ("DAPI", "405-DAPI_conf", "H2B-GFP", "GFP", "DNA 1", "nucleolin") if means_nuclei(name)]
    ['DAPI', '405-DAPI_conf', 'H2B-GFP', 'DNA 1']
    """
    return _NUCLEAR.search(re.sub(r"[^a-z0-9]+", " ", name.lower())) is not None


def numbered(names: Sequence[str]) -> str:
    """``"0: actin, 1: DAPI"``."""
    return ", ".join(f"{k}: {name}" for k, name in enumerate(names))
