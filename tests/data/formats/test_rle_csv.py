"""Kaggle's run-length tables: runs counted by hand, the pixel order, and errors that name the cell."""

from __future__ import annotations

import csv
import logging

import imagecodecs
import numpy as np
import pytest

from cellwright.core.errors import CellwrightError, FormatError, InputError, OutputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import ReadOptions, WriteOptions, rle_runs
from cellwright.data.formats.rle_csv import RleCsv, RleCsvSubmission
from cellwright.data.formats.rle_runs import Order, RunText, decode
from cellwright.testing.objects import draw_objects, save_dataset

WITHOUT_IMAGES = ReadOptions(require_images=False)


def table(path, *lines, encoding="utf-8"):
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def save_image(path, image_hw=(30, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(np.zeros(image_hw, np.uint8)))


def test_runs_counted_by_hand():
    by_rows = rle_runs.decode([RunText("2 2 7 1", "")], (3, 4), "row").to_dense()[0]
    assert by_rows.astype(int).tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    by_columns = rle_runs.decode([RunText("2 2 7 1", "")], (3, 4), "column").to_dense()[0]
    assert by_columns.astype(int).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_a_run_continues_in_the_next_row():
    masks = rle_runs.decode([RunText("3 4", "")], (3, 4), "row")
    assert masks.to_dense()[0].astype(int).tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert rle_runs.encode(masks, "row") == ["3 4"]


def test_runs_down_columns_correspond_to_coco_counts():
    masks = draw_objects(3, overlaps=True, scored=False, n=20).masks
    for text, counts in zip(rle_runs.encode(masks, "column"), masks.to_rle_counts(), strict=True):
        ends = np.cumsum(counts)
        starts, lengths = ends[0::2][: len(counts) // 2] + 1, np.array(counts[1::2])
        assert text == " ".join(str(n) for pair in zip(starts, lengths, strict=True) for n in pair)


def test_sartorius_training_table_as_published(tmp_path):
    save_image(tmp_path / "train" / "0030fd0e6378.png", (3, 4))
    header = "id,annotation,width,height,cell_type,plate_time,sample_date,sample_id,elapsed_timedelta"
    rest = "11h30m00s,2019-06-16,shsy5y[diff]_E10-4_Vessel-714_Ph_3,0 days 11:30:00"
    file = table(
        tmp_path / "train.csv",
        header,
        f"0030fd0e6378,2 2 7 1,4,3,shsy5y,{rest}",
        f"0030fd0e6378,9 1,4,3,astro,{rest}",
        encoding="utf-8-sig",
    )
    table(tmp_path / "sample_submission.csv", "id,predicted", "7ae19de7bc2a,")
    for path in (file, tmp_path):
        dataset = RleCsv().read(path, ReadOptions())
        assert dataset.class_names == ("astro", "shsy5y")
        assert dataset[0].image_path == tmp_path / "train" / "0030fd0e6378.png"
        cells = dataset[0].read_instances()
        assert cells.masks.boxes.tolist() == [[1, 0, 3, 2], [0, 2, 1, 3]]
        assert cells.class_ids.tolist() == [1, 0]
    only = RleCsv().read(file, ReadOptions(class_names=("shsy5y",)))
    assert len(only[0].read_instances()) == 1
    with pytest.raises(UsageError, match="shsy5y"):
        RleCsv().read(file, ReadOptions(class_names=("shsy5",)))


def test_dsb2018_images_are_found_in_their_folders(tmp_path):
    save_image(tmp_path / "stage1_train" / "abc" / "images" / "abc.png", (3, 4))
    file = table(tmp_path / "stage1_train_labels.csv", "ImageId,EncodedPixels", "abc,2 2 7 1")
    dataset = RleCsv().read(file, ReadOptions())
    assert dataset[0].image_hw == (3, 4)
    assert dataset[0].read_instances().masks.boxes.tolist() == [[0, 0, 3, 3]]


def test_sizes_from_the_dsb2018_solution_table(tmp_path):
    file = table(tmp_path / "solution.csv", "ImageId,EncodedPixels,Height,Width,Usage", "abc,2 2 7 1,3,4,Private")
    assert RleCsv().read(file, WITHOUT_IMAGES)[0].image_hw == (3, 4)


def objects_table(path, header, order, image_hw=(30, 50)):
    cells = draw_objects(1, image_hw=image_hw, overlaps=False, scored=False)
    height, width = image_hw
    lines = [f"a,{text},{width},{height}" for text in rle_runs.encode(cells.masks, order)]
    return table(path, f"{header},width,height", *lines), cells


@pytest.mark.parametrize(
    ("header", "actual", "requested", "remedy"),
    [
        ("id,annotation", "column", None, '`rle_order="column"`'),
        ("ImageId,EncodedPixels", "row", None, '`rle_order="row"`'),
        ("id,rle", "row", "column", '`rle_order="row"`'),
        ("id,annotation", "row", "column", '`rle_order="row"`'),
    ],
)
def test_a_wrong_order_is_noticed(header, actual, requested, remedy, tmp_path):
    file, _ = objects_table(tmp_path / "t.csv", header, actual)
    with pytest.raises(FormatError, match="fall apart") as caught:
        RleCsv().read(file, ReadOptions(require_images=False, rle_order=requested))
    assert remedy in str(caught.value)
    assert "connected parts" in str(caught.value)


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("header", ["id,annotation", "ImageId,EncodedPixels", "id,rle"])
def test_the_order_can_be_requested_or_detected(header, order, tmp_path):
    file, cells = objects_table(tmp_path / "t.csv", header, order)
    requested = RleCsv().read(file, ReadOptions(require_images=False, rle_order=order))
    assert requested[0].read_instances().masks == cells.masks
    if header == "id,rle":
        assert RleCsv().read(file, WITHOUT_IMAGES)[0].read_instances().masks == cells.masks


def test_the_order_cannot_be_detected_in_square_images(tmp_path):
    file, cells = objects_table(tmp_path / "t.csv", "id,rle", "column", image_hw=(40, 40))
    with pytest.raises(UsageError, match="`rle_order="):
        RleCsv().read(file, WITHOUT_IMAGES)
    requested = RleCsv().read(file, ReadOptions(require_images=False, rle_order="column"))
    assert requested[0].read_instances().masks == cells.masks


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a,1 2 3,50,30,x", ["line 3", "annotation", "3 numbers"]),
        ("a,1 x,50,30,x", ["line 3", "'x'"]),
        ("a,0 2 1499 2,50,30,x", ["line 3", "start 1499, length 2", "0 to 1499"]),
        ("a,1499 3,50,30,x", ["line 3", "start 1499, length 3", "1500"]),
        ("a,1 99999999999999999999,50,30,x", ["line 3"]),
        ("a,5 0,50,30,x", ["length 0"]),
        ("a,-5 1,50,30,x", ["line 3", "start -5"]),
        ("a,1 2,50,30", ["line 3", "4 cells", "5"]),
        ("a,1 2,,30,x", ["line 3", "width", "''"]),
        ("a,1 2,50.5,30,x", ["line 3", "width", "50.5"]),
        ("a,1 2,51,30,x", ["line 3", "two sizes"]),
        (",1 2,50,30,x", ["line 3", "column id", "empty"]),
        ('a,"1 2,50,30,x', ["line 3"]),
    ],
)
def test_errors_name_the_malformed_cell(row, words, tmp_path):
    file = table(tmp_path / "t.csv", "id,annotation,width,height,cell_type", "a,1 2,50,30,x", row)
    with pytest.raises(FormatError) as caught:
        RleCsv().read(file, WITHOUT_IMAGES)[0].read_instances()
    for word in [*words, "t.csv"]:
        assert word in str(caught.value)


def test_sizes_are_required(tmp_path):
    file = table(tmp_path / "submission.csv", "id,predicted", "a,1 2")
    with pytest.raises(InputError, match="size of the annotated image is unknown"):
        RleCsv().read(file, WITHOUT_IMAGES)
    truth = save_dataset(tmp_path / "in", {"a": draw_objects(1, overlaps=False, scored=False)})
    assert RleCsv().read(file, ReadOptions(images=truth))[0].image_hw == (41, 58)


def test_a_table_that_contradicts_its_image(tmp_path):
    save_image(tmp_path / "a.png", (30, 51))
    file = table(tmp_path / "t.csv", "id,annotation,width,height", "a,1 2,50,30")
    with pytest.raises(InputError, match="differ in size"):
        RleCsv().read(file, ReadOptions())


def test_a_submission_of_overlapping_ground_truth_raises_an_error(tmp_path):
    cells = draw_objects(2, overlaps=True, scored=False, n=25)
    dataset = save_dataset(tmp_path / "in", {"a": cells})
    with pytest.raises(OutputError, match="must not overlap"):
        RleCsvSubmission().write(dataset, tmp_path / "s.csv", WriteOptions())


def test_predictions_in_a_submission_do_not_overlap(tmp_path, caplog):
    cells = draw_objects(2, overlaps=True, scored=True, n=25)
    dataset = save_dataset(tmp_path / "in", {"a": cells, "b": Instances.empty((41, 58), scored=True)})
    with caplog.at_level(logging.WARNING):
        RleCsvSubmission().write(dataset, tmp_path / "s.csv", WriteOptions())
    assert "pairs of predictions overlap" in caplog.text
    rows = list(csv.reader((tmp_path / "s.csv").read_text().splitlines()))
    assert rows[0] == ["id", "predicted"]
    assert rows[-1] == ["b", ""]
    covered = np.zeros(41 * 58, int)
    for name, text in rows[1:]:
        runs = list(map(int, text.split()))
        for start, length in zip(runs[::2], runs[1::2], strict=True):
            covered[start - 1 : start - 1 + length] += 1
        assert name in "ab"
    assert covered.max() == 1
    assert (covered.reshape(41, 58) > 0).tolist() == cells.masks.foreground().tolist()


def test_large_cells_are_read(tmp_path):
    runs = " ".join(f"{1000 * y + x} 1" for y in range(400) for x in range(1, 1000, 20 if y % 40 else 1))
    assert len(runs) > 131_072
    file = table(tmp_path / "t.csv", "id,annotation,width,height", f"a,{runs},1000,400")
    masks = RleCsv().read(file, WITHOUT_IMAGES)[0].read_instances().masks
    assert masks.areas.tolist() == [len(runs.split()) // 2]
    assert csv.field_size_limit() == 131_072


def test_folders_without_a_table_and_tables_that_are_not_text(tmp_path):
    table(tmp_path / "other.csv", "name,value", "a,1")
    with pytest.raises(InputError, match="no run-length table here"):
        RleCsv().read(tmp_path, ReadOptions())
    (tmp_path / "t.csv").write_bytes(b"id,annotation\n\xff\xfe,1 2\n")
    with pytest.raises(CellwrightError, match="UTF-8"):
        RleCsv().read(tmp_path / "t.csv", WITHOUT_IMAGES)


def test_empty_text_is_an_empty_mask():
    assert rle_runs.decode([RunText("", "")], (3, 4), "row") == MaskSet.from_dense(np.zeros((1, 3, 4), bool))


@pytest.mark.parametrize("order", ["row", "column"])
def test_a_few_numbers_do_not_ask_for_gigabytes(order: Order) -> None:
    runs = [RunText("1 1 100000000 1", "t.csv, line 2")] * 200
    with pytest.raises(FormatError, match=r"too many times\n  where: the image of t.csv, line 2"):
        decode(runs, (10_000, 10_000), order)


def test_runs_may_overlap_and_come_in_any_order() -> None:
    masks = decode([RunText("9 3 2 4 4 2 1 1", "")], (3, 5), "row")
    assert masks.to_dense()[0].astype(int).ravel().tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
