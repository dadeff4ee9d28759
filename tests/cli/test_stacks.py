"""`predict --z all`, `--t all` and `--stitch`: planes one by one, joined to objects and tracks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn import run
from drawn_stacks import ellipsoids, moving, numbers_of, write_ome
from scipy import ndimage

import cellwright as cw


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predict(image: Path, out: Path, *words: object) -> int:
    return run("predict", image, "--model", "classical", "--out", out, *words)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a.ome.tif`` of seven planes, predicted into ``a`` beside it; no test changes it."""
    root = tmp_path_factory.mktemp("stack")
    write_ome(root / "a.ome.tif", ellipsoids()[0], "ZYX")
    assert predict(root / "a.ome.tif", root / "a", "--z", "all", "--stitch", 0.25) == 0
    return root


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a.tif`` of six frames, predicted into ``a`` beside it; no test changes it."""
    root = tmp_path_factory.mktemp("movie")
    tifffile.imwrite(root / "a.tif", moving()[0], imagej=True, metadata={"axes": "TYX"})
    assert predict(root / "a.tif", root / "a", "--t", "all", "--stitch", 0.25) == 0
    return root


def test_an_object_has_one_number_in_all_planes(stack: Path) -> None:
    out, truth = stack / "a", ellipsoids()[1]
    with tifffile.TiffFile(out / "a_masks.tif") as tif:
        assert (tif.series[0].axes, tif.is_ome) == ("ZYX", True)
        for size in ('SizeX="0.5"', 'SizeY="0.5"', 'SizeZ="2.0" PhysicalSizeZUnit="µm"'):
            assert f"Physical{size}" in (tif.ome_metadata or "")
        labels = tif.asarray()
    assert (labels.dtype, labels.shape) == (np.uint32, truth.shape)
    assert sorted(map(len, numbers_of(labels, truth).values())) == [1] * truth.max()
    assert labels.max() == truth.max() == 12
    for z in range(7):
        plane = tifffile.imread(out / f"a_z{z}_masks.tif")
        np.testing.assert_array_equal(plane > 0, labels[z] > 0)
        assert (out / f"a_z{z}_overlay.png").is_file()


def test_the_table_of_objects(stack: Path) -> None:
    labels, table = tifffile.imread(stack / "a" / "a_masks.tif"), rows(stack / "a" / "a_objects.csv")
    assert [int(row["object"]) for row in table] == list(range(1, 13))
    for row in table:
        z, y, x = np.nonzero(labels == int(row["object"]))
        assert [int(row[name]) for name in ("volume_voxels", "planes", "z_first", "z_last")] == [len(z), len(set(z)), z.min(), z.max()]  # fmt: skip # noqa: E501
        centre = [float(row[name]) for name in ("centroid_z", "centroid_y_px", "centroid_x_px")]
        np.testing.assert_allclose(centre, [z.mean(), y.mean() + 0.5, x.mean() + 0.5], rtol=1e-5)
        assert float(row["volume_um3"]) == pytest.approx(len(z) * 0.5 * 0.5 * 2, rel=1e-6)
        assert float(row["equivalent_diameter_um"]) == pytest.approx(np.cbrt(6 / np.pi * len(z) * 0.5), rel=1e-6)
        assert row["class"] == "nucleus"
        assert row["touches_end"] == str(bool({0, 6} & set(z)))
    (about,) = rows(stack / "a" / "stacks.csv")
    assert (about["image"], about["planes"], about["objects"], about["z_step_um"]) == ("a", "7", "12", "2.0")


def test_measurements_say_where_an_object_is(stack: Path) -> None:
    out = stack / "a"
    labels = tifffile.imread(out / "a_masks.tif")
    table = rows(out / "measurements.csv")
    assert list(table[0])[:7] == ["image", "label", "object", "t", "z", "class", "score"]
    for row in table:
        z, own = int(row["z"]), tifffile.imread(out / f"{row['image']}_masks.tif") == int(row["label"])
        assert row["image"] == f"a_z{z}"
        np.testing.assert_array_equal(own, labels[z] == int(row["object"]))
    assert sum(int(row["area_px"]) for row in table) == np.count_nonzero(labels)
    summary = rows(out / "summary.csv")
    assert [(row["image"], row["t"], row["z"]) for row in summary] == [(f"a_z{z}", "", str(z)) for z in range(7)]
    images = json.loads((out / "predictions.json").read_text())["images"]
    assert [(image["sample_id"], image["z"], image["group"]) for image in images] == [(f"a_z{z}", z, "a") for z in range(7)]  # fmt: skip # noqa: E501
    report = (out / "report.html").read_text()
    assert "Stacks" in report
    assert "12" in report
    features = json.loads((out / "a_z3.geojson").read_text())["features"]
    assert {tuple(feature["geometry"]["plane"].items()) for feature in features} == {(("c", -1), ("z", 3), ("t", 0))}


def test_tracks(movie: Path) -> None:
    out, truth = movie / "a", moving()[1]
    labels = tifffile.imread(out / "a_masks.tif")
    numbers = numbers_of(labels, truth)
    assert sorted(map(len, numbers.values())) == [1] * 5
    track = {k: of.pop() for k, of in numbers.items()}
    table = rows(out / "a_tracks.csv")
    assert list(table[0])[:5] == ["track", "t", "y", "x", "parent"]
    assert {(int(row["track"]), int(row["parent"])) for row in table} == {
        (track[1], 0), (track[2], 0), (track[3], 0), (track[4], track[1]), (track[5], track[1])
    }  # fmt: skip
    for row in table:
        y, x = ndimage.center_of_mass(labels[int(row["t"])] == int(row["track"]))
        np.testing.assert_allclose([float(row["y"]), float(row["x"])], [y + 0.5, x + 0.5], rtol=1e-5)
    assert not (out / "a_objects.csv").exists()


def test_the_layout_of_the_cell_tracking_challenge(movie: Path) -> None:
    folder, labels = movie / "a" / "a_ctc", tifffile.imread(movie / "a" / "a_masks.tif")
    files = sorted((folder / "01_RES").glob("*.tif"))
    assert [file.name for file in files] == [f"mask{t:03d}.tif" for t in range(6)]
    for t, file in enumerate(files):
        frame = tifffile.imread(file)
        assert frame.dtype == np.uint16
        np.testing.assert_array_equal(frame, labels[t])
    table = [
        [int(word) for word in line.split()] for line in (folder / "01_RES/res_track.txt").read_text().splitlines()
    ]
    assert len(table) == 5
    for number, first, last, parent in table:
        present = [t for t in range(6) if (labels[t] == number).any()]
        assert present == list(range(first, last + 1))
        assert parent == 0 or table[parent - 1][2] == first - 1
    dataset = cw.read_dataset(folder, require_images=False)
    assert dataset.info["tracks"] == {"01": table}
    assert len(dataset) == 6


def test_planes_and_time_points(tmp_path: Path) -> None:
    volume, truth = ellipsoids(1, (4, 80, 90), 5)
    stack = np.stack([volume, volume[:, ::-1], volume[:, ::-1]])  # moved too far, then not at all
    out = tmp_path / "out"
    image = write_ome(tmp_path / "a.ome.tif", stack, "TZYX")
    assert predict(image, out, "--z", "all", "--t", "all", "--stitch", 0.3, "--save", "masks") == 0
    with tifffile.TiffFile(out / "a_masks.tif") as tif:
        assert tif.series[0].axes == "TZYX"
        labels = tif.asarray()
    np.testing.assert_array_equal(labels[1], labels[2])
    for frame, expected in ((labels[0], truth), (labels[1], truth[:, ::-1])):
        assert sorted(map(len, numbers_of(frame, expected).values())) == [1] * truth.max()
    np.testing.assert_array_equal(tifffile.imread(out / "a_ctc/01_RES/mask002.tif"), labels[2])
    objects, tracks = rows(out / "a_objects.csv"), rows(out / "a_tracks.csv")
    assert [row["object"] for row in objects] == [row["track"] for row in tracks]
    assert {row["t"] for row in objects} == {"0", "1", "2"}
    assert list(tracks[0])[:6] == ["track", "t", "z", "y", "x", "parent"]
    assert (out / "a_t0_z0_masks.tif").is_file()
    assert not (out / "measurements.csv").exists()


def test_one_axis_of_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other axis is chosen or projected; without a choice, what is missing is named."""
    volume = ellipsoids(1, (3, 80, 90), 4)[0]
    image = write_ome(tmp_path / "a.ome.tif", np.stack([volume, volume]), "TZYX")
    assert predict(image, tmp_path / "max", "--z", "max", "--t", "all", "--stitch", 0.3, "--save", "masks") == 0
    assert tifffile.imread(tmp_path / "max/a_masks.tif").shape == (2, 80, 90)
    assert predict(image, tmp_path / "one", "--z", "all", "--t", 1, "--stitch", 0.3, "--save", "masks") == 0
    assert tifffile.imread(tmp_path / "one/a_masks.tif").shape == (3, 80, 90)
    assert not (tmp_path / "one/a_tracks.csv").exists()
    capsys.readouterr()
    assert predict(image, tmp_path / "none", "--z", "all") == 2
    assert 'choose --t (0 to 1; "all" predicts each)' in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r'choose --z (0 to 6, "max" or "mean"; "all" predicts each)'),
        (["--stitch", 0.5], "expected: --z all, --t all, or both"),
        (["--z", 2, "--stitch", 0.5], "there are no planes to join"),
        (["--z", "all", "--stitch", 0], "invalid --stitch"),
        (["--z", "all", "--stitch", 1.5], "invalid --stitch"),
        (["--z", "every"], "every"),
        (["--z", "all", "--tile", 128], "--tile is for one image"),
    ],
)
def test_what_is_refused(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words, message) -> None:
    assert predict(stack / "a.ome.tif", tmp_path / "out", *words) == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.err + printed.out).split())
    assert not (tmp_path / "out").exists()


def test_planes_that_are_not_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack beside a plain image; a note says that nothing is joined, and how to."""
    volume = ellipsoids(1, (3, 80, 90), 4)[0]
    write_ome(tmp_path / "in" / "a.ome.tif", volume, "ZYX")
    tifffile.imwrite(tmp_path / "in" / "b.tif", volume[1])
    assert predict(tmp_path / "in", tmp_path / "out", "--z", "all") == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "1 stack of 3 planes, each predicted as an image; objects are not joined" in printed
    assert "--stitch joins them by overlap" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a_z0_masks.tif", "a_z2_masks.tif", "b_masks.tif"} <= names
    assert not {"a_masks.tif", "stacks.csv", "a_objects.csv"} & names
    table = rows(tmp_path / "out" / "measurements.csv")
    assert list(table[0])[:4] == ["image", "label", "t", "z"]
    of_plain = [row for row in table if row["image"] == "b"]
    assert {row["z"] for row in of_plain} == {""}
    alone = [row["area_px"] for row in table if row["z"] == "1"]
    assert [row["area_px"] for row in of_plain] == alone


def test_unnamed_pages_are_planes(tmp_path: Path) -> None:
    volume = ellipsoids(1, (3, 80, 90), 4)[0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for page in volume:
            tif.write(page, metadata=None, contiguous=False)
    assert predict(tmp_path / "a.tif", tmp_path / "out", "--z", "all", "--stitch", 0.25, "--save", "masks") == 0
    assert tifffile.imread(tmp_path / "out/a_masks.tif").shape == (3, 80, 90)
    assert "volume_um3" not in rows(tmp_path / "out/a_objects.csv")[0]


def test_ome_zarr(stack: Path, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    from drawn_zarr import write

    write(tmp_path / "a.ome.zarr", ellipsoids()[0], "zyx", scale=0.5)
    assert predict(tmp_path / "a.ome.zarr", tmp_path / "out", "--z", "all", "--stitch", 0.25) == 0
    labels, same = (tifffile.imread(folder / "a_masks.tif") for folder in (tmp_path / "out", stack / "a"))
    np.testing.assert_array_equal(labels, same)
    um3 = [float(row["volume_um3"]) for row in rows(tmp_path / "out/a_objects.csv")]
    twice = [float(row["volume_um3"]) for row in rows(stack / "a/a_objects.csv")]  # planes twice as far apart
    np.testing.assert_allclose(np.array(um3) * 2, twice, rtol=1e-6)


# --- again, and what fails ------------------------------------------------------------------------------------------


def test_again_and_otherwise(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = stack / "a.ome.tif", stack / "a"
    capsys.readouterr()
    assert predict(image, out, "--z", "all", "--stitch", 0.25) == 0
    assert "already complete" in capsys.readouterr().err
    assert predict(image, out, "--z", "all", "--stitch", 0.5) == 2
    assert "changed since: --stitch 0.5 instead of 0.25" in capsys.readouterr().err
    assert predict(image, out, "--z", "all") == 2
    assert predict(image, out, "--z", 3) == 2


def test_a_plane_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are predicted; the stack is joined once the file is whole."""
    volume = ellipsoids(1, (3, 80, 90), 4)[0]
    image = write_ome(tmp_path / "a.ome.tif", volume, "ZYX", compression="zlib")
    whole = image.read_bytes()
    with tifffile.TiffFile(image) as tif:
        at = tif.pages[1].dataoffsets[0]
    image.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
    assert predict(image, tmp_path / "out", "--z", "all", "--stitch", 0.25) == 3
    assert "a: not joined: 1 plane could not be predicted" in " ".join(capsys.readouterr().err.split())
    (about,) = rows(tmp_path / "out" / "stacks.csv")
    assert about["objects"] == ""
    assert not (tmp_path / "out" / "a_masks.tif").exists()
    assert rows(tmp_path / "out" / "failures.csv")[0]["image"] == "a_z1"
    image.write_bytes(whole)
    assert predict(image, tmp_path / "out", "--z", "all", "--stitch", 0.25, "--overwrite") == 0
    assert tifffile.imread(tmp_path / "out" / "a_masks.tif").shape == (3, 80, 90)


def test_shards(stack: Path, tmp_path: Path) -> None:
    for part in ("1/2", "2/2"):
        assert predict(stack / "a.ome.tif", tmp_path / "out", "--z", "all", "--stitch", 0.25, "--shard", part) == 0
    same = stack / "a"
    for name in ("a_masks.tif", "a_objects.csv", "stacks.csv", "measurements.csv", "a_stack.png"):
        assert (tmp_path / "out" / name).read_bytes() == (same / name).read_bytes()


class Interrupted:
    """The classical method, interrupted at a plane."""

    class_names = ("nucleus",)

    def __init__(self, at: int | None = None) -> None:
        self.left, self.model = at, cw.load_model("classical")

    def predict(self, images):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return self.model.predict(images)


def test_an_interrupted_stack_goes_on_in_python(stack: Path, tmp_path: Path) -> None:
    images, how = stack / "a.ome.tif", {"reading": cw.Reading(z="all"), "stitch": 0.25, "save": ["masks"]}
    with pytest.raises(KeyboardInterrupt):
        cw.predict_folder(images, model=Interrupted(4), out=tmp_path / "a", **how)
    assert not (tmp_path / "a" / "a_masks.tif").exists()
    dataset = cw.predict_folder(images, model=Interrupted(), out=tmp_path / "a", **how)
    assert [(sample.id, sample.z, sample.t) for sample in dataset][:2] == [("a_z0", 0, None), ("a_z1", 1, None)]
    cw.predict_folder(images, model=Interrupted(), out=tmp_path / "b", **how)
    for name in ("a_masks.tif", "a_objects.csv", "predictions.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    labels = cw.join_planes([sample.read_instances() for sample in dataset], stitch=0.25)
    np.testing.assert_array_equal(labels, tifffile.imread(tmp_path / "b" / "a_masks.tif"))


def test_two_images_with_the_same_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = ellipsoids(1, (3, 80, 90), 4)[0]
    write_ome(tmp_path / "in" / "a.ome.tif", volume, "ZYX")
    tifffile.imwrite(tmp_path / "in" / "a_z1.tif", volume[1])
    assert predict(tmp_path / "in", tmp_path / "out", "--z", "all") == 2
    assert "two images would write to the same output files" in capsys.readouterr().err


# --- other commands -------------------------------------------------------------------------------------------------


def test_other_commands_read_the_plane_of_each_image(stack: Path, tmp_path: Path, capsys) -> None:
    """Measured again from the file, the intensities are those of the planes."""
    out = stack / "a"
    assert run("measure", out, "--out", tmp_path / "again.csv") == 0
    before = [{k: v for k, v in row.items() if k not in ("object", "t", "z")} for row in rows(out / "measurements.csv")]
    assert rows(tmp_path / "again.csv") == before
    assert run("measure", out, "--z", 3, "--out", tmp_path / "other.csv") == 2
    assert "each of these images is one plane of a stack" in capsys.readouterr().err
    assert run("data", "convert", out, "--out", tmp_path / "data") == 0
    dataset = cw.read_dataset(tmp_path / "data")
    assert [sample.z for sample in dataset] == list(range(7))
    assert run("data", "check", tmp_path / "data", "--out", tmp_path / "check.csv") == 0
    assert run("evaluate", out, "--data", tmp_path / "data", "--out", tmp_path / "eval") == 0
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["values"]["n_images"] == 7
    assert run("export", out, "--to", "cellpose", "--out", tmp_path / "seg") == 2
    assert "one plane of a stack cannot be copied" in " ".join(capsys.readouterr().err.split())
    assert run("evaluate", out, "--data", out, "--z", "all", "--out", tmp_path / "no") == 2


def test_the_page_takes_files_of_one_image(stack: Path, tmp_path: Path) -> None:
    from cellwright.serve.project import Project

    project = Project(tmp_path / "project", roots=[stack])
    try:
        with pytest.raises(cw.InputError, match=r"files of one image(.|\n)*7 planes of stacks, such as a_z0"):
            project.add(stack / "a")
    finally:
        project.close()


def test_the_example_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    section = guide[guide.index("### Stacks and time series") :]
    code = section[section.index("```python") + len("```python") : section.index("```\n\n###")]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "guide.md", "exec"), {})
    expected = [line.partition("  # ")[2] for line in code.splitlines() if line.startswith("print")]
    assert capsys.readouterr().out.splitlines() == expected
    assert len(expected) == 2


def test_labels_as_ome_zarr(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr = pytest.importorskip("zarr")
    words = ["--z", "all", "--stitch", 0.25, "--save", "masks", "--labels", "zarr"]
    assert predict(stack / "a.ome.tif", tmp_path / "out", *words) == 0
    written = tmp_path / "out" / "a_masks.zarr"
    assert not (tmp_path / "out" / "a_masks.tif").exists()
    labels = tifffile.imread(stack / "a" / "a_masks.tif")
    np.testing.assert_array_equal(zarr.open(str(written), mode="r")["0"][:], labels)
    for z in (0, 6):
        image = cw.open_image(written, z=z)
        assert image.pixel_size_um == (0.5, 0.5)
        np.testing.assert_array_equal(cw.read_image(written, z=z).data[:, :, 0], labels[z])
    assert cw.Reading(z="all").stack(written).z_step_um == 2.0
    capsys.readouterr()
    assert predict(stack / "a.ome.tif", tmp_path / "out", *words) == 0
    assert "already complete" in capsys.readouterr().err
    assert predict(stack / "a.ome.tif", tmp_path / "out", *words[:-2]) == 2
    assert "--labels" in capsys.readouterr().err
    assert predict(stack / "a.ome.tif", tmp_path / "out", *words[:-2], "--overwrite") == 0
    assert not written.exists()
    assert (tmp_path / "out" / "a_masks.tif").is_file()


def test_a_pyramid_of_labels(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    from cellwright.prediction.stack_labels import LabelStack, write_zarr

    labels = np.random.default_rng(0).integers(0, 9, (2, 3, 1100, 700)).astype(np.uint32)
    form = LabelStack("TZ", (2, 3), (1100, 700), (None, None, None))
    planes = (((t, z), labels[t, z]) for t in range(2) for z in range(3))
    write_zarr(tmp_path / "a.zarr", form, planes)
    group = zarr.open(str(tmp_path / "a.zarr"), mode="r")
    assert [group[str(level)].shape for level in range(3)] == [(2, 3, 1100, 700), (2, 3, 550, 350), (2, 3, 275, 175)]
    for level in range(3):
        np.testing.assert_array_equal(group[str(level)][:], labels[..., :: 2**level, :: 2**level])
    assert cw.Reading(z="all", t="all").stack(tmp_path / "a.zarr").t == (0, 1)
    np.testing.assert_array_equal(
        cw.read_image(tmp_path / "a.zarr", z=2, t=1, level=1).data[:, :, 0], labels[1, 2, ::2, ::2]
    )
