"""Options that several verbs share: which part of each image file is used, and which format annotations are in.

Types, help texts and groups are defined here once. A plan uses them as the types of its fields.
"""

from __future__ import annotations

from typing import Annotated, Protocol, TypeAlias

from cyclopts import Group, Parameter

from cellwright.data.images.reading import Reading
from cellwright.data.images.tiff import AnyPlane, AnyTime, Plane

PART = Group("Which part of each file", sort_key=1)

Channel: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(
        help="Name or number of the channel to use, where there are several (default: as the dataset or the model "
        "records)."
    ),
]
Planes: TypeAlias = Annotated[
    Plane | None, Parameter(group=PART, help="Plane of a stack, counted from 0, or max or mean of all planes.")
]
TimePoint: TypeAlias = Annotated[int | None, Parameter(group=PART, help="Time point, counted from 0.")]
EachPlane: TypeAlias = Annotated[
    AnyPlane | None,
    Parameter(
        group=PART,
        help="Plane of a stack, counted from 0; max or mean of all planes; or all: each plane is predicted as an image "
        "(stitch joins their objects).",
    ),
]
EachTime: TypeAlias = Annotated[
    AnyTime | None,
    Parameter(
        group=PART,
        help="Time point, counted from 0; or all: each is predicted as an image (stitch links their objects to "
        "tracks).",
    ),
]
Series: TypeAlias = Annotated[
    str | None, Parameter(group=PART, help="Number or name of one image in a file of several.")
]
FormatName: TypeAlias = Annotated[
    str | None, Parameter(help="Format of the annotations (docs/formats.md); detected by default.")
]


class HasPart(Protocol):
    """A plan that chooses a part of each file."""

    @property
    def channel(self) -> tuple[str, ...]: ...
    @property
    def z(self) -> Plane | None: ...
    @property
    def t(self) -> int | None: ...
    @property
    def series(self) -> str | None: ...


def reading_of(plan: HasPart) -> Reading:
    """Which part of each image file a plan chooses."""
    return Reading(plan.channel, plan.z, plan.t, plan.series)
