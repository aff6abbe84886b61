"""Masked autoencoding: the loss, even drawing of domains, variation, exact resume, the network's size."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from model_cases import generator, ignore, same, tiny_architecture

from MAPSegLib.config import ARCHITECTURES, Preprocessing, PretrainingOptions
from MAPSegLib.domains import Domains, UnlabelledScans, vary
from MAPSegLib.errors import Cancelled, InputError
from MAPSegLib.losses import masked_error
from MAPSegLib.networks.autoencoder import Autoencoder
from MAPSegLib.preprocessing import prepare
from MAPSegLib.reports import CHECKPOINT
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.pretraining import pretrain, reconstruction_losses
from MAPSegLib.volumes import read_image

ONE = torch.ones(3)


def autoencoder(seed=0, **changes):
    torch.manual_seed(seed)
    return Autoencoder(tiny_architecture(**changes))


def options(**changes):
    sizes = dict(steps=6, scans=2, warmup=2, checkpoint_every=2, picture_every=0, mask_cube=4)
    return PretrainingOptions(**dict(device="cpu", precision="fp32", threads=1) | sizes | changes)


def bars(g):
    """A scan with stripes: what is hidden can be told from what is seen."""
    x = torch.arange(20).view(-1, 1, 1).expand(20, 22, 18)
    return 0.2 + 0.6 * ((x // 5) % 2) + 0.05 * torch.rand(20, 22, 18, generator=g)


def domains(*named):
    return Domains(named or (("bars", bars),), (1.0, 1.0, 1.0))


# --- the network and its loss -------------------------------------------------------------------------------------


def test_the_paper_preset_has_the_published_size():
    with torch.device("meta"):
        model = Autoencoder(ARCHITECTURES["paper"])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 163.9


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_presets_rebuild_both_views_on_their_own_grids(name):
    a = ARCHITECTURES[name]
    with torch.device("meta"):
        views = torch.empty(2, 1, *[a.patch] * 3), torch.empty(1, 1, *[a.global_size] * 3)
        rebuilt = Autoencoder(a)(*views)
    assert [r.shape for r in rebuilt] == [v.shape for v in views]


@pytest.mark.parametrize("width", [4, 16, 64, 160, 192])
def test_rebuilt_intensities_lie_between_0_and_1_at_any_width(width):
    model = Autoencoder(tiny_architecture(width=width))
    with torch.no_grad():
        rebuilt, _ = model(20 * torch.rand(1, 1, 8, 8, 8, generator=generator()), torch.zeros(1, 1, 8, 8, 8))
    assert rebuilt.dtype == torch.float32 and rebuilt.min() >= 0 and rebuilt.max() <= 1


def test_one_pass_gives_what_two_would():
    model = autoencoder(width=8)
    patches, wholes = (torch.rand(2, 1, 16, 16, 16, generator=generator(s)) for s in (0, 1))
    with torch.no_grad():
        together = model(patches, wholes)
        alone = model(patches, wholes[..., :12])[0], model(patches[..., :12], wholes)[1]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_only_hidden_voxels_are_scored():
    rebuilt, image, keep = torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2)
    keep = keep.bool()
    keep[0, 0, 0, 0] = False
    image[0, 0, 0, 0, 0] = 0.5
    assert float(masked_error(rebuilt, image, keep)) == pytest.approx(0.125)
    image[keep] = 9.0  # another target where the voxel is visible
    assert float(masked_error(rebuilt, image, keep)) == pytest.approx(0.125)
    rebuilt.requires_grad_()
    masked_error(rebuilt, image, keep).backward()
    assert not rebuilt.grad[keep].any() and rebuilt.grad[0, 0, 0, 0, 0] != 0


def test_seventy_percent_of_the_cubes_are_hidden_and_finer_ones_in_the_whole():
    loop = Loop(autoencoder(patch=40, global_size=40), options(mask_cube=8), ema_decay=0.0)
    images = torch.ones(2, 1, 40, 40, 40)
    seen = []

    def watched(patches, wholes):
        seen.extend([patches, wholes])
        return torch.zeros_like(patches), torch.ones_like(wholes)

    loop.model.forward = watched
    losses = reconstruction_losses(loop, images, images, options(mask_cube=8))
    assert {name: float(value) for name, value in losses.items()} == {"local": 1.0, "global": 0.0}
    for shown, cube in zip(seen, (8, 4), strict=True):
        blocks = torch.nn.functional.avg_pool3d(shown, cube)
        assert set(blocks.unique().tolist()) == {0.0, 1.0}
        cubes = (40 // cube) ** 3
        assert ((blocks == 0).sum((1, 2, 3, 4)) == round(0.7 * cubes)).all()
        assert not torch.equal(shown[0], shown[1])
    fine = torch.nn.functional.avg_pool3d(seen[1], 8).unique()
    assert len(fine) > 2


# --- domains ------------------------------------------------------------------------------------------------------


def test_domains_are_drawn_alike_however_many_scans_they_have():
    small, large = (UnlabelledScans([str(i) for i in range(n)], Preprocessing()) for n in (1, 9))
    drawn = []
    for source in (small, large):
        source.prepared = lambda file, source=source: drawn.append((source, file)) or torch.ones(4, 4, 4)
    mixture, g = domains(("small", small.draw), ("large", large.draw)), generator()
    for _ in range(600):
        mixture.draw(g)
    assert 240 < sum(source is small for source, _ in drawn) < 360
    counts = [drawn.count((large, str(i))) for i in range(9)]
    assert min(counts) > 12 and max(counts) < 60


def write(path, seed, outlier=1.0):
    image = np.random.default_rng(seed).uniform(20, 100, (16, 18, 14))
    image[:3] = 0
    image[8, 8, 8] *= outlier
    nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), path)
    return path


def test_white_is_drawn_between_the_99th_percentile_and_the_brightest_voxel(tmp_path):
    file = write(tmp_path / "a.nii.gz", 0, outlier=30.0)
    source = UnlabelledScans([file], Preprocessing())
    raw, g = source.prepared(file), generator()
    assert raw.max() > 10  # not clipped yet
    levels = []
    for _ in range(40):
        image = source.draw(g)
        assert image.min() >= 0 and image.max() == 1
        levels.append(float((image / raw)[5, 5, 5]))
    assert max(levels) > 1.5 * min(levels)
    low, high = (1 / float(raw[raw > 0].quantile(q)) for q in (1.0, 0.99))
    assert low <= min(levels) and max(levels) <= 1.001 * high


def test_hounsfield_units_keep_their_window(tmp_path):
    file = write(tmp_path / "a.nii.gz", 0)
    source = UnlabelledScans([file], Preprocessing(modality="ct", window=(0, 80)))
    g = generator()
    one, other = source.draw(g), source.draw(g)
    assert torch.equal(one, other) and one.max() == 1


def test_a_scan_below_the_ct_window_is_refused(tmp_path):
    file = write(tmp_path / "a.nii.gz", 0)
    source = UnlabelledScans([file], Preprocessing(modality="ct", window=(3000, 4000)))
    with pytest.raises(InputError, match="a.nii.gz: no voxel lies above 3000"):
        source.prepared(file)


def test_scans_beyond_those_kept_in_memory_are_prepared_again(tmp_path, monkeypatch):
    monkeypatch.setattr("MAPSegLib.domains.PREPARED", 1)
    files = [write(tmp_path / f"{i}.nii.gz", i) for i in range(2)]
    source = UnlabelledScans(files, Preprocessing())
    first = source.prepared(files[0])
    assert source.prepared(files[0]) is first
    source.prepared(files[1])
    again = source.prepared(files[0])
    assert again is not first and torch.equal(again, first)


def test_scans_are_flipped_along_every_axis_and_turned_and_scaled():
    image = torch.zeros(20, 24, 22)
    image[4:16, 4:20, 4:18] = torch.rand(12, 16, 14, generator=generator(1)) + 0.1
    g = generator()
    plain = [image.flip(axes) for axes in ([], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2])]
    found, sizes = set(), []
    for _ in range(80):
        varied = vary(image, ONE, g)
        match = [i for i, p in enumerate(plain) if p.shape == varied.shape and torch.equal(p, varied)]
        if match:
            found.add(match[0])
        else:
            sizes.append(int((varied > 0.05).sum()) / (12 * 16 * 14))
            outer = [(varied.select(axis, end) > 0).any() for axis in range(3) for end in (0, -1)]
            assert all(outer)  # cropped to what is left
    assert found == set(range(8)) and 20 < len(sizes) < 60
    assert min(sizes) < 0.7 and max(sizes) > 1.8


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ended", "reuse"), [(3, 1), (5, 1), (5, 2)])
@pytest.mark.parametrize("how", [Cancelled("cancelled"), ZeroDivisionError("as if killed")])
def test_interrupted_pretraining_ends_as_if_it_had_not_been(tmp_path, ended, reuse, how):
    own = options(reuse=reuse)
    for name in "ab":
        (tmp_path / name).mkdir()
    straight = pretrain(autoencoder(), domains(), own, tmp_path / "a", ignore)

    def stop(event, **fields):
        if fields["step"] == ended:
            raise how

    with pytest.raises(type(how)):
        pretrain(autoencoder(), domains(), own, tmp_path / "b", stop)
    kept = ended if isinstance(how, Cancelled) else ended - 1
    state = torch.load(tmp_path / "b" / CHECKPOINT, weights_only=True)
    assert state["step"] == kept and state["extra"]["seconds"] > 0
    torch.rand(7)
    resumed = pretrain(autoencoder(seed=5), domains(), own, tmp_path / "b", ignore)
    assert same(straight, resumed)
    records = [(tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for name in "ab"]
    lines = [[{**json.loads(line), "seconds": 0} for line in part] for part in records]
    assert lines[0] == lines[1] and lines[0][-1]["step"] == 6


def test_pictures_change_nothing_and_show_the_same_scans(tmp_path):
    shown = []
    for name, every in (("a", 0), ("b", 2)):
        (tmp_path / name).mkdir()
        model = pretrain(
            autoencoder(),
            domains(("one", bars), ("two", bars)),
            options(picture_every=every, steps=5),
            tmp_path / name,
            ignore,
            lambda step, rows: shown.append((step, rows)),
        )
        shown.append(model)
    plain, (_, first), *_, (last, rows), pictured = shown
    assert same(plain, pictured) and last == 5 and len(shown) == 5
    assert [row.title for row in rows] == ["one, patch", "one, whole", "two, patch", "two, whole"]
    for before, after in zip(first, rows, strict=True):
        visible = after.masked > 0
        assert np.array_equal(before.original, after.original) and np.array_equal(before.masked, after.masked)
        assert np.array_equal(after.filled[visible], after.original[visible])
        assert not np.array_equal(before.filled, after.filled)


def test_pretraining_learns_what_is_hidden(tmp_path):
    losses = []
    pretrain(
        autoencoder(width=8),
        domains(),
        options(steps=40, learning_rate=0.01, checkpoint_every=1000),
        tmp_path,
        lambda event, **fields: losses.append(fields["losses"]),
    )
    assert set(losses[0]) == {"local", "global", "loss"}
    assert sum(entry["loss"] for entry in losses[-5:]) < 0.7 * sum(entry["loss"] for entry in losses[:5])


def test_scans_are_reused_as_often_as_asked(tmp_path):
    drawn = []
    pretrain(
        autoencoder(),
        domains(("bars", lambda g: drawn.append(1) or bars(g))),
        options(steps=6, scans=3, reuse=2),
        tmp_path,
        ignore,
    )
    assert len(drawn) == 9


@pytest.mark.parametrize("percentile", [80.0, 99.5])
def test_white_varies_about_what_the_model_is_told(tmp_path, percentile):
    values = np.random.default_rng(0).gamma(2.0, 100.0, (24, 24, 24)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    known = Preprocessing(percentile=percentile)
    plain = prepare(read_image(tmp_path / "a.nii.gz"), known).image
    scans, g = UnlabelledScans([tmp_path / "a.nii.gz"], known), generator()
    shares = [float((scans.draw(g) == 1).float().mean()) for _ in range(200)]
    assert np.mean(shares) == pytest.approx(float((plain == 1).float().mean()), rel=0.15)
