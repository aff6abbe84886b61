"""The Slicer extension's packaging: what is listed, what the catalogue is told, what starting the module costs."""

import ast
import json
import re
import struct
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "MAPSeg"
ALLOWED = {"slicer", "vtk", "qt", "ctk", "numpy", "SimpleITK", "MAPSegLib", "MAPSegModule"}
"""Top-level names that files of the module may import, beside the standard library."""


def listed(cmake: Path, variable: str) -> set[str]:
    text = re.sub(r"#.*", "", cmake.read_text(encoding="utf-8"))
    return set(re.search(rf"set\({variable}\s+(.*?)\)", text, re.S)[1].split())


def there(base: Path, *patterns: str) -> set[str]:
    found = {path for pattern in patterns for path in base.glob(pattern) if path.is_file()}
    return {path.relative_to(base).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    ("base", "variable", "patterns"),
    [
        (MODULE, "MODULE_PYTHON_SCRIPTS", ("**/*.py",)),
        (MODULE, "MODULE_PYTHON_RESOURCES", ("Resources/**/*",)),
        (ROOT, "MAPSEGLIB_SCRIPTS", ("MAPSegLib/**/*.py",)),
        (
            ROOT,
            "MAPSEGLIB_RESOURCES",
            ("Resources/Models/**/*", "MAPSegLib/**/*.json", "MAPSegLib/**/py.typed"),
        ),
    ],
)
def test_every_file_is_packaged(base, variable, patterns):
    """A file that CMake is not told of is missing from the extension, without a word."""
    assert listed(base / "CMakeLists.txt", variable) == there(base, *patterns)


def test_no_loose_script_lies_beside_the_module():
    """Slicer would take it for another module."""
    assert there(MODULE, "*.py") == {"MAPSeg.py"}


def test_catalogue_entries_say_the_same():
    entry = json.loads((ROOT / "MAPSeg.json").read_text(encoding="utf-8"))
    lines = [
        line
        for line in (ROOT / "MAPSeg.s4ext").read_text(encoding="utf-8").splitlines()
        if line and line[0] != "#"
    ]
    old = dict((line.split(" ", 1) + [""])[:2] for line in lines)
    cmake = dict(
        re.findall(r'set\(EXTENSION_(\w+) "([^"]*)"\)', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    )
    assert entry["category"] == old["category"] == "Segmentation"
    assert entry["scm_url"] == old["scmurl"] and entry["scm_revision"] == old["scmrevision"]
    assert entry["build_dependencies"] == old["depends"].split() == cmake["DEPENDS"].split()
    assert entry["build_subdirectory"] == old["build_subdirectory"]
    for key in ("homepage", "contributors", "description", "iconurl", "screenshoturls"):
        assert old[key] == cmake[key.upper()], key
    wanted = {
        "$schema",
        "build_dependencies",
        "build_subdirectory",
        "category",
        "scm_revision",
        "scm_url",
        "tier",
    }
    assert set(entry) == wanted and "clinical" in old["description"]


def test_pictures_of_the_catalogue_exist():
    text = (ROOT / "MAPSeg.s4ext").read_text(encoding="utf-8")
    for url in re.findall(r"https://raw\S+\.png", text):
        path = ROOT / url.split("/main/")[1]
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", path
    icon = (MODULE / "Resources" / "Icons" / "MAPSeg.png").read_bytes()
    assert struct.unpack(">II", icon[16:24]) == (128, 128)


def imports(path: Path, anywhere: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def test_the_module_imports_only_what_slicer_has():
    later = {"SampleData", "PyTorchUtils"}
    for path in MODULE.rglob("*.py"):
        assert imports(path, anywhere=False) <= ALLOWED, path
        assert imports(path, anywhere=True) <= ALLOWED | later, path


def test_what_the_panel_refuses_can_be_translated():
    """A sentence that goes through no translator is told as it stands; a terminal is told all in English."""
    terminal = {"batch.py", "cases.py", "console.py"}
    for path in (MODULE / "MAPSegModule").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            told = []
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and path.name not in terminal:
                told = (
                    node.exc.args
                    if ast.unparse(node.exc.func) in ("InputError", "OSError", "ValueError")
                    else []
                )
            elif isinstance(node, ast.FunctionDef) and node.name == "problem":
                told = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
            for each in told:
                fixed = isinstance(each, ast.JoinedStr) or (isinstance(each, ast.Constant) and each.value)
                assert not fixed, f"{path.name}:{each.lineno}"


def test_only_the_panels_files_know_qt():
    """What a script or the console runs has to work without a window."""
    known = {
        path.stem for path in (MODULE / "MAPSegModule").glob("*.py") if imports(path, False) & {"qt", "ctk"}
    }
    plain = {
        "signal",
        "models",
        "parameters",
        "job",
        "queue",
        "images",
        "scene",
        "run",
        "preflight",
        "console",
    }
    plain |= {"dependencies", "batch", "cases", "selftest", "samples", "workfiles"}
    assert not known & plain


def test_the_backends_light_parts_need_the_standard_library_and_numpy_alone():
    code = (
        "import sys, MAPSegLib.model_files, MAPSegLib.formats, MAPSegLib.levels, MAPSegLib.errors;"
        "heavy = {'torch', 'pydantic', 'nibabel', 'scipy', 'SimpleITK', 'safetensors'} & set(sys.modules);"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_requirements_are_the_packages_own():
    """With the lower bounds of the package, without what Slicer brings and PyTorch, which the extension brings."""
    try:
        declared = metadata.requires("mapseg") or []
    except metadata.PackageNotFoundError:
        pytest.skip("needs the package installed")
    wanted = {line.split(";")[0].strip() for line in declared if "extra" not in line}
    lines = (MODULE / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = {line for line in lines if line and line[0] != "#"}
    assert asked <= wanted
    torch = re.search(
        r'TORCH = "(.*)"', (MODULE / "MAPSegModule" / "dependencies.py").read_text(encoding="utf-8")
    )[1]
    assert torch in wanted
    left = {re.match(r"[\w-]+", line)[0].lower() for line in wanted - asked}
    assert left == {"numpy", "scipy", "simpleitk", "pydicom", "torch", "rich", "typer"}
