"""What the running application really offers, by class: read from ``slicer_api.json``.

The record was read off Slicer 5.12.3 (Qt 5.15.8). ``slicer_api.json`` here is that record cut down to what a module
may want; ``python -m Testing.host.record FULL.json`` cuts it anew.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path

PATH = Path(__file__).with_name("slicer_api.json")
_KEPT = r"""
version | slicer\.(app|modules) | slicer\.app\.layoutManager\(\)
| python:(SampleData | slicer\.(util | packaging | testing | i18n | ScriptedLoadableModule))
| ctk\.ctk(CollapsibleButton | CollapsibleGroupBox | ComboBox | SearchBox | MessageBox | PathLineEdit | DirectoryButton)
| slicer\.qMRML(Widget | PlotView | PlotWidget | SegmentationShow3DButton | NodeComboBox)
| qt\.Q(Qt | Object | Widget | Timer | Settings | Application | CoreApplication | Clipboard | DesktopServices | Url
  | AbstractButton | PushButton | ToolButton | RadioButton | CheckBox | ComboBox | SpinBox | DoubleSpinBox | LineEdit
  | Label | Frame | GroupBox | ProgressBar | ScrollArea | Splitter | StackedWidget | Dialog | MessageBox | FileDialog
  | InputDialog | AbstractItemView | ListWidget | ListWidgetItem | TableWidget | TableWidgetItem | TreeWidget
  | TreeWidgetItem | HeaderView | Menu | Action | ButtonGroup | VBoxLayout | HBoxLayout | FormLayout | GridLayout
  | Color | Brush | Palette | Font | Icon | Pixmap | Painter | Size | Point | Rect | Style | Event | ModelIndex
  | KeySequence)
| qt\.Qt"""
"""Names of the entries that a module of this kind may want."""


@cache
def record() -> dict:
    return json.loads(PATH.read_text(encoding="utf-8"))


def known(name: str) -> bool:
    """Whether a class (``qt.QLabel``), module or application object is on record."""
    return name in record()


@cache
def members(name: str) -> frozenset[str]:
    """Every attribute of a class, those it inherits included."""
    entry = record()[name]
    if isinstance(entry, list):
        return frozenset(entry)
    inherited = members(entry["extends"]) if entry.get("extends") else frozenset()
    return inherited | set(entry["members"]) | set(entry.get("properties") or ())


@cache
def properties(name: str) -> frozenset[str]:
    """The attributes of a class that are values, not methods."""
    entry = record()[name]
    inherited = properties(entry["extends"]) if entry.get("extends") else frozenset()
    return inherited | set(entry.get("properties") or ())


@cache
def signals(name: str) -> frozenset[str]:
    """Signatures of a class's signals, as ``clicked(bool)``."""
    entry = record()[name]
    inherited = signals(entry["extends"]) if entry.get("extends") else frozenset()
    return inherited | set(entry.get("signals") or ())


@cache
def parameters(module: str, function: str) -> frozenset[str] | None:
    """Names of a function's parameters; None when it takes any keyword."""
    signature = record()[f"python:{module}"][function]
    if isinstance(signature, dict):
        signature = signature["methods"].get("__init__", "(self)")
    if "**" in signature:
        return None
    inside = signature[signature.index("(") + 1 :]
    # Commas inside brackets part no parameters.
    while (flat := re.sub(r"\[[^\[\]]*\]|\{[^{}]*\}|'[^']*'|\([^()]*\)|<[^<>]*>", "", inside)) != inside:
        inside = flat
    names = (part.split(":")[0].split("=")[0].strip() for part in inside.split(")")[0].split(","))
    return frozenset(name for name in names if name.isidentifier())


def trim(full: Path) -> None:
    """Write the part of the full record that is kept here."""
    content = json.loads(full.read_text(encoding="utf-8"))
    kept = {name: entry for name, entry in content.items() if re.fullmatch(_KEPT, name, re.VERBOSE)}
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(kept.items()))
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    trim(Path(sys.argv[1]))
