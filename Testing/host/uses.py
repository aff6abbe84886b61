"""Which parts of the application a module's source uses, read from the source itself, and which are not on record.

Reading finds what no test runs: branches for errors, and what another operating system would take. What a test runs
is held to the record by :mod:`.pythonqt` besides, object by object.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from . import record

PREFIXES = {
    "slicer.util": "python:slicer.util",
    "slicer.packaging": "python:slicer.packaging",
    "slicer.testing": "python:slicer.testing",
    "slicer.i18n": "python:slicer.i18n",
    "slicer.ScriptedLoadableModule": "python:slicer.ScriptedLoadableModule",
    "SampleData": "python:SampleData",
}
_SIGNATURE = re.compile(r"^\w+\([\w\s,*&<>:]*\)$")
_OWN_ATTRIBUTES = {"__init__", "__class__"}


def faults(path: Path, widgets: dict[str, str] | None = None) -> list[str]:
    """What a source file uses that is not on record, each with its line.

    Args:
        widgets: classes of the form's widgets by name, for uses of ``ui.NAME``.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [f"{path.name}:{line}: {text}" for line, text in _Reader(tree, widgets or {}).faults()]


def form_classes(path: Path) -> dict[str, str]:
    """The class of every named widget of a ``.ui`` file, as recorded: ``qt.QLabel``."""
    found = {}
    for widget in ElementTree.parse(path).iter("widget"):
        name = widget.get("class")
        prefix = "ctk" if name.startswith("ctk") else "slicer" if name.startswith("qMRML") else "qt"
        found[widget.get("name")] = f"{prefix}.{name}"
    return found


def form_faults(path: Path) -> list[str]:
    """Properties of a ``.ui`` file that its widgets do not have on record."""
    wrong = []
    classes = form_classes(path)
    for widget in ElementTree.parse(path).iter("widget"):
        owner = classes[widget.get("name")]
        if not record.known(owner):
            wrong.append(f"{path.name}: {owner} is not on record")
            continue
        for entry in widget.findall("property"):
            if entry.get("name") not in record.properties(owner):
                # A label's buddy is set by the form's loader through the method.
                if f"set{entry.get('name').capitalize()}" in record.members(owner):
                    continue
                wrong.append(f"{path.name}: {owner} {widget.get('name')} has no {entry.get('name')}")
    return wrong


class _Reader:
    def __init__(self, tree: ast.Module, widgets: dict[str, str]):
        self.tree, self.widgets = tree, widgets
        self.names: dict[str, str] = {}
        self.signals = frozenset().union(
            *(record.signals(name) for name, entry in record.record().items() if isinstance(entry, dict)
              and not name.startswith(("python:", "version")))
        )  # fmt: skip

    def faults(self) -> Iterator[tuple[int, str]]:
        parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module in PREFIXES:
                for alias in node.names:
                    self.names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    if alias.name != "*" and alias.name not in record.record()[PREFIXES[node.module]]:
                        yield node.lineno, f"{node.module}.{alias.name} is not on record"
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and not isinstance(parents.get(node), ast.Attribute):
                yield from self._chain(node)
            elif isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, (ast.Assign, ast.AugAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    yield from self._assigned(target)

    def _owner(self, parts: list[str]) -> tuple[str, list[str]] | None:
        """The recorded class that a dotted name begins with, and what follows."""
        if parts[0] in ("qt", "ctk") and len(parts) > 1:
            return f"{parts[0]}.{parts[1]}", parts[2:]
        if parts[0] == "slicer" and len(parts) > 1:
            if parts[1].startswith("qMRML"):
                return f"slicer.{parts[1]}", parts[2:]
            if parts[1] in ("app", "modules"):
                return f"slicer.{parts[1]}", parts[2:]
        if parts[0] == "self" and parts[1:2] == ["ui"]:
            parts = parts[1:]
        if parts[0] == "ui" and len(parts) > 1 and self.widgets:
            return self.widgets.get(parts[1], f"ui.{parts[1]}"), parts[2:]
        return None

    def _chain(self, node: ast.Attribute) -> Iterator[tuple[int, str]]:
        parts = _parts(node)
        if not parts:
            return
        for length in (2, 1):
            module = ".".join(parts[:length])
            if module in PREFIXES and len(parts) > length:
                if parts[length] not in record.record()[PREFIXES[module]]:
                    yield node.lineno, f"{module}.{parts[length]} is not on record"
                return
        found = self._owner(parts)
        if found is None:
            return
        owner, rest = found
        if not record.known(owner):
            yield node.lineno, f"{owner} is not on record"
        elif owner == "slicer.modules" and rest and rest[0].lower().startswith("mapseg"):
            return  # this module itself, its widget and its instance
        elif rest and rest[0] not in record.members(owner) | _OWN_ATTRIBUTES:
            yield node.lineno, f"{owner}.{rest[0]} is not on record"

    def _call(self, node: ast.Call) -> Iterator[tuple[int, str]]:
        keywords = {keyword.arg for keyword in node.keywords if keyword.arg}
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("connect", "disconnect"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield from self._signal(node, first.value)
        name = ".".join(_parts(node.func)) if isinstance(node.func, ast.Attribute) else ""
        name = name or self.names.get(getattr(node.func, "id", ""), "")
        module, _, function = name.rpartition(".")
        if module in PREFIXES and function in record.record()[PREFIXES[module]]:
            allowed = record.parameters(PREFIXES[module].removeprefix("python:"), function)
            if allowed is not None:
                for keyword in sorted(keywords - allowed):
                    yield node.lineno, f"{name} takes no {keyword}"
        elif keywords and name.split(".")[0] in ("qt", "ctk"):
            yield node.lineno, f"{name} takes no keywords"

    def _signal(self, node: ast.Call, signature: str) -> Iterator[tuple[int, str]]:
        parts = _parts(node.func.value)
        found = self._owner(parts) if parts else None
        if not _SIGNATURE.match(signature):
            yield node.lineno, f"{signature!r} is no signal's signature"
        elif found and not found[1] and found[0] == "slicer.app":
            if signature.partition("(")[0] not in record.members("slicer.app"):
                yield node.lineno, f"slicer.app has no signal {signature} on record"
        elif found and not found[1] and record.known(found[0]):
            if signature not in record.signals(found[0]):
                yield node.lineno, f"{found[0]} has no signal {signature} on record"
        elif signature not in self.signals:
            yield node.lineno, f"no class on record has a signal {signature}"

    def _assigned(self, target: ast.expr) -> Iterator[tuple[int, str]]:
        parts = _parts(target) if isinstance(target, ast.Attribute) else []
        found = self._owner(parts) if parts else None
        if found and len(found[1]) == 1 and record.known(found[0]):
            owner, (name,) = found
            entry = record.record()[owner]
            listed = isinstance(entry, dict) and entry.get("properties") is not None
            if listed and name not in record.properties(owner):
                yield target.lineno, f"{owner}.{name} is no property, and cannot be assigned"


def _parts(node: ast.expr) -> list[str]:
    """``a.b.c`` as a list; empty when it does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else []
