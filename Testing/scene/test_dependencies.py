"""Installing what the worker needs: with consent, from the internet or from a folder, and never over Slicer's own."""

import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import slicer
from MAPSegModule import dependencies
from MAPSegModule.job import worker_environment


@pytest.fixture
def installed(scene, monkeypatch):
    """Versions as if installed; every installation is recorded and takes effect."""
    versions = {"numpy": "2.1.0", "scipy": "1.14.0", "SimpleITK": "2.4.0"}
    calls = []

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    def install(name, requirements, constraints):
        calls.append((name, requirements, Path(constraints).read_text(encoding="utf-8").split()))
        versions.update({each.split(">=")[0]: "99.0" for each in requirements})

    packaging = types.ModuleType("slicer.packaging")

    def pip_ensure(wanted, constraints, prompt_install, requester):
        assert not prompt_install  # it was asked before
        install(requester, wanted, constraints)

    packaging.pip_ensure = pip_ensure
    torch = types.ModuleType("PyTorchUtils")

    class PyTorchUtilsLogic:
        def installTorch(self, askConfirmation, torchVersionRequirement):
            assert askConfirmation
            calls.append(("PyTorch", torchVersionRequirement))
            versions["torch"] = "2.9.1+cu126"
            return torch

    torch.PyTorchUtilsLogic = PyTorchUtilsLogic
    monkeypatch.setattr(dependencies.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    monkeypatch.setattr(slicer, "packaging", packaging, raising=False)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", torch)
    monkeypatch.setattr(slicer.util, "settingsValue", lambda key, default: default)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: True)
    monkeypatch.setattr(
        slicer.util,
        "pip_install",
        lambda args: install("wheels", args[5:], args[4]) or calls.append(args[:4]),
        raising=False,
    )
    return types.SimpleNamespace(versions=versions, calls=calls, packaging=packaging, torch=torch)


KEPT = ["numpy==2.1.0", "scipy==1.14.0", "SimpleITK==2.4.0"]


def test_everything_is_installed_through_slicers_own_ways(installed):
    names = [each.split(">=")[0] for each in dependencies.missing()]
    assert names == ["torch", *(each.split(">=")[0] for each in dependencies.requirements())]
    assert dependencies.ensure()
    assert installed.calls == [("PyTorch", ">=2.9"), ("MAPSeg", dependencies.requirements(), KEPT)]
    assert dependencies.missing() == []
    installed.calls.clear()
    assert dependencies.ensure() and installed.calls == []


def test_only_what_is_missing_or_too_old_is_installed(installed):
    installed.versions |= {
        "torch": "2.9.0+cpu",
        "filelock": "3.13.1",
        "nibabel": "5.1.9",
        "pydantic": "2.11.7",
        "safetensors": "0.4.3",
    }
    assert dependencies.missing() == ["nibabel>=5.2"]
    assert dependencies.ensure() and installed.calls == [("MAPSeg", ["nibabel>=5.2"], KEPT)]


@pytest.mark.parametrize("folder", [False, True])
def test_slicer_for_intel_macs_is_told_that_there_is_no_pytorch(installed, monkeypatch, tmp_path, folder):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(dependencies.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: pytest.fail(text))
    with pytest.raises(RuntimeError, match="for which there is no PyTorch 2.9 or later"):
        dependencies.ensure(str(tmp_path) if folder else "")
    assert installed.calls == []
    installed.versions["torch"] = "2.9.0"  # somebody's own build
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: True)
    assert dependencies.ensure(str(tmp_path) if folder else "")
    del installed.versions["torch"]
    monkeypatch.setattr(dependencies.platform, "machine", lambda: "arm64")
    assert dependencies.ensure()


@pytest.mark.parametrize("version", [None, "unknown", ""])
def test_packages_of_no_known_version_are_installed_anew(installed, version):
    installed.versions |= {"torch": "2.10", "nibabel": version}
    assert "nibabel>=5.2" in dependencies.missing()
    assert dependencies.ensure() and "nibabel>=5.2" in installed.calls[0][1]


def test_what_is_left_of_a_package_is_none(scene, monkeypatch, tmp_path):
    """A removal that failed, on Windows of files in use, may leave a folder without metadata."""
    (tmp_path / "nibabel-5.3.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "nibabel>=5.2" in dependencies.missing()


def test_declining_installs_nothing(installed, monkeypatch):
    monkeypatch.setattr(installed.torch.PyTorchUtilsLogic, "installTorch", lambda self, **_: None)
    assert dependencies.ensure() is False and installed.calls == []
    installed.versions["torch"] = "2.10"
    asked = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: asked.append(text) or False)
    assert dependencies.ensure() is False and installed.calls == []
    assert len(asked) == 1 and all(name in asked[0] for name in dependencies.requirements())


def test_failures_are_raised(installed, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the server declined")

    installed.versions["torch"] = "2.10"
    monkeypatch.setattr(installed.packaging, "pip_ensure", fail)
    with pytest.raises(RuntimeError, match="the server declined"):
        dependencies.ensure()
    monkeypatch.setattr(installed.packaging, "pip_ensure", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="still missing: .*nibabel"):
        dependencies.ensure()
    del installed.versions["torch"]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(RuntimeError, match="PyTorch extension"):
        dependencies.ensure()


def test_a_site_without_internet_installs_from_a_folder(installed, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: asked.append(text) or False)
    assert dependencies.ensure(str(tmp_path)) is False and installed.calls == [] and str(tmp_path) in asked[0]
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: True)
    assert dependencies.ensure(str(tmp_path))
    (name, wanted, kept), options = installed.calls
    assert name == "wheels" and wanted == [dependencies.TORCH, *dependencies.requirements()] and kept == KEPT
    assert options == ["--no-index", "--find-links", str(tmp_path), "--constraint"]
    installed.versions.pop("torch")
    with pytest.raises(RuntimeError, match="does not exist"):
        dependencies.ensure(str(tmp_path / "absent"))


def test_the_device_is_tried_in_a_process_of_its_own(scene):
    dependencies.try_devices.cache_clear()
    told = dependencies.describe_device("auto", worker_environment())
    assert "CPU, " in told or "tried and working" in told
    assert dependencies.describe_device("cpu", worker_environment()).endswith(", as chosen.")


def test_devices_are_tried_with_no_module_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise SystemExit('not PyTorch')")
    monkeypatch.chdir(tmp_path)
    dependencies.try_devices.cache_clear()
    assert "PyTorch does not start" not in dependencies.describe_device("auto", worker_environment())


@pytest.mark.parametrize(
    ("device", "found", "said"),
    [
        ("cuda", {"why": "no driver"}, "Not available here (no driver); choose Automatic or Processor."),
        ("cuda", {"kind": "cuda", "gpu": "Some GPU", "why": "no kernel"}, "Not available here (no kernel);"),
        ("cuda", {"kind": "mps", "gpu": "Apple GPU", "works": True}, "Not available here (no NVIDIA GPU);"),
        ("mps", {"why": "no driver"}, "Not available here (no Apple GPU);"),
        ("mps", {"kind": "cuda", "gpu": "Some GPU", "works": True}, "Not available here (no Apple GPU);"),
        ("cuda", {"kind": "cuda", "gpu": "Some GPU", "works": True}, "Some GPU, tried and working."),
        ("auto", {"kind": "mps", "gpu": "Apple GPU", "works": True}, "Apple GPU, tried and working."),
        ("auto", {"why": "no driver"}, "CPU, 8 threads: no driver."),
        ("auto", {"threads": 1, "why": "no driver"}, "CPU, 1 thread: no driver."),
        ("cpu", {"kind": "cuda", "gpu": "Some GPU", "works": True}, "CPU, 8 threads, as chosen."),
    ],
)
def test_a_device_that_was_chosen_and_is_not_there_is_told(scene, monkeypatch, device, found, said):
    told = {"threads": 8, "kind": "", "gpu": "", "works": False, "why": ""} | found
    monkeypatch.setattr(dependencies, "try_devices", lambda environment: told)
    assert dependencies.describe_device(device, {}).startswith(said)


A_TORCH = """
import types
__version__, get_num_threads = "2.9.0", lambda: 8
cuda = types.SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "Some GPU")

def Conv3d(*sizes):
    raise RuntimeError("no kernel image is available\\nand more")

nn = types.SimpleNamespace(Conv3d=Conv3d)
"""


@pytest.mark.parametrize(
    ("torch", "told"),
    [
        (A_TORCH, "CPU, 8 threads: no kernel image is available."),
        # a warning with a path in it, in the code page of some Windows
        (A_TORCH + "import sys; sys.stderr.buffer.write(b'J\\xfcrgen')", "CPU, 8 threads: no kernel image"),
        (A_TORCH + "def Conv3d(*s): raise SystemExit(1)\nnn.Conv3d = Conv3d", "PyTorch does not start here;"),
        ("raise ImportError('DLL load failed')", "PyTorch does not start here;"),
    ],
)
def test_a_gpu_that_fails_its_trial_is_not_used(scene, tmp_path, torch, told):
    """With a PyTorch that sees a GPU, whatever the machine has."""
    (tmp_path / "torch.py").write_text(torch)
    environment = {**worker_environment(), "PYTHONPATH": str(tmp_path)}
    assert dependencies.describe_device("auto", environment).startswith(told)
