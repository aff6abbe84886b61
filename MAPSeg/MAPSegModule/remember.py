"""Choices that last from one session to the next, in the application's settings.

Not in a parameter node, which is saved with its scene: device and folders are this computer's, and a scene of somebody
else's must not change them. Source scans are no such choice: hidden in a closed section, they would take part in the
adaptation of another model.
"""

from __future__ import annotations

import qt
import slicer

from .parameters import Parameters

_PREFIX = "MAPSeg/"


def recall(ui) -> str:
    """Put the choices of the last session into the form; returns the name of the model."""

    def value(name, default, kind):
        return slicer.util.settingsValue(_PREFIX + name, default, converter=kind)

    minutes = ui.minutesComboBox
    found = minutes.findData(value("Minutes", Parameters.minutes, _number))
    minutes.setCurrentIndex(found if found >= 0 else minutes.findData(Parameters.minutes))
    ui.uncertaintyCheckBox.checked = value("Uncertainty", False, slicer.util.toBool)
    ui.previewCheckBox.checked = value("Preview", True, slicer.util.toBool)
    ui.wheelFolderEdit.text = value("WheelFolder", "", str)
    ui.deviceComboBox.setCurrentIndex(max(0, ui.deviceComboBox.findData(value("Device", "auto", str))))
    ui.optionsSection.collapsed = value("OptionsCollapsed", True, slicer.util.toBool)
    return value("Model", "", str)


def remember(ui, model: str) -> None:
    """Keep the choices in the form for the next session."""
    settings = qt.QSettings()
    for name, value in (
        ("Minutes", ui.minutesComboBox.itemData(ui.minutesComboBox.currentIndex)),
        ("Uncertainty", ui.uncertaintyCheckBox.checked),
        ("Preview", ui.previewCheckBox.checked),
        ("WheelFolder", ui.wheelFolderEdit.text),
        ("Device", ui.deviceComboBox.itemData(ui.deviceComboBox.currentIndex)),
        ("OptionsCollapsed", ui.optionsSection.collapsed),
    ):
        settings.setValue(_PREFIX + name, value)
    if model:
        settings.setValue(_PREFIX + "Model", model)


def _number(value) -> float:
    """A converter that survives a settings file that somebody edited."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
