"""One volume of a run: how far it is, and what of it is in the scene."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from MAPSegLib.errors import InputError

from . import images, scene

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"


@dataclass(eq=False)
class Item:
    """One volume of a run."""

    volume_id: str
    name: str
    state: str = WAITING
    message: str = ""
    """Why it failed, or the verdict on it; one sentence."""
    segmentation_id: str = ""
    uncertainty_id: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    """What the worker's report says of it: structures, trusted, reason, notes, and for adaptations chosen and gate."""
    shown: str = ""
    """Which result the segmentation holds: ``preview``, ``source`` or ``adapted``."""
    model: str = ""
    """Name of the model that segments it."""
    card: dict[str, Any] = field(default_factory=dict, repr=False)
    file: str = ""
    label_state: tuple = ()
    """Of the segmentation's label maps when they were last put in, to tell edits by."""
    label_sums: dict[int, int] = field(default_factory=dict, repr=False)
    """Of the label map that was put in: a changed state is no edit as long as its voxels are there."""
    edited_state: tuple = ()
    """The last state whose voxels were found to be others, so as not to look at them again."""
    preview_name: str = ""
    """Of the segmentation node, until the result is there."""
    affine: np.ndarray | None = field(default=None, repr=False)
    """Of the volume when it was handed over: its label maps lie on that grid, wherever it is by now."""
    voxel_state: int = 0
    """Of the volume's voxels when they were handed over, later when the result came, to tell changes by."""

    @property
    def present_name(self) -> str:
        """The volume's name by now; ``name`` is the one that it had when it was handed over."""
        volume = slicer.mrmlScene.GetNodeByID(self.volume_id)
        return volume.GetName() if volume is not None else self.name

    @property
    def segmentation_name(self) -> str:
        """Of the segmentation node: no other one has it."""
        segmentation = slicer.mrmlScene.GetNodeByID(self.segmentation_id)
        return segmentation.GetName() if segmentation is not None else ""

    @property
    def files(self) -> dict[str, str]:
        """The label maps to switch between: ``source`` and, after an adaptation, ``adapted``."""
        if "adapted" in self.result:
            return {side: self.result[side]["output"] for side in ("source", "adapted")}
        return {"source": self.result["output"]} if self.result else {}

    @property
    def report(self) -> dict[str, Any]:
        """What the worker says of the result shown: of an adaptation it tells both."""
        side = self.result.get(self.shown)
        return side if isinstance(side, dict) else self.result

    @property
    def edited(self) -> bool:
        """Whether somebody changed the labels since they were put in."""
        segmentation = slicer.mrmlScene.GetNodeByID(self.segmentation_id)
        if segmentation is None:
            return False
        state = scene.label_state(segmentation)
        if state not in (self.label_state, self.edited_state):
            # A segment that users add shares the label map, and files are written with layers merged.
            same = scene.label_sums(segmentation) == self.label_sums
            self.label_state, self.edited_state = (state, ()) if same else (self.label_state, state)
        return state != self.label_state

    @property
    def worked_on(self) -> bool:
        """Whether the segmentation holds what users made: edits, or segments of their own."""
        segmentation = slicer.mrmlScene.GetNodeByID(self.segmentation_id)
        return self.edited or (segmentation is not None and bool(scene.users_segments(segmentation)))

    @property
    def volume_changed(self) -> bool:
        """Whether the volume's voxels are others by now."""
        volume = slicer.mrmlScene.GetNodeByID(self.volume_id)
        return volume is not None and scene.voxel_state(volume) != self.voxel_state

    @property
    def resized(self) -> bool:
        """Whether the volume's voxels have another size by now."""
        volume = slicer.mrmlScene.GetNodeByID(self.volume_id)
        if volume is None or self.affine is None:
            return False
        return not np.allclose(volume.GetSpacing(), images.spacing_of(self.affine), rtol=0.01)

    @property
    def apart(self) -> bool:
        """Whether volume and segmentation lie under different transforms: one of them was moved alone."""
        nodes = [slicer.mrmlScene.GetNodeByID(each) for each in (self.volume_id, self.segmentation_id)]
        return None not in nodes and len({node.GetTransformNodeID() for node in nodes}) > 1

    def show(self, which: str) -> None:
        """Put the result of the model as it was (``source``) or of the ``adapted`` one into the segmentation.

        Edits of the result shown are lost: see ``edited``.

        Raises:
            InputError: there is no such result, volume or segmentation left the scene, or the volume was resampled.
        """
        volume, segmentation = map(slicer.mrmlScene.GetNodeByID, (self.volume_id, self.segmentation_id))
        if which not in self.files or volume is None or segmentation is None:
            told = _("There is no {which} result of {name} to show.")
            raise InputError(told.format(which=which, name=self.name))
        if which != self.shown:
            try:
                self.put(images.read_labels(self.files[which]), volume, surfaces=True)
            except ValueError as error:
                told = _("{name} was resampled since: only the result shown fits it as it was.")
                raise InputError(told.format(name=self.present_name)) from error
            self.shown = which
            self.describe()

    def put(
        self, labels: images.Labels, volume, name: str = "", preview: bool = False, surfaces: bool = False
    ) -> None:
        """Put a label map into the segmentation, or into a new one of that name; see :func:`.scene.replace_labels`.

        Raises:
            ValueError: the label map is not on the volume's grid.
        """
        grid = None if self.volume_changed else self.affine  # other voxels may be those of a resampled volume
        node = slicer.mrmlScene.GetNodeByID(self.segmentation_id) if self.segmentation_id else None
        unique = slicer.mrmlScene.GenerateUniqueName
        if node is None:
            node = scene.load_labels(
                labels, volume, self.card, unique(f"{name} (preview)" if preview else name), grid
            )
            self.segmentation_id, self.preview_name = node.GetID(), node.GetName() if preview else ""
        else:
            scene.replace_labels(node, labels, volume, self.card, surfaces, grid, carry=not self.edited)
        if not preview and node.GetName() == self.preview_name:
            node.SetName(unique(name))
        self.label_state, self.label_sums = scene.label_state(node), labels.sums

    def save_labels(self, path: str | Path) -> None:
        """Write the segmentation in the format that the file's name asks for: :func:`.scene.export_segmentation`.

        Raises:
            OSError: it cannot be written so.
        """
        segmentation, volume = map(slicer.mrmlScene.GetNodeByID, (self.segmentation_id, self.volume_id))
        scene.export_segmentation(segmentation, volume, path)

    def describe(self) -> None:
        """Say on the segmentation node what it holds, so that a saved scene tells it, too."""
        segmentation = slicer.mrmlScene.GetNodeByID(self.segmentation_id)
        if self.shown == "preview":
            told = {"Preview": "yes", **dict.fromkeys(("Result", "Trusted", "Reason", "Notes"))}
        else:
            trusted = "yes" if self.report.get("trusted") else "no"
            reason = self.report.get("reason", "")
            notes = " ".join(self.report.get("notes", [])) or None
            told = {
                "Preview": None,
                "Result": self.shown,
                "Trusted": trusted,
                "Reason": reason,
                "Notes": notes,
            }
        scene.set_attributes(segmentation, {"Model": self.model, **told})
        doubt = _("Do not rely on it.") if told["Trusted"] == "no" else ""
        scene.describe(segmentation, " ".join(filter(None, (f"{self.model}.", doubt, told["Reason"]))))

    def withdraw(self) -> None:
        """Take back a preview that no result will follow: not what users put into it, and not one that they edited."""
        preview = slicer.mrmlScene.GetNodeByID(self.segmentation_id)
        if preview is not None and not self.worked_on:
            scene.remove(preview)
        elif preview is not None and not self.edited:
            scene.remove_model(preview)
        self.segmentation_id = ""
