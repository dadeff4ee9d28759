"""Aperio XML: MoNuSeg's outlines give VRDL's masks to the pixel, drawn regions, and malformed files."""

from __future__ import annotations

import zipfile

import imagecodecs
import numpy as np
import pytest

from cellwright.core.errors import FormatError, InputError
from cellwright.data.formats import FORMATS, ReadOptions, sniff
from cellwright.data.formats.xml_outlines import XmlOutlines

SQUARE = [(1, 1), (4, 1), (4, 4), (1, 4)]


def region(vertices, number=1, **attributes):
    points = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in vertices)
    extra = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f'<Region Id="{number}"{extra}><Vertices>{points}</Vertices></Region>'


def layer(*regions, name="", attributes=""):
    return f'<Annotation Id="1" Name="{name}">{attributes}<Regions>{"".join(regions)}</Regions></Annotation>'


def write(folder, *layers, microns='MicronsPerPixel="0.25"', head=""):
    (folder / "x.xml").write_text(f"{head}<Annotations {microns}>{''.join(layers)}</Annotations>", encoding="utf-8")
    (folder / "x.png").write_bytes(imagecodecs.png_encode(np.zeros((20, 30), np.uint8)))
    return folder / "x.xml"


def read(path):
    return XmlOutlines().read(path, ReadOptions())


@pytest.mark.parametrize("stem", ["TCGA-B0-5698-01Z-00-DX1", "TCGA-CH-5767-01Z-00-DX1"])
def test_monuseg_masks_agree_with_vrdl(stem, samples_root, vrdl_root, tmp_path):
    with zipfile.ZipFile(samples_root / "monuseg_xml.zip") as archive:
        archive.extractall(tmp_path)
    xml = tmp_path / "monuseg_xml" / f"{stem}.xml"
    (xml.parent / f"{stem}.png").symlink_to(vrdl_root / "train" / stem / "images" / f"{stem}.png")
    sample = read(xml)[0]
    assert sample.pixel_size_um is not None
    assert sample.pixel_size_um[0] == pytest.approx(0.252, abs=0.003)
    ours = sample.read_instances()
    truth = FORMATS["mask_folder"].read(vrdl_root / "train", ReadOptions()).sample(stem).read_instances()
    i, _, iou = truth.masks.iou(ours.masks)
    best = np.zeros(len(truth))
    np.maximum.at(best, i, iou)
    assert np.median(best) >= 0.99
    assert len(ours) == len(truth)
    # VRDL assigns pixels of overlapping outlines to the first one; resolved in this way, all masks are equal.
    flat = ours.masks.to_label_map()
    theirs = [flat[y0:y1, x0:x1][truth.masks.crop(k) > 0] for k, (x0, y0, x1, y1) in enumerate(truth.masks.boxes)]
    same = [np.unique(labels).size == 1 and (flat == labels[0]).sum() == labels.size for labels in theirs]
    assert all(same)


def test_layers_are_classes_and_ids_are_kept(tmp_path):
    monusac = '<Attributes><Attribute Name="Epithelial" Id="0" Value=""/></Attributes>'
    monuseg = '<Attributes><Attribute Name="Description" Id="0" Value=""/></Attributes>'
    moved = [(x + 10, y) for x, y in SQUARE]
    path = write(
        tmp_path,
        layer(region(SQUARE, 7), attributes=monusac),
        layer(region(moved, 3), name="Größe"),
        layer(region([(x, y + 9) for x, y in SQUARE], 4), attributes=monuseg),
    )
    assert sniff(tmp_path).name == "xml_outlines"
    dataset = read(path)
    assert dataset.class_names == ("Epithelial", "Größe", "cell")
    assert dataset[0].pixel_size_um == (0.25, 0.25)
    cells = dataset[0].read_instances()
    assert cells.ids.tolist() == [7, 3, 4]
    assert cells.class_ids.tolist() == [0, 1, 2]
    kept = XmlOutlines().read(path, ReadOptions(class_names=("Größe",)))[0].read_instances()
    assert kept.ids.tolist() == [3]


def test_duplicate_ids_are_replaced_by_1_to_n(tmp_path):
    path = write(tmp_path, layer(region(SQUARE, 1)), layer(region([(x + 9, y) for x, y in SQUARE], 1)))
    assert read(path)[0].read_instances().ids.tolist() == [1, 2]


def test_a_negative_region_is_cut_out(tmp_path):
    outer = [(1, 1), (11, 1), (11, 11), (1, 11)]
    inner = [(4, 4), (7, 4), (7, 7), (4, 7)]
    path = write(tmp_path, layer(region(outer, 1), region(inner, 2, NegativeROA=1)))
    cells = read(path)[0].read_instances()
    assert cells.masks.areas.tolist() == [100 - 9]
    alone = write(tmp_path, layer(region(inner, 2, NegativeROA=1)))
    with pytest.raises(FormatError, match="negative region is not inside another region"):
        read(alone)


def test_ellipses_and_rectangles(tmp_path):
    path = write(tmp_path, layer(region([(2, 2), (14, 10)], 1, Type=2), region([(16, 2), (20, 5)], 2, Type=1)))
    areas = read(path)[0].read_instances().masks.areas
    assert areas[0] == pytest.approx(np.pi * 6 * 4, rel=0.05)
    assert areas[1] == 12


def test_regions_without_pixels_are_dropped_with_a_warning(tmp_path, caplog):
    path = write(tmp_path, layer(region(SQUARE, 1), region([(8, 8), (8, 8.1), (8.1, 8)], 9), region([(1, 1)], 5)))
    assert read(path)[0].read_instances().ids.tolist() == [1]
    assert "2 objects without a pixel" in caplog.text
    assert "9" in caplog.text


def test_rulers_among_outlines_are_not_read(tmp_path):
    dataset = read(write(tmp_path, layer(region(SQUARE, 3), region([(1, 1), (9, 9)], 4, Type=4))))
    assert dataset[0].read_instances().ids.tolist() == [3]
    (note,) = dataset.notes
    assert (note.where, note.text.startswith("1 of 2 regions not read, because arrows and rulers")) == ("x.xml", True)


ENTITIES = '<!DOCTYPE a [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ENTITIES + "<Annotations>&b;</Annotations>", ["line 1", "never expands"]),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><Annotations/>', ["never expands"]),
        ("<Annotations>\n<Annotation>\n</Annotations>", ["line 3", "not valid XML"]),
        ("<Annotations><Annotation>", ["not valid XML"]),
        ("", ["not valid XML"]),
        ("<kml/>", ["not an Aperio XML", "<kml>"]),
        ("<Annotations><Region/></Annotations>", ["outside any <Annotation>"]),
        ('<?xml version="1.0" encoding="x-unknown"?><Annotations/>', ["x.xml"]),
        (f"<Annotations>{layer(region([(1, 'a')]))}</Annotations>", ["line 1", "attribute Y", "'a'"]),
        (f"<Annotations>{layer(region([('nan', 1)]))}</Annotations>", ["attribute X"]),
        (f"<Annotations>{layer(region(SQUARE, Type=4))}</Annotations>", ["arrow or a ruler", "'4'"]),
        ('<Annotations MicronsPerPixel="x"/>', ["MicronsPerPixel"]),
    ],
)
def test_malformed_files_raise_an_error(text, words, tmp_path):
    path = write(tmp_path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError) as caught:
        read(path)
    for word in [*words, "x.xml"]:
        assert word in str(caught.value)


def test_outlines_of_another_magnification_raise_an_error(tmp_path):
    path = write(tmp_path, layer(region([(x * 100, y * 100) for x, y in SQUARE])))
    with pytest.raises(FormatError, match="far outside its image") as caught:
        read(path)[0].read_instances()
    assert "line 1" in str(caught.value)


def test_the_image_is_found_in_the_folders_of_monuseg(tmp_path):
    (tmp_path / "Annotations").mkdir()
    path = write(tmp_path / "Annotations", layer(region(SQUARE)))
    (tmp_path / "Tissue Images").mkdir()
    (path.parent / "x.png").rename(tmp_path / "Tissue Images" / "x.png")
    assert read(path)[0].image_path == tmp_path / "Tissue Images" / "x.png"
    (tmp_path / "Tissue Images" / "x.png").unlink()
    with pytest.raises(InputError, match="size of the annotated image is unknown"):
        read(path)


def test_numbers_that_repeat_are_named(tmp_path):
    again = [(x + 8, y) for x, y in SQUARE]
    path = write(tmp_path, layer(region(SQUARE, 1), region(again, 2)))
    assert not read(path).notes
    path = write(tmp_path, layer(region(SQUARE, 4), name="a"), layer(region(again, 4), name="b"))
    dataset = read(path)
    assert "id 4 occurs 2 times: the objects are numbered 1, 2, 3, ... instead" in [n.text for n in dataset.notes]
    assert dataset[0].read_instances().ids.tolist() == [1, 2]
