"""On a device other than the CPU: nothing is mixed up, results are the CPU's, and memory is given back."""

import errno
import gc
import math
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import shared_runs
import torch
from federated_cases import plan_of
from model_cases import PAIRED, SINGLE, card_of, generator, ignore, tiny_model
from pretend_device import DEVICE, OnDevice, pretended

from MAPSegLib import devices, distributed, inference
from MAPSegLib.config import AdaptationOptions, InferenceOptions, TrainingOptions
from MAPSegLib.devices import (
    has_fast_bf16,
    is_out_of_memory,
    pick_device,
    precision_context,
    prepare_process,
    settings_kept,
)
from MAPSegLib.errors import InputError, MemoryExhausted
from MAPSegLib.federated.coordinator import Coordinator
from MAPSegLib.federated.plan import agree
from MAPSegLib.federated.scans import SiteData
from MAPSegLib.federated.site import Site
from MAPSegLib.preprocessing import prepare
from MAPSegLib.quality import assess_scan
from MAPSegLib.tasks.findings import Findings
from MAPSegLib.training.adaptation import adapt
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.terms import _eta
from MAPSegLib.volumes import Volume

OPTIONS = InferenceOptions(device="cpu", precision="fp32")
# PyTorch takes the pretended device for its own "meta", into which nothing can be copied.
pytestmark = pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")


def volume(seed=0, shape=(20, 18, 24)):
    return Volume(np.random.default_rng(seed).random(shape, np.float32) * 100, np.diag([1.5, 1.0, 1.0, 1.0]))


def alike(one, other):
    """Whether two label maps differ by rounding at most."""
    return (one == other).mean() > 0.99


def scan_for(model, **changes):
    return prepare(volume(**changes), card_of(model).preprocessing)


# --- a device that is not there -------------------------------------------------------------------------------------


def test_tensors_of_two_devices_do_not_mix():
    with pretended():
        here, there = torch.ones(3), torch.ones(3).to(DEVICE)
        assert there.device == DEVICE and isinstance(there, OnDevice) and there.cpu().tolist() == [1, 1, 1]
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=DEVICE, generator=generator())
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises((TypeError, RuntimeError)):
            there.numpy()
        weight = torch.ones(3, device=DEVICE, requires_grad=True)
        (weight * there).sum().backward()
        assert weight.grad.device == DEVICE and weight.grad.cpu().tolist() == [1, 1, 1]
        model = torch.nn.Linear(3, 2).to(DEVICE)
        assert model.weight.device == DEVICE and model(there).device == DEVICE


@pytest.mark.parametrize("labels", [PAIRED, SINGLE], ids=["mirrored", "turned"])
def test_a_scan_gets_the_result_of_the_cpu(labels):
    def run():
        model = tiny_model(labels, curve_knots=4)
        scan = scan_for(model)
        result = inference.segment_scan(model, labels, scan, OPTIONS, uncertainty=True)
        return result, *assess_scan(model, card_of(model), scan, OPTIONS)

    one, verdict, classes = run()
    with pretended() as device:
        other, judged, found = run()
        assert device.operations["convolution"]
    assert alike(one.labels, other.labels) and alike(classes.numpy(), found.numpy())
    np.testing.assert_allclose(one.uncertainty, other.uncertainty, atol=1e-4)
    assert judged.measures == pytest.approx(verdict.measures, abs=0.02)


def run_source_free(folder, accumulate):
    told = shared_runs.Told()
    own = {"check_every": 5, "curve_knots": 4, "minutes": 1000.0, "preview_seconds": 0.0}
    options = AdaptationOptions(**shared_runs.COMMON, **own, accumulate=accumulate)
    model = tiny_model(dropout=0.2)
    scans = [scan_for(model, seed=seed) for seed in range(2)]
    adapt(model, card_of(model), scans, options, folder, told)
    return told


RUNS = {**shared_runs.RUNS, "source-free": run_source_free}


@pytest.mark.parametrize("run", ["train", "pretrain", "adapt", "plus", "source-free"])
def test_a_training_has_the_losses_of_the_cpu_and_goes_on_from_its_checkpoint(run, tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    for steps in (6, 7):
        monkeypatch.setitem(shared_runs.COMMON, "steps", steps)
        here = RUNS[run](tmp_path / "here", 1)
        with pretended() as device:
            there = RUNS[run](tmp_path / "there", 1)
            assert device.operations["convolution_backward"]
        assert len(here) == len(there) == (6 if steps == 6 else 1)
        # later, patches are cut about what the last check found, of which a voxel may be another by rounding
        same = 5 if steps == 6 and run != "source-free" else 0
        assert there[:same] == [pytest.approx(losses, abs=1e-3) for losses in here[:same]]
        assert all(math.isfinite(value) for losses in there for value in losses.values())


def test_sites_answers_are_those_of_the_cpu_and_can_be_averaged(place):
    plan = plan_of(place)
    coordinator = Coordinator(plan, place)

    def answer(name, folder):
        (place / folder).mkdir(exist_ok=True)
        site = Site(agree(plan), name, SiteData(images=place / name), place / folder, ignore)
        return site.train_round(1, coordinator.payload(), ignore)

    here = answer("a", "here")
    with pretended():
        answers = {name: answer(name, "there") for name in ("a", "b")}
    assert answers["a"].losses == pytest.approx(here.losses, abs=1e-3)
    assert all(
        site["used"] for name, site in coordinator.absorb(answers, 1.0)["sites"].items() if name != "c"
    )


# --- waiting and memory ---------------------------------------------------------------------------------------------


def test_a_step_waits_as_often_for_many_classes_as_for_few():
    def waits(classes):
        label = torch.arange(classes).repeat(3)
        with pretended() as device:
            found = _eta(torch.linspace(0, 1, len(label)).to(DEVICE), label.to(DEVICE), classes, 0.5)
            assert list(found["per_class"]) == list(range(classes))
            return device.waits

    assert waits(40) == waits(2)


def test_memory_is_free_again_before_less_is_tried(monkeypatch):
    """Else what the failed try holds, by its traceback, would be lacking in the next one."""
    model, held = tiny_model(SINGLE), []
    scan, made = scan_for(model, shape=(24, 18, 18)), inference.class_logits
    expected = inference.segment_scan(model, SINGLE, scan, OPTIONS)
    with pretended() as device:
        model.to(DEVICE)
        own = device.bytes()

        def watched(*args):
            held.append(device.bytes())
            return made(*args)

        monkeypatch.setattr(inference, "class_logits", watched)
        gc.disable()
        try:
            device.full = lambda name, tensors: name == "convolution" and len(tensors[0]) > 1
            smaller = inference.segment_scan(model, SINGLE, scan, OPTIONS)
            assert held == [own] * 3 and "1 window(s) at once" in smaller.notes[-1]
            device.full = lambda name, tensors: name == "convolution"
            elsewhere = inference.segment_scan(model, SINGLE, scan, OPTIONS)
            assert held[3:] == [own] * 3 + [0] and "on the CPU" in elsewhere.notes[-1]
            device.full = lambda name, tensors: False
            again = inference.segment_scan(model, SINGLE, scan, OPTIONS)
            assert not again.notes and next(model.parameters()).device == DEVICE
        finally:
            gc.enable()
    for result in (smaller, elsewhere, again):
        assert alike(result.labels, expected.labels)


def test_a_step_that_did_not_fit_is_not_held_by_its_error():
    with pretended() as device:
        layers = [torch.nn.Conv3d(1, 4, 3), torch.nn.Conv3d(4, 4, 3)]
        loop = Loop(torch.nn.Sequential(*layers), TrainingOptions(precision="fp32"), ema_decay=None)
        own = device.bytes()
        device.full = lambda name, tensors: device.operations["convolution"] == 2
        with pytest.raises(MemoryExhausted) as refusal:
            loop.update(lambda: {"fit": loop.model(torch.rand(1, 1, 16, 16, 16).to(DEVICE)).sum()})
        assert refusal.value.__cause__ is not None and device.bytes() == own


def test_scans_that_failed_are_not_held(tmp_path):
    begun = SimpleNamespace(done=[], mark={}, earlier={tmp_path}, asked=frozenset(), changed=frozenset())
    findings = Findings(SimpleNamespace(task="adapt"), SimpleNamespace(), SimpleNamespace(), ignore, begun)
    kept = []

    def read(scan):
        volume = np.zeros(3)
        kept.append(weakref.ref(volume))
        raise InputError(f"{scan} is empty.")

    for name in "abc":
        with findings.isolated(tmp_path / name):
            read(name)
    gc.collect()
    assert [one() is None for one in kept[1:]] == [True, True] and len(findings.failed) == 3
    with pytest.raises(InputError, match="a is empty"):
        findings.finish()


# --- what a device can do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version, fast", [(None, True), (90701, True), (91002, False), (91501, True)])
def test_bf16_is_left_to_a_cudnn_that_convolves_in_it(monkeypatch, version, fast):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    assert has_fast_bf16.__wrapped__(torch.device("cuda")) is fast


def test_bf16_on_apples_gpu_is_refused_in_a_sentence():
    with pytest.raises(InputError, match="bf16") as refusal:
        precision_context(torch.device("mps"), "bf16")
    assert "fp32" in refusal.value.advice
    with precision_context(torch.device("mps"), "auto"):
        pass


def test_a_device_asked_for_by_name_has_to_compute_as_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for works in (True, False):
        monkeypatch.setattr(devices, "_computes", lambda kind, works=works: works)
        if works:
            assert pick_device("mps") == torch.device("mps")
        else:
            with pytest.raises(InputError, match="mps device"):
                pick_device("mps")


@pytest.mark.parametrize("gpu, nccl, backend", [(1, 1, "cpu:gloo,cuda:nccl"), (1, 0, "gloo"), (0, 1, "gloo")])
def test_gpus_talk_over_what_pytorch_has(monkeypatch, gpu, nccl, backend):
    import torch.distributed as dist

    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 0, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, str(value))
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpu))
    monkeypatch.setattr(dist, "is_nccl_available", lambda: bool(nccl))
    meeting = sys.modules["torch.distributed.rendezvous"]  # by its name, torch.distributed has a function
    monkeypatch.setattr(meeting, "rendezvous", lambda _: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(distributed, "_agree", lambda *_: "word")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: asked.append(backend))
    monkeypatch.setattr(distributed, "_store", None)
    distributed.join()
    assert asked == [backend]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_graphics_card_that_does_not_work_is_left_out(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices._computes.cache_clear()
    assert pick_device("auto") == torch.device("cpu") and "cuda device does not work" in caplog.text
    with pytest.raises(InputError, match="cuda device"):  # asked for by name, it fails by name
        pick_device("cuda")
    devices._computes.cache_clear()


@pytest.mark.parametrize("wrong", [False, True])
def test_a_device_that_computes_otherwise_than_the_cpu_is_left_out(monkeypatch, caplog, wrong):
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, kind: self.apply(spoil) if wrong else self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, kind: self)

    def spoil(layer):
        if isinstance(layer, torch.nn.Conv3d):
            layer.weight.mul_(1.3)

    assert devices._computes.__wrapped__("mps") is not wrong
    assert ("other results than the CPU" in caplog.text) is wrong


def test_a_callers_settings_are_kept():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    before = [part.fp32_precision for part in devices._CUDNN]
    with settings_kept():
        prepare_process(threads + 1)
        for precision, expected in (("fp32", "ieee"), ("auto", "tf32"), ("fp32", "ieee")):
            precision_context(torch.device("cpu"), precision)
            assert all(part.fp32_precision == expected for part in devices._CUDNN)
        torch.manual_seed(7)
        assert torch.get_num_threads() == threads + 1
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert [part.fp32_precision for part in devices._CUDNN] == before


def test_a_callers_setting_for_all_of_pytorch_holds_again_afterwards():
    """With such a one, PyTorch's older switch of TF32 cannot be read any more."""
    parts = (*devices._CUDNN, torch.backends)
    before = [part.fp32_precision for part in parts]
    try:
        for part, setting in zip(parts, ("none", "none", "ieee"), strict=True):
            part.fp32_precision = setting
        with settings_kept():
            precision_context(torch.device("cpu"), "auto")
            assert all(part.fp32_precision == "tf32" for part in devices._CUDNN)
        for setting in ("ieee", "tf32"):
            torch.backends.fp32_precision = setting
            assert all(part.fp32_precision == setting for part in devices._CUDNN)
    finally:
        for part, setting in zip(parts, before, strict=True):
            part.fp32_precision = setting


@pytest.mark.parametrize("enabled", [True, False])
def test_within_a_callers_autocast_weights_are_rounded_where_asked_and_as_they_are_now(enabled):
    weight, ones = torch.nn.Parameter(torch.ones(4, 4)), torch.ones(4, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        with settings_kept():
            assert (weight @ ones).dtype == torch.float32
            for value in (1, 2):
                weight.data.fill_(value)
                with precision_context(torch.device("cpu"), "bf16"):
                    assert ((weight @ ones) == 4 * value).all()
        assert torch.is_autocast_enabled("cpu") == enabled and torch.is_autocast_cache_enabled()


def test_a_callers_rougher_products_of_matrices_are_not_ours():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with settings_kept():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_nor_are_those_of_pytorchs_newer_switches():
    """With such a one, the older one cannot be read any more."""
    before = [part.fp32_precision for part in devices._OTHERS]
    try:
        for part in devices._OTHERS:
            part.fp32_precision = "tf32"
        with settings_kept():
            assert all(part.fp32_precision == "ieee" for part in devices._OTHERS)
        assert all(part.fp32_precision == "tf32" for part in devices._OTHERS)
    finally:
        for part, setting in zip(devices._OTHERS, before, strict=True):
            part.fp32_precision = setting


def test_a_folder_called_allocation_is_no_lack_of_memory():
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("out of memory"))
    assert is_out_of_memory(RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"))
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert not is_out_of_memory(ValueError("/trial/allocation/scan.nii.gz is no image"))


def test_a_card_without_bf16_of_its_own_is_not_made_to_emulate_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_fast_bf16.__wrapped__(torch.device("cuda"))
