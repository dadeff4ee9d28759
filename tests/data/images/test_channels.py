"""Which channels a network sees: what the user chose, what leaves no doubt, or a question."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.data.images.channels import (
    ASSUMED_BLUE,
    ASSUMED_NUCLEI,
    SEPARATE_STAINS,
    choose_channels,
    has_separate_stains,
    means_nuclei,
    select_channels,
)


def image_of(*names: str) -> Image:
    """An image whose channel k has the value k."""
    data = np.broadcast_to(np.arange(len(names), dtype=np.uint8), (4, 5, len(names)))
    return Image(data, names, (0.5, 0.5), "a.tif")


@pytest.mark.parametrize("names", [("grey",), ("DAPI",), ("R", "G", "B"), ("R", "G", "B", "A"), ("grey", "A")])
@pytest.mark.parametrize("n_network", [1, 3])
def test_grey_and_rgb_leave_no_doubt(names: tuple[str, ...], n_network: int) -> None:
    image = image_of(*names)
    assert choose_channels(image, None, n_network) is image


def test_the_only_nuclear_channel_is_assumed_with_a_note() -> None:
    chosen = choose_channels(image_of("GFP", "405-DAPI", "A"), None, 3)
    assert chosen.channels == ("405-DAPI",)
    assert (chosen.data == 1).all()
    assert chosen.pixel_size_um == (0.5, 0.5)
    (note,) = chosen.notes
    assert note.kind == ASSUMED_NUCLEI
    assert "405-DAPI of GFP, 405-DAPI" in note.text
    assert "`channel`" in note.text
    assert note.where == "a.tif"


@pytest.mark.parametrize("names", [("GFP", "RFP"), ("DAPI", "Hoechst", "GFP"), ("0", "1", "2"), ("c0", "c1")])
def test_doubt_is_an_error_that_lists_the_channels(names: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        choose_channels(image_of(*names), None, 3)
    message = str(caught.value)
    assert all(f"{k}: {name}" in message for k, name in enumerate(names))
    assert '`channel="' in message
    assert "a.tif" in message


def test_a_network_of_other_channels_takes_as_many() -> None:
    image = image_of("GFP", "DAPI")
    assert choose_channels(image, None, 2).channels == ("GFP", "DAPI")
    assert choose_channels(image, None, None) is image


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("actin", (1,)),
        ("ACTIN", (1,)),
        ("dapi", (2,)),
        (0, (0,)),
        ("0", (0,)),
        ("Hoechst|DAPI", (2,)),
        ("hoechst | dapi", (2,)),
        (["DAPI", 0], (2, 0)),
        ("a|b", (3,)),
    ],
)
def test_channels_are_selected(wanted: object, expected: tuple[int, ...]) -> None:
    image = image_of("tubulin", "actin", "DAPI", "a|b")
    chosen = choose_channels(image, wanted, 3)  # type: ignore[arg-type]
    assert tuple(chosen.data[0, 0].tolist()) == expected
    assert chosen.channels == tuple(image.channels[k] for k in expected)


def test_case_decides_where_names_differ_only_by_it() -> None:
    image = image_of("Dapi", "DAPI")
    assert select_channels(image, "DAPI").data[0, 0, 0] == 1
    with pytest.raises(UsageError, match="no such channel"):
        select_channels(image, "dapi")


@pytest.mark.parametrize("wanted", ["GFP", 3, -1, "GFP|RFP", ["DAPI", "GFP"], []])
def test_a_channel_that_does_not_exist(wanted: object) -> None:
    with pytest.raises(UsageError, match=r"where: a\.tif"):
        select_channels(image_of("tubulin", "actin", "DAPI"), wanted)  # type: ignore[arg-type]


def test_names_that_mean_nuclei() -> None:
    nuclear = (
        "DAPI",
        "dapi_corr",
        "Hoechst 33342",
        "DRAQ5",
        "Draq 7",
        "nuclei",
        "Nucleus",
        "H2B-mCherry",
        "DNA1",
        "nuc",
    )
    other = ("GFP", "actin", "cytoplasm", "nucleolin", "R", "Cy5", "brightfield", "EDNA", "c0")
    assert [name for name in (*nuclear, *other) if means_nuclei(name)] == list(nuclear)


def test_channels_of_the_training_are_found_by_name() -> None:
    image = image_of("GFP", "dapi", "Cy5")
    one = choose_channels(image, None, 3, trained=["DAPI|Hoechst"])
    assert one.channels == ("dapi",)
    assert "as in the model's training" in one.notes[0].text
    assert choose_channels(image, None, 2, trained=["Cy5", "GFP"]).channels == ("Cy5", "GFP")
    assert choose_channels(image, "GFP", 3, trained=["dapi"]).channels == ("GFP",), "a choice comes first"
    same = choose_channels(image_of("DAPI", "GFP"), None, 2, trained=["DAPI", "GFP"])
    assert same.notes == ()


def test_channels_of_other_names_are_taken_in_order_with_a_note() -> None:
    chosen = choose_channels(image_of("GFP", "Cy5"), None, 2, trained=["DAPI", "actin"])
    assert chosen.channels == ("GFP", "Cy5")
    assert "GFP, Cy5 were taken for DAPI, actin" in chosen.notes[0].text
    numbers = choose_channels(image_of("GFP", "Cy5", "DAPI"), None, 3, trained=["0", "1"])
    assert numbers.channels == ("DAPI",), "numbers are no names"
    with pytest.raises(InputError, match="none was chosen"):
        choose_channels(image_of("GFP", "Cy5", "RFP"), None, 3, trained=["R", "G", "B"])
    assert choose_channels(image_of("GFP", "Cy5", "RFP"), None, 3, trained=["a", "b", "c"]).n_channels == 3


def test_the_only_channel_without_a_name_goes_by_any_name() -> None:
    chosen = select_channels(image_of("grey"), "DAPI")
    assert chosen.channels == ("grey",)
    assert "taken for DAPI" in chosen.notes[0].text
    assert select_channels(image_of("grey"), 0).notes == ()
    with pytest.raises(UsageError, match="no such channel"):
        select_channels(image_of("GFP"), "DAPI")
    with pytest.raises(UsageError, match="no such channel"):
        select_channels(image_of("grey"), 1)


def stained(red: np.ndarray, green: np.ndarray, blue: np.ndarray, background: int = 0) -> Image:
    """An RGB image of three stains."""
    return Image.from_array((np.stack([red, green, blue], axis=2) + background).clip(0, 255).astype(np.uint8))


def test_separate_stains() -> None:
    y, x = np.mgrid[:90, :120]
    first, second = 90 + 80 * np.sin(x / 7), 180.0 * ((x % 30 - 15) ** 2 + (y % 30 - 15) ** 2 < 60)
    black = np.zeros((90, 120))
    fluorescence = [stained(black, first, second), stained(first, black, second), stained(second, first, second * 0.2)]
    others = [
        stained(second, second, second),  # grey
        stained(second, black, second),  # one stain in magenta
        stained(black, second, black),  # one stain in green
        stained(-0.2 * second, -0.8 * second, -0.4 * second, 230),  # bright field
        stained(black, black, black),
    ]
    assert [has_separate_stains(image) for image in fluorescence] == [True] * 3
    assert [has_separate_stains(image) for image in others] == [False] * 5
    nuclear = choose_channels(fluorescence[0], None, 3, trained=["DAPI"])
    assert (nuclear.channels, nuclear.notes[0].kind) == (("B",), ASSUMED_BLUE)
    for trained in ((), ["grey"]):
        as_is = choose_channels(fluorescence[0], None, 3, trained=trained)
        assert (as_is.channels, as_is.notes[0].kind) == (("R", "G", "B"), SEPARATE_STAINS)
    assert choose_channels(fluorescence[0], None, 3, trained=["R", "G", "B"]).notes == ()
    assert choose_channels(fluorescence[0], None, 1, trained=["B"]).channels == ("B",)
    without_blue = choose_channels(stained(first, second, black), None, 3, trained=["DAPI"])
    assert without_blue.notes[0].kind == SEPARATE_STAINS
