"""Inference against a naive one that keeps all classes of the whole volume, on a model that is followed by hand."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import PAIRED, SIDES, SINGLE, Thresholds, sided, tiny_model
from volume_cases import affines, make_affine

from MAPSegLib import inference
from MAPSegLib.config import InferenceOptions, Label, Preprocessing
from MAPSegLib.datasets import crop, resize_whole
from MAPSegLib.errors import MemoryExhausted
from MAPSegLib.inference import (
    class_logits,
    gaussian_window,
    predict_classes,
    run_with_notes,
    segment_scan,
    segment_volume,
    window_starts,
)
from MAPSegLib.networks.segmenter import mirrored_classes, sample_global
from MAPSegLib.preprocessing import prepare, to_native
from MAPSegLib.volumes import Volume, read_image, write_volume

FP32 = InferenceOptions(device="cpu", precision="fp32")
VALUES = np.array([0, *(label.value for label in SINGLE)])


def scan_of(shape=(30, 23, 37), spacing=(1.0, 1.0, 1.0), seed=0, affine=None, working=(1.0, 1.0, 1.0)):
    """A prepared scan of smooth blobs in air; its box is not the whole grid."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 5, 5, 5, generator=g)
    array = 1000 * F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0, 0].numpy() + 60
    array[:2], array[:, -1:] = 0, 0
    array[:, :, : shape[2] // 4] *= array[:, :, : shape[2] // 4] > 500
    affine = np.diag([*spacing, 1.0]) if affine is None else affine
    return prepare(Volume(array.astype(np.float32), affine), Preprocessing(spacing=working))


def naive_probabilities(model, image, overlap=0.5):
    """(classes, X, Y, Z), of the mean logits of windows, every one of them alone in the whole volume."""
    window = model.architecture.patch
    padded = [max(n, window) for n in image.shape]
    total = torch.zeros(model.classes, *padded, dtype=torch.float64)
    weight = torch.zeros(padded, dtype=torch.float64)
    whole = model.features(resize_whole(image, model.architecture.global_size))
    shape = torch.tensor(image.shape)
    for corner in itertools.product(*(window_starts(n, window, overlap) for n in image.shape)):
        patch = crop(image, corner, window)
        if not patch.any():
            continue
        low = torch.tensor([corner]) / shape
        features = model.features(patch[None, None])
        under = sample_global(whole, low, low + window / shape, features.shape[2:])
        place = tuple(slice(c, c + window) for c in corner)
        logits = model.decode(features, under, patch[None, None])[0]
        total[(slice(None), *place)] += logits.double() * gaussian_window(window)
        weight[place] += gaussian_window(window)
    logits = total / weight.clamp(min=1e-30)
    logits[0][weight == 0] = 1e3
    return logits[:, : image.shape[0], : image.shape[1], : image.shape[2]].softmax(0)


def whole_probabilities(model, image, options=FP32):
    """Of all pieces, (classes, X, Y, Z)."""
    pieces = class_logits(model, image, torch.device("cpu"), options.batch, options)
    return torch.cat([sum(side.softmax(0) for side in sides) / len(sides) for _, sides in pieces], 1)


def likelihood(model, image, options=FP32):
    """Probability of the likeliest class."""
    return whole_probabilities(model, image, options).max(0).values


@pytest.mark.parametrize(
    "labels", [PAIRED, SIDES], ids=["channels as classes", "fewer channels than classes"]
)
def test_a_mirrored_scan_gets_the_mirrored_result(labels):
    model = tiny_model(labels, seed=4)
    assert (model.blended < model.classes) == (labels is SIDES)
    image, twin = scan_of((30, 23, 21)).image, mirrored_classes(labels)
    plain, mirrored = (naive_probabilities(model, x) for x in (image, image.flip(0)))
    expected = (plain + mirrored.flip(1)[twin]) / 2
    three = FP32.model_copy(update={"batch": 3})
    torch.testing.assert_close(
        whole_probabilities(model, image, three).double(), expected, atol=1e-4, rtol=1e-3
    )
    alone = three.model_copy(update={"mirror": False})
    torch.testing.assert_close(whole_probabilities(model, image, alone).double(), plain, atol=1e-4, rtol=1e-3)
    classes, seen = (predict_classes(model, x, FP32).long() for x in (image, image.flip(0)))
    assert (twin[seen].flip(0) == classes).float().mean() > 0.999  # but for ties


def clear(probability, gap=1e-4):
    """Where the likeliest class leads by more than rounding."""
    first, second = probability.topk(2, 0).values
    return first - second > gap


# --- windows ------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 400), window=st.integers(8, 128), overlap=st.floats(0, 0.9))
def test_windows_are_distinct_inside_and_leave_nothing_out(length, window, overlap):
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0 and starts == sorted(set(starts))
    assert starts[-1] == max(0, length - window)
    assert all(b - a <= max(1, window * (1 - overlap)) for a, b in itertools.pairwise(starts))


def test_no_more_windows_than_needed():
    assert window_starts(256, 96, 0.5) == [0, 40, 80, 120, 160]
    assert window_starts(96, 96, 0.5) == [0]
    assert window_starts(192, 96, 0.0) == [0, 96]
    assert len(window_starts(193, 96, 0.0)) == 3


def test_window_weights_favour_the_centre_evenly_and_reach_the_corners():
    w = gaussian_window(16)
    assert (w > 0).all() and float(w.max()) == pytest.approx(1.0, abs=0.1)
    assert w.argmax() == 7 * 256 + 7 * 16 + 7
    for axis in range(3):
        torch.testing.assert_close(w, w.flip(axis))
        torch.testing.assert_close(w, w.transpose(axis, (axis + 1) % 3))


def test_windows_without_foreground_are_left_out():
    model, image = Thresholds(), torch.zeros(64, 16, 16)
    image[:16] = 0.7
    seen = []
    classes = predict_classes(model, image, FP32, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)  # of seven
    assert (classes[:16] == 2).all() and not classes[16:].any()
    assert (likelihood(model, image) > 0.99).all()


# --- the same result as the naive way -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 23, 37), (16, 16, 16), (9, 40, 12), (6, 7, 8), (33, 16, 17)])
@pytest.mark.parametrize("overlap", [0.5, 0.0, 0.7])
def test_pieces_give_what_the_whole_volume_at_once_would(shape, overlap):
    model = Thresholds(pull=0.3, sharpness=30.0)
    scan = scan_of(shape)
    options = FP32.model_copy(update={"overlap": overlap, "batch": 3})
    classes, probability = predict_classes(model, scan.image, options), likelihood(model, scan.image, options)
    expected = naive_probabilities(model, scan.image, overlap)
    assert classes.shape == scan.image.shape
    torch.testing.assert_close(probability.double(), expected.max(0).values, atol=2e-5, rtol=0)
    agree = classes == expected.argmax(0)
    assert agree[clear(expected)].all() and clear(expected).float().mean() > 0.95


def test_corners_of_the_scan_are_as_sure_as_its_middle():
    model, image = Thresholds(), torch.full((12, 40, 20), 0.7)
    assert (predict_classes(model, image, FP32) == 2).all() and (likelihood(model, image) > 0.99).all()


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_the_batch_changes_nothing(batch):
    model, scan = tiny_model(), scan_of((24, 20, 28))
    other = FP32.model_copy(update={"batch": batch})
    first, again = (likelihood(model, scan.image, options) for options in (FP32, other))
    torch.testing.assert_close(again, first, atol=1e-5, rtol=0)
    first, again = (predict_classes(model, scan.image, options) for options in (FP32, other))
    assert (again == first).float().mean() > 0.999


def test_the_whole_scan_is_encoded_once_and_windows_in_batches():
    model, scan = Thresholds(), scan_of((40, 30, 30))
    predict_classes(model, scan.image, FP32)
    assert model.batches[0] == 1 and 1 < max(model.batches) <= 4
    starts = [len(window_starts(n, 16, 0.5)) for n in scan.image.shape]
    assert sum(model.batches) - 1 <= starts[0] * starts[1] * starts[2]


@pytest.mark.parametrize(
    "spacing",
    [(1.0, 1.0, 1.0), (0.6, 0.7, 0.5), (2.0, 1.7, 3.0), (0.5, 1.0, 2.5)],
    ids=["equal", "finer", "coarser", "mixed"],
)
def test_labels_are_the_likeliest_of_the_interpolated_probabilities(spacing):
    model = Thresholds(pull=0.3, sharpness=30.0)
    scan = scan_of((26, 24, 28), spacing)
    result = segment_scan(model, SINGLE, scan, FP32, uncertainty=True)
    probability = naive_probabilities(model, scan.image)
    for axis in range(3):
        probability = along(probability, axis + 1, scan.grid.box_shape[axis])
    assert probability.shape[1:] == scan.grid.box_shape
    boxed, sure = scan.grid.boxed(result.labels), clear(probability).numpy()
    assert sure.mean() > 0.95
    assert (boxed == VALUES[probability.argmax(0).numpy()])[sure].all()
    doubt = scan.grid.boxed(result.uncertainty)
    np.testing.assert_allclose(doubt, 1 - probability.max(0).values.numpy(), atol=3e-5)


def along(x, axis, size):
    """Linear interpolation along one axis, averaged over a sliding window of sqrt(ratio^2 - 1) where it shrinks."""
    n = x.shape[axis]
    if n == size:
        return x
    reach = max((n / size) ** 2 - 1, 0) ** 0.5
    offsets = reach * ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 - 0.5)
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * n / size - 0.5
    distance = (centre[:, None, None] + offsets[:, None] - torch.arange(n)).abs()
    weights = (1 - distance).clamp(min=0).mean(1)
    return torch.tensordot(x, weights / weights.sum(1, keepdim=True), ([axis], [1])).movedim(-1, axis)


# --- the scan's own grid ------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(affine=affines(), seed=st.integers(0, 5))
def test_labels_lie_on_the_voxels_they_were_made_from(affine, seed):
    """Any orientation, oblique, anisotropic, at the scan's own spacing: voxel for voxel."""
    model = Thresholds(sharpness=3000.0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    permutation = np.argsort(prepare(noise(affine, seed), Preprocessing()).grid.permutation)
    working = tuple(float(s) for s in spacing[np.argsort(permutation)])
    scan = prepare(noise(affine, seed), Preprocessing(spacing=working))
    labels = segment_scan(model, SINGLE, scan, FP32).labels
    assert labels.shape == scan.grid.native_shape
    expected = to_native(VALUES[model.classify(scan.image).numpy()], scan.grid)
    distance = (scan.image[None] - model.levels.view(-1, 1, 1, 1)).abs().topk(2, 0, largest=False).values
    far = to_native((distance[1] - distance[0] > 1e-3).numpy(), scan.grid)
    assert far.sum() > 0.9 * np.prod(scan.grid.box_shape)
    assert (labels == expected)[far].all()


def noise(affine, seed):
    array = np.random.default_rng(seed).random((11, 9, 13), dtype=np.float32) * 100
    array[:2] = 0
    array[:, :, -1] = 0
    return Volume(array, affine)


def test_turned_files_of_one_head_get_the_same_labels():
    model, volume = Thresholds(sharpness=3000.0), noise(np.eye(4), 0)
    reference = segment_volume(model, card_like(), volume, FP32).labels
    turned = Volume(
        volume.array.transpose(2, 0, 1)[::-1], make_affine(permutation=(2, 0, 1), signs=(-1, 1, 1))
    )
    labels = segment_volume(model, card_like(), turned, FP32).labels
    assert np.array_equal(labels, reference.transpose(2, 0, 1)[::-1])


def card_like(labels=SINGLE):
    return SimpleNamespace(preprocessing=Preprocessing(), labels=labels)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("permutation", list(itertools.permutations(range(3))), ids=str)
def test_left_structures_lie_on_the_left_whichever_way_the_file_runs(tmp_path, suffix, permutation, rng):
    """In files that another library writes and reads: left is at smaller x in RAS mm, at larger x in its LPS mm."""
    head = np.zeros((20, 18, 16), np.float32)
    head[2:18, 3:15, 2:12] = 100
    head[2:5, 9:12, 4:8] = head[15:18, 9:12, 4:8] = 200
    head[head > 0] += rng.normal(0, 3, np.count_nonzero(head))
    for signs in itertools.product((1, -1), repeat=3):
        array = head.transpose(permutation)[tuple(slice(None, None, sign) for sign in signs)]
        image = sitk.GetImageFromArray(array.T)
        axes = np.diag([-1, -1, 1]) @ make_affine(permutation, signs)[:3, :3]
        image.SetDirection(axes.ravel())
        image.SetOrigin(axes @ (1 - np.array(array.shape)) / 2)
        sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"))

        scan = read_image(tmp_path / f"scan{suffix}")
        labels = segment_volume(sided(), card_like(SIDES), scan, FP32).labels
        result = sitk.ReadImage(str(write_volume(tmp_path / f"out{suffix}", labels, scan, overwrite=True)))
        found = sitk.GetArrayFromImage(result).T
        assert np.array_equal(np.isin(found, (17, 53)), array > 150)
        for value, side in {10: 1, 17: 1, 49: -1, 53: -1}.items():
            places = np.argwhere(found == value).tolist()
            assert min(side * result.TransformIndexToPhysicalPoint(place)[0] for place in places) > 0


# --- what is reported ---------------------------------------------------------------------------------------------


def test_volumes_and_confidence_are_those_of_the_label_map():
    model, scan = Thresholds(pull=0.2, sharpness=20.0), scan_of(spacing=(1.0, 2.0, 1.5))
    result = segment_scan(model, SINGLE, scan, FP32, uncertainty=True)
    assert result.labels.dtype == np.uint16 and set(np.unique(result.labels)) <= set(VALUES)
    sure = 1 - result.uncertainty
    for label in SINGLE:
        mask = result.labels == label.value
        assert mask.any()
        assert result.volumes_ml[label.value] == pytest.approx(mask.sum() * 3.0 / 1000)
        assert result.confidence[label.value] == pytest.approx(sure[mask].mean(), abs=1e-5)


def test_structures_that_were_not_found_have_no_volume_and_no_confidence():
    model = Thresholds(levels=(0.0, 0.4, 0.7, 50.0))
    result = segment_scan(model, SINGLE, scan_of(), FP32)
    assert result.volumes_ml[300] == 0.0
    assert 300 not in result.confidence and result.uncertainty is None


def test_uncertainty_is_zero_outside_the_box_and_small_values_need_one_byte():
    labels = tuple(Label(value=v, name=str(v)) for v in (1, 2, 3))
    scan = scan_of()
    result = segment_scan(Thresholds(), labels, scan, FP32, uncertainty=True)
    assert result.labels.dtype == np.uint8 and result.uncertainty.dtype == np.float32
    outside = np.ones(scan.grid.native_shape, bool)
    scan.grid.boxed(outside)[...] = False
    assert outside.any() and not result.uncertainty[outside].any() and not result.labels[outside].any()


def test_probabilities_are_those_of_every_structure_in_every_voxel():
    model, scan = Thresholds(pull=0.2, sharpness=20.0), scan_of(spacing=(1.0, 2.0, 1.5))
    result = segment_scan(model, SINGLE, scan, FP32, uncertainty=True, probabilities=True)
    found = result.probabilities
    assert found.dtype == np.uint8 and found.shape == (*scan.grid.native_shape, len(SINGLE))
    for place, label in enumerate(SINGLE):
        mask = result.labels == label.value
        assert mask.any() and (found[mask].max(-1) == found[mask, place]).all()
        assert np.abs(found[mask, place] - 255 * (1 - result.uncertainty[mask])).max() <= 0.51
    assert found.sum(-1).max() <= 255 + len(SINGLE)
    outside = np.ones(scan.grid.native_shape, bool)
    scan.grid.boxed(outside)[...] = False
    assert outside.any() and not found[outside].any()
    assert segment_scan(model, SINGLE, scan, FP32).probabilities is None


def test_progress_counts_to_the_end():
    seen = []
    segment_scan(Thresholds(), SINGLE, scan_of(), FP32, progress=lambda *counts: seen.append(counts))
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(set(done)) and set(totals) == {done[-1]}


def test_a_volume_is_timed_and_segmented_as_its_scan_would_be():
    volume = noise(np.eye(4), 3)
    result = segment_volume(Thresholds(), card_like(), volume, FP32)
    again = segment_scan(Thresholds(), SINGLE, prepare(volume, Preprocessing()), FP32)
    assert np.array_equal(result.labels, again.labels) and result.seconds > 0


def test_classes_and_labels_agree_with_each_other():
    model, scan = tiny_model(SINGLE), scan_of()
    classes, probability = predict_classes(model, scan.image, FP32), likelihood(model, scan.image)
    result = segment_scan(model, SINGLE, scan, FP32, uncertainty=True)
    assert np.array_equal(scan.grid.boxed(result.labels), VALUES[classes.numpy()])
    assert torch.equal(result.classes, classes)  # by which the result is judged
    np.testing.assert_allclose(1 - scan.grid.boxed(result.uncertainty), probability.numpy(), atol=1e-6)


def test_bf16_changes_few_labels():
    model, scan = tiny_model(SINGLE, width=8), scan_of()
    results = [
        segment_scan(model, SINGLE, scan, FP32.model_copy(update={"precision": p})) for p in ("fp32", "bf16")
    ]
    assert not np.array_equal(*(r.labels for r in results)) or results[0].confidence != results[1].confidence
    assert (results[0].labels == results[1].labels).mean() > 0.97


def test_dropout_is_off():
    model, scan = tiny_model(SINGLE, dropout=0.9).train(), scan_of((18, 18, 18))
    first, again = (likelihood(model, scan.image) for _ in range(2))
    assert torch.equal(first, again)


# --- memory -------------------------------------------------------------------------------------------------------


class Greedy(Thresholds):
    """Runs out of memory above ``limit`` windows at once."""

    def __init__(self, limit, error=torch.OutOfMemoryError):
        super().__init__()
        self.limit, self.error = limit, error

    def features(self, x):
        if len(x) > self.limit:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return super().features(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_smaller_batches_are_tried_when_memory_runs_out(error):
    scan = scan_of((40, 30, 30))
    result = segment_scan(Greedy(1, error), SINGLE, scan, FP32)
    assert [note for note in result.notes if "2 window" in note] and [
        n for n in result.notes if "1 window" in n
    ]
    assert len(result.notes) == 2
    assert np.array_equal(result.labels, segment_scan(Thresholds(), SINGLE, scan, FP32).labels)
    assert not segment_scan(Greedy(4), SINGLE, scan, FP32).notes


def test_when_nothing_helps_it_says_so():
    with pytest.raises(MemoryExhausted) as refusal:
        segment_scan(Greedy(0), SINGLE, scan_of(), FP32)
    assert refusal.value.exit_code == 3 and refusal.value.advice
    with pytest.raises(MemoryExhausted):
        predict_classes(Greedy(0), scan_of().image, FP32)


def test_the_cpu_takes_over_from_a_gpu(monkeypatch):
    monkeypatch.setattr(inference, "pick_device", lambda _: torch.device("cuda"))
    tried = []

    def run(device, batch):
        tried.append((device.type, batch))
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    result, notes = run_with_notes(run, FP32)
    assert result == "done" and tried == [("cuda", 4), ("cuda", 2), ("cuda", 1), ("cpu", 1)]
    assert len(notes) == 3 and "CPU" in notes[-1]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def run(device, batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_with_notes(run, FP32)
