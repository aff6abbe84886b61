"""Pictures: the right side, the right proportions, the right names. What is drawn is looked at by people."""

import builtins

import numpy as np
import pytest

from MAPSegLib.config import Label
from MAPSegLib.errors import InputError
from MAPSegLib.pictures import (
    Curve,
    Panel,
    Reconstruction,
    _legend_columns,
    curves,
    overlay,
    reconstructions,
)
from MAPSegLib.volumes import Volume

image_module = pytest.importorskip("matplotlib.image", reason="needs the extra 'demo'")

TABLE = (
    Label(value=10, name="left thalamus", color=(255, 0, 0), mirror=49),
    Label(value=49, name="right thalamus", color=(0, 0, 255), mirror=10),
)


@pytest.fixture
def head() -> Panel:
    """60 x 60 x 20 voxels of 1 x 1 x 3 mm in LAS order, with a red block on the left and a blue one on the right."""
    array = np.full((60, 60, 20), 0.3, np.float32)
    array[:2] = array[-2:] = array[:, :2] = array[:, -2:] = 0
    labels = np.zeros(array.shape, np.uint8)
    labels[35:50, 20:40, 5:15] = 10  # high first index in LAS order: towards the left
    labels[10:25, 20:40, 5:15] = 49
    affine = np.diag([-1.0, 1.0, 3.0, 1.0])
    return Panel("T1", Volume(array, affine), labels)


def where(picture: np.ndarray, channel: int) -> np.ndarray:
    """Columns of a picture's left third (its axial plane) with the pure colour of an outline."""
    others = [c for c in range(3) if c != channel]
    pure = (picture[..., channel] > 0.9) & (picture[..., others].max(-1) < 0.1)
    return np.flatnonzero(pure[: picture.shape[0] * 2 // 3, : picture.shape[1] // 3].any(0))


def test_the_patients_right_is_drawn_on_the_left(head, tmp_path):
    picture = image_module.imread(overlay([head], TABLE, tmp_path / "one.png"))
    red, blue = where(picture, 0), where(picture, 2)
    assert blue.size and red.size
    assert blue.max() < red.min()


def test_orientation_of_the_file_does_not_show(head, tmp_path):
    turned = Panel(
        "T1",
        Volume(head.image.array[::-1].transpose(2, 0, 1), _turned(head.image.affine, 60)),
        head.labels[::-1].transpose(2, 0, 1),
    )
    one = image_module.imread(overlay([head], TABLE, tmp_path / "a.png"))
    other = image_module.imread(overlay([turned], TABLE, tmp_path / "b.png"))
    assert np.array_equal(one, other)


def _turned(affine: np.ndarray, size: int) -> np.ndarray:
    """The affine after flipping the first axis and moving the last to the front."""
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, size - 1
    return (affine @ flip)[:, [2, 0, 1, 3]]


def test_thick_slices_keep_their_proportions(head, tmp_path):
    picture = image_module.imread(overlay([head], (), tmp_path / "one.png"))  # without a legend
    drawn = picture[..., :3].max(-1) > 0.4  # tissue, and not the note below, however the letters are smoothed
    heights = []
    for third in (slice(0, picture.shape[1] // 3), slice(picture.shape[1] // 3, 2 * picture.shape[1] // 3)):
        rows = np.flatnonzero(drawn[:, third].mean(1) > 0.5)
        heights.append(rows.max() - rows.min() + 1)
    axial, coronal = heights  # 56 mm of tissue from front to back, 20 slices of 3 mm from top to bottom
    assert coronal / axial == pytest.approx(60 / 56, rel=0.05)


def test_several_panels_stand_side_by_side(head, tmp_path):
    one = image_module.imread(overlay([head], TABLE, tmp_path / "one.png"))
    three = image_module.imread(overlay([head] * 3, TABLE, tmp_path / "three.png"))
    assert three.shape[0] > 1.5 * one.shape[0]


@pytest.mark.parametrize("labels", [np.zeros((60, 60, 20), np.uint8), np.full((60, 60, 20), 7, np.uint8)])
def test_nothing_that_the_table_knows_is_still_a_picture(head, labels, tmp_path):
    path = overlay([Panel("empty", head.image, labels)], TABLE, tmp_path / "none.png")
    assert where(image_module.imread(path), 0).size == 0


def test_labels_of_another_grid_are_refused(head, tmp_path):
    with pytest.raises(InputError, match="one grid"):
        overlay([Panel("", head.image, head.labels[:-1])], TABLE, tmp_path / "no.png")
    assert not list(tmp_path.iterdir())


def test_reconstructions_show_the_middle_planes_of_every_row(tmp_path):
    original, masked = np.full((20, 24, 16), 0.5), np.zeros((20, 24, 16))
    original[10], original[:, 12], original[:, :, 8] = 1, 1, 1
    rows = [Reconstruction(title, original, masked, 0.7 * original) for title in ("one", "two")]
    one = image_module.imread(reconstructions(rows[:1], tmp_path / "one.png"))[..., :3].mean(-1)
    two = image_module.imread(reconstructions(rows, tmp_path / "two.png"))[..., :3].mean(-1)
    assert two.shape[0] > 1.5 * one.shape[0]
    line = one[-60]  # through the row's images
    assert (line == 1).sum() > 100 and 0.1 < (abs(line - 0.7) < 0.01).mean() < 0.4
    bright = np.flatnonzero(line == 1)
    assert 1 + (np.diff(bright) > 100).sum() == 3  # the originals of three planes


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_curves_stand_on_their_page(theme, tmp_path):
    history = [
        {"step": 0, "eta": 0.5},
        {"step": 10, "eta": None, "loss": 1.0},
        {"step": 20, "eta": 0.7, "loss": 0.5},
    ]
    plots = [Curve("loss", "Loss"), Curve("eta", "Confidence", "share above 0.9"), Curve("absent", "Absent")]
    path = curves(history, plots, tmp_path / "c.png", best_step=20, theme=theme)
    corner = image_module.imread(path)[0, 0, :3].mean()
    assert corner > 0.99 if theme == "light" else corner < 0.15


def test_without_matplotlib_the_sentence_says_what_to_install(head, tmp_path, monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(InputError, match="matplotlib") as error:
        overlay([head], TABLE, tmp_path / "no.png")
    assert "demo" in error.value.advice


def test_a_legend_has_as_many_columns_as_fit():
    names = [f"structure {i}" for i in range(16)]  # 0.068 inches a letter, and 0.45 for each
    assert [_legend_columns(names, width) for width in (20, 7.6, 7.2, 2.5, 1)] == [6, 6, 5, 2, 1]
    assert [_legend_columns(few, 20) for few in (names[:2], names[:1], [])] == [2, 1, 1]
    assert _legend_columns([*names, "a structure of an uncommonly long name"], 7.6) == 4


def test_small_anatomy_is_drawn_large_enough_for_its_names(head, tmp_path):
    small = Panel(
        "crop", Volume(head.image.array, head.image.affine @ np.diag([0.2, 0.2, 0.2, 1])), head.labels
    )
    one, other = (image_module.imread(overlay([p], TABLE, tmp_path / "a.png")) for p in (head, small))
    assert abs(one.shape[1] - other.shape[1]) <= 2 and one.shape[1] > 7 * 150


@pytest.mark.parametrize("size", [(20, 20, 900), (4, 900, 4), (900, 900, 900)])
def test_no_anatomy_makes_a_picture_that_no_browser_shows(size, tmp_path):
    """Of that scale, a page of hundreds could not be opened; and the names have room beside a spine, too."""
    array = np.random.default_rng(0).random((20, 20, 20), np.float32)
    panel = Panel("", Volume(array, np.diag([*np.divide(size, 20), 1])), np.full(array.shape, 10, np.uint8))
    for panels in ([panel], [panel] * 2):
        shape = image_module.imread(overlay(panels, TABLE, tmp_path / "a.png")).shape
        assert max(shape) < 22 * 150 and shape[1] >= 7 * 150 - 1


def test_a_scan_with_a_few_bright_voxels_is_a_picture(head, tmp_path):
    array = np.zeros((20, 20, 20), np.float32)
    array[7, 8, 8], array[10, 11, 11] = 0.01, 0.03  # apart from those that grey levels are taken from
    panel = Panel("", Volume(array, np.eye(4)), np.zeros(array.shape, np.uint8))
    assert overlay([panel], TABLE, tmp_path / "a.png").is_file()


def names_drawn(monkeypatch, panel, table, path):
    """What the legend of a picture says, as it was drawn."""
    from matplotlib.legend import Legend

    found, draw = [], Legend.draw

    def watched(self, renderer):
        found.extend(text.get_text() for text in self.get_texts())
        return draw(self, renderer)

    monkeypatch.setattr(Legend, "draw", watched)
    overlay([panel], table, path)
    return found


def test_names_are_drawn_as_they_are(head, tmp_path, monkeypatch):
    """What matplotlib takes for mathematics, or for a name to leave out, too."""
    names = ["_hidden", r"$\frac{$"]
    table = [Label(value=value, name=name) for value, name in zip((10, 49), names, strict=True)]
    assert names_drawn(monkeypatch, head, table, tmp_path / "a.png") == names
    rows = [Reconstruction(r"$\frac{$, patch", *[head.image.array] * 3)]
    assert reconstructions(rows, tmp_path / "b.png").is_file()


def test_sides_of_two_colours_have_an_entry_each(head, tmp_path, monkeypatch):
    both = names_drawn(monkeypatch, head, TABLE, tmp_path / "a.png")
    assert both == ["left thalamus", "right thalamus"]
    table = [label.model_copy(update={"color": (0, 0, 255)}) for label in TABLE]
    assert names_drawn(monkeypatch, head, table, tmp_path / "b.png")[-1:] == ["thalamus"]
