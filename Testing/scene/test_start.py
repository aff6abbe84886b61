"""What starting the module loads."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
START = """
import sys
sys.path[:0] = [{root!r}, {module!r}]
from Testing.host import scene
scene.install()
scene.offer_module_base_classes()
before = set(sys.modules)
import types, MAPSeg
parent = types.SimpleNamespace(path={module!r} + "/MAPSeg.py")
MAPSeg.MAPSeg(parent)
if {further}:
    MAPSeg.MAPSegLogic()
    from MAPSegModule import batch, console, dependencies, models, preflight, run, scene
    assert models.list_entries()
for name in sorted({{name.split(".")[0] for name in set(sys.modules) - before}}):
    print(name)
"""


def loaded(further: bool) -> set[str]:
    code = START.format(root=str(ROOT), module=str(ROOT / "MAPSeg"), further=further)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) - set(sys.stdlib_module_names)


def test_starting_the_module_loads_nothing_but_itself():
    assert loaded(False) <= {"MAPSeg", "slicer"}


def test_using_it_loads_only_what_slicer_has():
    found = loaded(True)
    assert "MAPSegModule" in found
    allowed = {"MAPSeg", "MAPSegModule", "MAPSegLib", "slicer", "vtk", "vtkmodules", "numpy", "SimpleITK"}
    assert {name for name in found if not name.startswith(("vtk", "_"))} <= allowed
