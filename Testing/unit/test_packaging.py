"""What an installation must hold, and what importing it must not cost."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import pytest

import MAPSegLib
from MAPSegLib.synthesis import brain_labels

ROOT = Path(__file__).parents[2]
PACKAGE = Path(MAPSegLib.__file__).parent
OPTIONAL = {"demo": {"matplotlib", "nilearn"}, "federated": {"cryptography", "nvflare", "psutil"}}
"""What the extras bring."""
HEAVY = {"torch", "nibabel", "SimpleITK", "scipy", "matplotlib"}


def imported(folder: Path) -> set[str]:
    """Top-level names that the modules of a folder import, anywhere in them, beside the standard library."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"MAPSegLib"}


def declared(extra: str | None) -> Iterator[str]:
    """Names of the required distributions: of the package itself, or of one extra."""
    for requirement in metadata.requires("mapseg") or []:
        condition = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if (condition.group(1) if condition else None) == extra:
            yield re.match(r"[\w-]+", requirement).group().lower()


@pytest.fixture(scope="module")
def distribution() -> metadata.Distribution:
    try:
        return metadata.distribution("mapseg")
    except metadata.PackageNotFoundError:
        pytest.skip("needs the package installed (pip install '.[test]')")


def test_version_is_the_packages(distribution):
    assert distribution.version == MAPSegLib.__version__


def test_dependencies_are_those_imported(distribution):
    names = imported(PACKAGE)
    optional = set().union(*OPTIONAL.values())
    assert {n.lower() for n in names - optional} == set(declared(None))
    for extra, known in OPTIONAL.items():
        assert {n.lower() for n in names & known} == set(declared(extra))


def test_the_command_is_installed(distribution):
    (command,) = (e for e in distribution.entry_points if e.group == "console_scripts")
    assert (command.name, command.value) == ("mapseg", "MAPSegLib.cli:main")
    assert callable(command.load())


def test_licence_is_apache(distribution):
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    text = (ROOT / "LICENSE.txt").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("name", ["brain_labels.json", "brain_priors.json"])
def test_tables_travel_with_the_package(name):
    assert (files("MAPSegLib") / "tables" / name).is_file()


def test_every_file_of_the_models_folder_is_reachable():
    installed = PACKAGE / "_models"
    folder = installed if installed.is_dir() else PACKAGE.parent / "Resources" / "Models"
    assert {p.name for p in folder.iterdir()} == {p.name for p in (ROOT / "Resources" / "Models").iterdir()}


def test_embedded_models_weigh_little():
    """They come with every checkout, and with the extension."""
    assert sum(path.stat().st_size for path in (ROOT / "Resources" / "Models").iterdir()) <= 25e6


@pytest.mark.parametrize("module", ["", ".errors", ".cli", ".config", ".jobs"])
def test_light_modules_stay_light(module):
    unwanted = HEAVY if module in (".config", ".jobs") else HEAVY | {"pydantic", "numpy"}
    code = f"import sys, MAPSegLib{module}; print(*sorted(set(sys.modules) & {unwanted!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout.strip() == ""


def test_no_version_of_pydantic_warns_of_a_name():
    """Before 2.10 it warns of every field that begins as its own names do, on the user's terminal."""
    from pydantic import BaseModel

    from MAPSegLib import jobs, manifests  # noqa: F401
    from MAPSegLib.tasks import evaluation, review  # noqa: F401

    known = [BaseModel]
    for each in known:
        known += each.__subclasses__()
        if each.__module__.startswith("MAPSegLib") and each.model_config.get("protected_namespaces") != ():
            assert not [name for name in each.model_fields if name.startswith("model_")], each


def test_no_line_of_a_help_text_ends_early():
    from typer.main import get_command

    from MAPSegLib.cli import app

    groups = [get_command(app)]
    for group in groups:
        for name, command in group.commands.items():
            groups += [command] if hasattr(command, "commands") else []
            later = (command.help or "").split("\n\n")[1:]  # where typer keeps the ends of the source's lines
            assert not [text for text in later if "\n" in text.strip()], name


def test_commands_in_the_documents_exist():
    from typer.main import get_command

    from MAPSegLib.cli import app

    commands = {}
    for name, command in get_command(app).commands.items():
        parts = getattr(command, "commands", None)
        commands |= {f"{name} {part}": parts[part] for part in parts} if parts else {name: command}
    told = set()
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Resources/Models/README.md")]
    for document in [*named, *(ROOT / "Docs").glob("*.md")]:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for command, rest in re.findall(r"\bmapseg ((?:federate )?[a-z]+)([^\n`]*)", text):
            assert command in commands, command
            known = {option for parameter in commands[command].params for option in parameter.opts}
            given = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest.split("#")[0]))
            assert given <= known | {"--help"}, f"mapseg {command}"
            told.add(command)
    assert told == set(commands)


def test_public_names_exist():
    for name in MAPSegLib.__all__:
        assert getattr(MAPSegLib, name) is not None


def test_brain_codes_are_well_formed_and_alike_on_both_sides():
    table = {label.value: label for label in brain_labels()}
    assert len(table) == len(brain_labels())
    for label in table.values():
        assert label.terminology is None or re.fullmatch(r"(SCT|DCM)\^\d+\^[^^]+", label.terminology)
        if label.mirror is not None:
            other = table[label.mirror]
            assert (other.mirror, other.terminology, other.color) == (
                label.value,
                label.terminology,
                label.color,
            )
            (side, name), (other_side, other_name) = (one.name.split(" ", 1) for one in (label, other))
            assert name == other_name and {side, other_side} == {"left", "right"}


def test_brain_codes_are_dicoms():
    """Sampled from DICOM PS3.16, CID 7140 and 7153; one wrong digit would name another organ."""
    codes = {label.value: label.terminology for label in brain_labels()}
    assert codes[5] == "SCT^53118009^Inferior Horn of Lateral Ventricle"
    assert codes[8] == "SCT^25991003^Cerebellar Cortex"
    assert codes[16] == "SCT^119238007^Brain Stem"
    assert codes[17] == "SCT^5366008^Hippocampus"
    assert codes[28] == "DCM^110700^Ventral Diencephalon"


def test_no_file_knows_the_machine_it_was_written_on():
    folders = [PACKAGE, ROOT / "Testing", ROOT / "Benchmarks", ROOT / ".ci"]
    pattern = re.compile(r"(?<![\w.])/(?:home|work|root|Users|mnt)/\w")
    for path in (
        p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".json", ".md", "")
    ):
        if path.is_file() and path != Path(__file__):
            assert not pattern.search(path.read_text(encoding="utf-8")), path
