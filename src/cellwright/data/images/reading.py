"""`Reading`: which part of an image file is used, as the user chose or a dataset records it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.core.public import public
from cellwright.data.images.channels import ChannelChoice, select_channels
from cellwright.data.images.read import read_image
from cellwright.data.images.source import ImageSource, open_image
from cellwright.data.images.stack import StackFacts, stack_facts
from cellwright.data.images.tiff import AnyPlane, AnyTime, Choice


class HasPlane(Protocol):
    """An image that may be one plane of a file: a sample of a dataset, or a source of a job."""

    @property
    def z(self) -> int | None: ...
    @property
    def t(self) -> int | None: ...


@public
@dataclass(frozen=True)
class Reading:
    """Which part of an image file is used.

    channel: the channels that a model sees: a name, a 0-based index, alternatives ("DAPI|Hoechst": the first that
        exists), or several of these. Empty or None takes what leaves no doubt.
    z: 0-based plane of a z stack, "max" or "mean" of all planes, or "all": each plane by itself, in predictions.
    t: 0-based time point, or "all": each by itself, in predictions.
    series: number or name of one image in a file of several.
    pixel_size: microns per pixel, one number or (y, x), in place of what the file says.
    level: a smaller copy in a pyramid; None or 0 for the full size, to which ``pixel_size`` belongs.

    >>> Reading("DAPI").over(Reading("GFP", z="max")).to_dict()
    {'channel': ['DAPI'], 'z': 'max'}
    """

    channel: ChannelChoice | None = ()
    z: AnyPlane | None = None
    t: AnyTime | None = None
    series: int | str | None = None
    pixel_size: float | Sequence[float] | None = None
    level: int | None = None

    def __post_init__(self) -> None:
        channel = self.channel
        names = (channel,) if isinstance(channel, str | int) else tuple(channel or ())
        object.__setattr__(self, "channel", names)
        object.__setattr__(self, "level", self.level or None)

    @property
    def channels(self) -> tuple[str | int, ...]:
        """``channel`` as a tuple, which it is after construction."""
        return tuple(self.channel)  # type: ignore[arg-type]

    @staticmethod
    def recorded(info: Mapping[str, Any]) -> Reading:
        """What the ``info`` of a dataset records. Raises `InputError` for a value that is not a choice."""
        fields = dataclasses.fields(Reading)
        values = {field.name: info[field.name] for field in fields if info.get(field.name) is not None}
        channel = values.pop("channel", [])
        listed = [channel] if isinstance(channel, str | int) else channel
        sizes = values.pop("pixel_size", [])
        given = [sizes] if isinstance(sizes, int | float) else sizes
        if (
            not isinstance(listed, list)
            or not isinstance(given, list | tuple)
            or not all(isinstance(value, str | int | float) for value in (*listed, *values.values()))
            or not all(isinstance(size, int | float) for size in given)
        ):
            raise InputError(
                "the dataset records an invalid choice of channel, plane or image",
                got={"channel": channel, **values, **({"pixel_size": sizes} if sizes else {})},
                expected='names and numbers, such as "channel": ["DAPI"]',
                remedy="convert the dataset again",
            )
        return Reading(tuple(listed), **values, pixel_size=tuple(given) or None)

    def over(self, other: Reading) -> Reading:
        """The choices of this one, and those of ``other`` where it makes none."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(other, **{name: value for name, value in own.items() if value not in (None, ())})

    def to_dict(self) -> dict[str, Any]:
        """The choices as JSON values, for the ``info`` of a dataset; without what is not chosen."""
        values = dataclasses.asdict(self) | {"channel": list(self.channels)}
        return {name: value for name, value in values.items() if value not in (None, [])}

    @property
    def takes_each(self) -> bool:
        """Whether each plane or each time point is an image by itself."""
        return "all" in (self.z, self.t)

    def of(self, one: HasPlane) -> Reading:
        """How one image is read: the plane and the time point that it is, where each is an image by itself.

        Raises `UsageError` if another one was chosen than that from which its objects come.
        """
        for name in ("z", "t"):
            own, chosen = getattr(one, name), getattr(self, name)
            if own is not None and chosen not in (None, "all", own):
                got, expected = f"{name} = {chosen} for an image that is {name} = {own}", f"{name} = {own}"
                what = "each of these images is one plane of a stack"
                raise UsageError(what, got=got, expected=expected, remedy=f"omit `{name}`")
        z, t = (getattr(self, name) if getattr(one, name) is None else getattr(one, name) for name in ("z", "t"))
        return dataclasses.replace(self, z=z, t=t)

    def stack(self, path: Path | str) -> StackFacts:
        """The planes and time points that an image file holds; raises what `stack_facts` raises."""
        return stack_facts(Path(path), Choice(self.z, self.t, self.series, bool(self.channels)))

    def recorded_in(self, dataset: Dataset) -> Dataset:
        """The dataset, which records these choices in place of its own."""
        return dataclasses.replace(dataset, info=dataset.info | self.to_dict())

    def chosen(self, path: Path | str) -> Image:
        """The chosen channels of an image file; all if none was chosen."""
        image = self.read(path)
        return select_channels(image, self.channels) if self.channels else image

    def check(self, path: Path | str) -> None:
        """Raise the errors of `chosen` about choices that are missing or do not exist; nothing is decoded."""
        self.open(path, chosen=True)

    def open(self, path: Path | str, *, chosen: bool = False) -> ImageSource:
        """An image file as a source of regions, with all channels or the chosen ones; see `open_image`."""
        return open_image(
            path,
            channel=self.channels or None,
            z=self.z,
            t=self.t,
            series=self.series,
            pixel_size=self.pixel_size,
            level=self.level,
            keep_channels=not chosen,
        )

    def read(self, path: Path | str) -> Image:
        """All channels of an image file; raises what `read_image` raises."""
        return read_image(
            path,
            channel=self.channels or None,
            z=self.z,
            t=self.t,
            series=self.series,
            pixel_size=self.pixel_size,
            level=self.level or 0,
            keep_channels=True,
        )
