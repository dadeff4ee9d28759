"""Which channels of an image are used: chosen by the user, or assumed where one name means nuclei.

`read_image` returns all channels, so that all can be measured. What a network sees is chosen here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image, channel_index
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.images.pixels import finite_pixels

ChannelChoice: TypeAlias = str | int | Sequence[str | int]
"""A name, a 0-based index, alternatives ("DAPI|Hoechst"), or a list of these."""

RGB = ("R", "G", "B")
# Stained and in transmitted light: the 98th percentile of the difference between the colours, and the median
# brightness, as shares of white. 407 images of four sources have at least .10 and .26; glass and grey images have less
# colour, and fluorescence is darker.
_COLOURED, _BRIGHT = 0.08, 0.2
_NOISE_PX = 5
ASSUMED_NUCLEI = "a channel was assumed to show the nuclei"
ASSUMED_BLUE = "blue was assumed to show the nuclei"
SEPARATE_STAINS = "red, green and blue are separate stains, and the model saw all three"
TRAINED_ON = "the channels that the model was trained on were used"
IN_ORDER = "channels were taken for those of the training by their order"
UNNAMED = "grey"

# Words in the name of a channel that shows nuclei: dyes and labels of DNA. Names are compared in lower case, with all
# punctuation as spaces.
_NUCLEAR = re.compile(
    r"dapi|hoechst|draq ?[57]|nuclei|nucleus|nuclear|h ?333(42|58)|h2b|nucblue|nucspot|sytox|to ?pro ?3|7 ?aad"
    r"|\b(nuc|dna|nls) ?\d*\b|\bh3\b"
)


def choose_channels(
    image: Image, wanted: ChannelChoice | None, n_network: int | None, *, trained: Sequence[str] = ()
) -> Image:
    """The channels of ``image`` that a network of ``n_network`` channels is to see (None: a method that takes all).

    wanted: see `select_channels`. trained: names of the channels that the network was trained on, if known, each with
    alternatives ("DAPI|Hoechst"). Without ``wanted``, what leaves no doubt is taken; ``notes`` says what was assumed:

    - the channels that the network was trained on, by name, in the order of the training;
    - one channel, or red, green and blue, each with or without alpha (`network_input` fits them to the network); but
      for a network of nuclei, blue alone where the colours are separate stains (`has_separate_stains`);
    - all channels, for a network that was trained on as many, unless that may have been RGB;
    - the only channel whose name means nuclei (DAPI, Hoechst, DRAQ5, nuclei, H2B, ...).

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
    >>> choose_channels(image, None, 2, trained=["DAPI", "actin"]).channels
    ('DAPI', 'actin')
    """
    if wanted is None or not (isinstance(wanted, str | int) or len(wanted)):
        return finite_pixels(_without_doubt(image, n_network, trained))
    return finite_pixels(select_channels(image, wanted))


def _without_doubt(image: Image, n_network: int | None, trained: Sequence[str]) -> Image:
    """What `choose_channels` takes without a choice by the user."""
    if n_network is None:
        return image
    opaque = image.without_alpha()
    known = _indices_of(opaque.channels, trained)
    if known is not None and known != list(range(opaque.n_channels)):
        return _noted(opaque.with_channels(known), TRAINED_ON, f"{_picked(opaque, known)}, as in the model's training")
    if opaque.n_channels == 1:
        return image
    if opaque.channels == RGB:
        return _of_stains(image, trained) if has_separate_stains(opaque) else image
    may_be_rgb = n_network == len(RGB) and (len(trained) != n_network or tuple(trained) == RGB)
    if opaque.n_channels == n_network and not may_be_rgb:
        return opaque if known is not None or not trained else _in_order(opaque, trained)
    nuclear = [k for k, name in enumerate(opaque.channels) if means_nuclei(name)]
    if len(nuclear) == 1:
        text = f"{_picked(opaque, nuclear)} was assumed to show the nuclei; choose another with `channel`"
        return _noted(opaque.with_channels(nuclear), ASSUMED_NUCLEI, text)
    example = opaque.channels[nuclear[0] if nuclear else 0]
    raise InputError(
        "this image has several channels that are not red, green and blue, and none was chosen",
        where=image.path,
        got=f"{count(opaque.n_channels, 'channel')}: {numbered(opaque.channels)}",
        remedy=f'choose one with `channel`, by name or number, such as `channel="{example}"`',
    )


def _indices_of(names: tuple[str, ...], trained: Sequence[str]) -> list[int] | None:
    """Where the channels of the training are in an image, each once; None if one is missing."""
    # The number of an unnamed channel is no name: it says nothing about the channels of another image.
    if not trained or any(choice.isdecimal() and choice not in names for choice in trained):
        return None
    try:
        found = [channel_index(names, choice) for choice in trained]
    except UsageError:
        return None
    return found if len(set(found)) == len(found) else None


def _in_order(image: Image, trained: Sequence[str]) -> Image:
    text = f"channels {', '.join(image.channels)} were taken for {', '.join(trained)} of the training, in this order"
    return _noted(image, IN_ORDER, text)


def _of_stains(image: Image, trained: Sequence[str]) -> Image:
    """A colour image of separate stains: blue for a network of nuclei, otherwise as it is."""
    opaque = image.without_alpha()
    if tuple(trained) == RGB:
        return image
    if len(trained) == 1 and means_nuclei(trained[0]) and _has_content(opaque)[RGB.index("B")]:
        text = (
            "red, green and blue are separate stains, as in a picture of a fluorescence image; blue was assumed to "
            'show the nuclei; choose another with `channel`, such as `channel="R"`'
        )
        return _noted(opaque.with_channels([RGB.index("B")]), ASSUMED_BLUE, text)
    text = (
        "red, green and blue are separate stains, as in a picture of a fluorescence image, and the model saw all "
        'three; to use the one that shows your objects: `channel="B"`'
    )
    return _noted(image, SEPARATE_STAINS, text)


def has_separate_stains(image: Image) -> bool:
    """Whether red, green and blue show different stains on black, as a picture of a fluorescence image does.

    Light that was absorbed (H&E, bright field) is white where there is nothing, and its colours rise and fall together.
    """
    values = _sampled(image)
    white = float(np.percentile(values, 99.8)) or 1.0
    lit = np.clip(values / white, 0, 1)
    least, most = lit.min(axis=1), lit.max(axis=1)
    content = _has_content(image)
    if content.sum() < 2 or np.median(least) > 0.2 or np.percentile(least, 90) > 0.35:
        return False
    coloured = least[most > 0.25] < 0.5 * most[most > 0.25]
    agreement = np.corrcoef(values[:, content].T)
    return bool(coloured.mean() > 0.5 and agreement.min() < 0.8)


def is_stained(image: Image) -> bool:
    """Whether the image shows stained cells or tissue in transmitted light (H&E, smears): coloured on a bright ground.

    Green and yellow that shines on a darker ground is fluorescence, or the inverse of a stain.

    >>> import numpy as np
    >>> pink = np.full((8, 8, 3), (230, 180, 210), np.uint8)
    >>> is_stained(Image.from_array(pink)), is_stained(Image.from_array(pink[..., :1]))
    (True, False)
    """
    if image.without_alpha().channels != RGB:
        return False
    values = _sampled(image)[:, :3]
    white = float(np.percentile(values, 99.8)) or 1.0
    lit = np.clip(values / white, 0, 1)
    chroma, brightness = lit.max(axis=1) - lit.min(axis=1), lit.mean(axis=1)
    if not (np.percentile(chroma, 98) > _COLOURED and np.median(brightness) > _BRIGHT):
        return False
    # Of 383 stained images, green is the weakest colour in all, and the strongest when they are inverted.
    colour = lit[chroma >= np.percentile(chroma, 90)].mean(axis=0)
    shines = (chroma - chroma.mean()) @ (brightness - brightness.mean()) > 0
    return not (colour.argmax() == 1 and shines)


def _has_content(image: Image) -> np.ndarray:
    """Which channels (C,) bool vary by at least a tenth of the brightest."""
    low, high = np.percentile(_sampled(image), (1, 99.8), axis=0)
    return high - low > 0.1 * max(float(high.max()), 1e-12)


def _sampled(image: Image) -> np.ndarray:
    """Up to about 100,000 places (n, C) float64, evenly spread; each is the mean of up to 5 x 5 pixels, since the noise
    of single pixels is coloured."""
    height, width, n_channels = image.data.shape
    step = max(round((height * width / 1e5) ** 0.5), _NOISE_PX)
    rows, columns = min(step, height), min(step, width)
    whole = image.data[: height - height % rows, : width - width % columns]
    blocks = whole.reshape(height // rows, rows, width // columns, columns, n_channels)
    return blocks[:, :_NOISE_PX, :, :_NOISE_PX].mean(axis=(1, 3), dtype=np.float64).reshape(-1, n_channels)


def _picked(image: Image, indices: Sequence[int]) -> str:
    names = [image.channels[k] for k in indices]
    return f"{'channel' if len(names) == 1 else 'channels'} {', '.join(names)} of {', '.join(image.channels)}"


def _noted(image: Image, kind: str, text: str) -> Image:
    return dataclasses.replace(image, notes=(*image.notes, Note(kind, text, image.path or "")))


def select_channels(image: Image, wanted: ChannelChoice) -> Image:
    """The image with only the channels ``wanted``, in this order.

    wanted: a name (in any case where that is unambiguous), a 0-based index, alternatives such as "DAPI|Hoechst" (the
    first that exists), or a list of these. The only channel of an image is taken under any name if it has none of its
    own. Raises `UsageError` for a channel that does not exist.

    >>> import numpy as np
    >>> image = Image(np.zeros((4, 5, 3), np.uint8), ("actin", "DAPI", "tubulin"))
    >>> select_channels(image, ["hoechst|dapi", 0]).channels
    ('DAPI', 'actin')
    """
    choices = [wanted] if isinstance(wanted, str | int) else list(wanted)
    if not choices:
        raise UsageError("no channel was chosen", where=image.path, expected=numbered(image.channels))
    only = image.without_alpha()
    if len(choices) == 1 and only.channels == (UNNAMED,) and not str(choices[0]).isdecimal():
        text = f"its only channel has no name, and was taken for {choices[0]}"
        return image if choices[0] == UNNAMED else _noted(only, "a channel without a name was taken", text)
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
