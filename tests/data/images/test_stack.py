"""Which planes and time points files hold, and how far planes are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellwright.core.dataset import Loaded, Sample
from cellwright.core.errors import FormatError, UsageError
from cellwright.core.instances import Instances
from cellwright.data.images.reading import Reading
from cellwright.data.images.stack import StackFacts

DATA = np.random.default_rng(0).integers(0, 255, (2, 3, 20, 30), dtype=np.uint8)  # t, z
EACH = Reading(z="all", t="all")


@pytest.mark.parametrize(
    ("size", "step"),
    [
        ({}, None),
        ({"PhysicalSizeZ": 1.5}, 1.5),
        ({"PhysicalSizeZ": 300.0, "PhysicalSizeZUnit": "nm"}, 0.3),
        ({"PhysicalSizeZ": 3.0, "PhysicalSizeZUnit": "pixel"}, None),
        ({"PhysicalSizeZ": 0.0}, None),
    ],
)
def test_ome_tiff(tmp_path: Path, size: dict, step: float | None) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", DATA, metadata={"axes": "TZYX", **size})
    facts = EACH.stack(tmp_path / "a.ome.tif")
    assert (facts.z, facts.t) == ((0, 1, 2), (0, 1))
    assert facts.z_step_um == (None if step is None else pytest.approx(step))


@pytest.mark.parametrize(
    ("metadata", "step"),
    [
        ({"spacing": 0.75, "unit": "um"}, 0.75),
        ({"spacing": 0.75, "unit": "micron"}, 0.75),
        ({"spacing": -2, "unit": "mm"}, None),  # 2 mm
        ({"spacing": 0.75, "unit": "pixel"}, None),
        ({"spacing": 0.75}, None),
        ({"unit": "um"}, None),
    ],
)
def test_imagej(tmp_path: Path, metadata: dict, step: float | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DATA[0], imagej=True, metadata={"axes": "ZYX", **metadata})
    assert EACH.stack(tmp_path / "a.tif") == StackFacts((0, 1, 2), (0,), step)


def test_zarr(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    from drawn_zarr import write

    write(tmp_path / "a.ome.zarr", DATA, "tzyx")
    assert EACH.stack(tmp_path / "a.ome.zarr") == StackFacts((0, 1, 2), (0, 1), 1.0)
    write(tmp_path / "b.ome.zarr", DATA, "tzyx", unit=None)
    assert EACH.stack(tmp_path / "b.ome.zarr").z_step_um is None


def test_files_without_planes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DATA[0, 0])
    assert EACH.stack(tmp_path / "a.tif") == StackFacts()
    np.testing.assert_array_equal(EACH.read(tmp_path / "a.tif").data[:, :, 0], DATA[0, 0])
    (tmp_path / "b.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(FormatError):
        EACH.stack(tmp_path / "b.tif")
    assert EACH.stack(tmp_path / "c.png") == StackFacts()  # reading it says that it is missing


def test_every_plane_is_no_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", DATA, metadata={"axes": "TZYX"})
    with pytest.raises(UsageError, match=r"one plane is read at a time(.|\n)*z = .all.(.|\n)*0 to 2"):
        Reading(z="all", t=0).read(tmp_path / "a.ome.tif")
    with pytest.raises(UsageError, match=r"t = .all."):
        Reading(z=0, t="all").open(tmp_path / "a.ome.tif")


def test_the_plane_of_a_sample(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", DATA, metadata={"axes": "TZYX"})
    sample = Sample("a_t1_z2", tmp_path / "a.ome.tif", (20, 30), Loaded(Instances.empty((20, 30))), z=2, t=1)
    for reading in (EACH, Reading(), Reading(z=2), Reading(z=2, t=1)):
        np.testing.assert_array_equal(reading.of(sample).read(tmp_path / "a.ome.tif").data[:, :, 0], DATA[1, 2])
    for reading in (Reading(z=1), Reading(z="max"), Reading(z="all", t=0)):
        with pytest.raises(UsageError, match="one plane of a stack"):
            reading.of(sample)
    plain = Sample("a", None, (20, 30), Loaded(Instances.empty((20, 30))))
    assert Reading("DAPI", z=1).of(plain) == Reading("DAPI", z=1)


def test_real_files(readers_root: Path) -> None:
    assert EACH.stack(readers_root / "ome_tiff/qupath/cells-2t.ome.tif").t == (0, 1)
    for name in ("ome_tiff/galaxy/xyz_8bit__mitotic_plate_calibrated.tiff", "ome_zarr/xyz_8bit__mitotic_plate_calibrated.ome.zarr"):  # fmt: skip # noqa: E501
        facts = EACH.stack(readers_root / name)
        assert (len(facts.z), facts.z_step_um) == (6, 3.0)
