"""The panel's list of volumes: which to segment, whether they fit the model, and how far each one is."""

from __future__ import annotations

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from . import run as runs
from . import texts
from .images import transform_above
from .models import ModelEntry
from .preflight import Preflight, preflight
from .scene import UNCERTAINTY
from .signal import Signal

_NAME, _SCAN, _STATE = range(3)
_ROW = 24
"""Least height of a row, in pixels."""
SETTLED_MS = 300
"""For so long after its last change a volume is left alone: one that plays a sequence changes many times a second."""


class VolumeSection(slicer.util.VTKObservationMixin):
    """Follows the scene's volumes; ``changed`` tells that other ones are checked, or that more is known of them."""

    def __init__(self, ui):
        super().__init__()
        self.ui = ui
        self.changed = Signal()
        self._entry: ModelEntry | None = None
        self._checked: set[str] = set()
        self._offered = ""
        """The volume that was checked because there was no other, until its box is touched or it is segmented."""
        self._seen: set[str] = set()
        self._watched: dict[str, list[int]] = {}
        """Observers of volumes. The mixin would keep the nodes, voxels and all, when they have left the scene."""
        # Both with the voxels that they are of; flights with the transform above them, states with the labels, too.
        self._flights: dict[tuple[str, str], tuple[tuple, Preflight]] = {}
        self._states: dict[str, tuple[tuple, str, tuple[str, str, str]]] = {}
        self._at_work: set[str] = set()
        """Volumes of a run that goes on: their states stay, whatever happens to their boxes."""
        self._rows: list[str] = []
        table = ui.volumeTable
        table.setColumnCount(3)
        table.setHorizontalHeaderLabels([_("Volume"), _("Scan"), _("State")])
        header = table.horizontalHeader()
        header.setSectionResizeMode(_NAME, qt.QHeaderView.Stretch)
        for column in (_SCAN, _STATE):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.setHighlightSections(False)
        table.verticalHeader().setVisible(False)
        table.connect("cellChanged(int,int)", self._cell_changed)
        table.connect("currentCellChanged(int,int,int,int)", self._cell_chosen)
        self._all = qt.QCheckBox(header)  # in the place of the boxes below it
        self._all.toolTip = _("Check all volumes, or none.")
        self._all.adjustSize()
        self._all.connect("clicked()", self._check_all)
        qt.QWidget.setTabOrder(ui.removeModelButton, self._all)
        # The scene tells of a node before it has a name and voxels: look when the application is idle again.
        self._later = self._idle(0, self.refresh)
        self._settled = self._idle(SETTLED_MS, self.refresh)
        self._next = self._idle(0, self._look_at_one)
        scene = slicer.mrmlScene
        for event in (scene.NodeAddedEvent, scene.EndImportEvent):
            self.addObserver(scene, event, self._scene_changed)
        self.addObserver(scene, scene.NodeRemovedEvent, self._node_removed)
        self.addObserver(scene, scene.EndCloseEvent, self._scene_closed)

    def _idle(self, milliseconds: int, function) -> qt.QTimer:
        timer = qt.QTimer()
        timer.setSingleShot(True)
        timer.setInterval(milliseconds)
        timer.connect("timeout()", function)
        return timer

    def close(self) -> None:
        """Let go of the scene."""
        for timer in (self._later, self._settled, self._next):
            timer.stop()
        for node_id in list(self._watched):
            self._let_go(slicer.mrmlScene.GetNodeByID(node_id))
        self.removeObservers()

    def _let_go(self, node) -> None:
        """Of a node that leaves the scene, and may come back by an undo, or be kept by a script."""
        for tag in self._watched.pop(node.GetID(), ()) if node is not None else ():
            node.RemoveObserver(tag)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _scene_changed(self, caller, event, node=None) -> None:
        if node is None or node.IsA("vtkMRMLVolumeNode"):
            self._later.start()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _node_removed(self, caller, event, node=None) -> None:
        self._let_go(node)
        self._scene_changed(caller, event, node)
        if node is not None and node.GetID() in (labels for _voxels, labels, _state in self._states.values()):
            self._later.start()

    def _scene_closed(self, caller, event) -> None:
        """Forget all volumes at once: those of a scene that is loaded next may get the same IDs before it is idle."""
        self._offered = ""
        for known in (self._watched, self._checked, self._seen, self._flights, self._states, self._rows):
            known.clear()
        self._at_work.clear()
        self._later.start()

    def nodes(self) -> list:
        """The volumes that can be segmented, in the scene's order."""
        return [node for node in _volumes() if node.GetClassName() == "vtkMRMLScalarVolumeNode"]

    def unsuited(self) -> str:
        """Why there are volumes and none that can be segmented; empty where that is not so."""
        if self.nodes() or not _volumes():
            return ""
        return _(
            "The volumes in the scene are colour, vector or label volumes; "
            "MAPSeg needs a scan with one intensity per voxel."
        )

    def checked_nodes(self) -> list:
        """The volumes to segment."""
        return [node for node in self.nodes() if node.GetID() in self._checked]

    def problems(self) -> dict[str, str]:
        """Why checked volumes cannot be segmented, by node ID, as far as they were looked at."""
        flights = {node.GetID(): self._flight(node) for node in self.checked_nodes()}
        return {node_id: flight.problem for node_id, flight in flights.items() if flight and flight.problem}

    def set_model(self, entry: ModelEntry | None, running: bool = False) -> None:
        """Judge the volumes by another model; unless a run goes on, what an earlier one said of them is over."""
        if not running and (entry and entry.path) != (self._entry and self._entry.path):
            self._states.clear()
        self._entry = entry
        self.refresh()

    def refresh(self) -> None:
        """Read the list from the scene anew."""
        nodes = self.nodes()
        there = {node.GetID() for node in nodes}
        fresh = [node_id for node_id in there if node_id not in self._seen]
        if len(there) == 1 and fresh:  # there is nothing to choose
            self._offered = fresh[0]
            self._checked.add(self._offered)
        elif len(there) > 1 and self._offered:  # it came first, of several: there is something to choose
            self._checked.discard(self._offered)
            self._offered = ""
        self._seen = there
        self._checked &= there
        self._states = {node_id: state for node_id, state in self._states.items() if node_id in there}
        self._flights = {key: flight for key, flight in self._flights.items() if key[0] in there}
        for node in nodes:
            if node.GetID() not in self._watched:
                events = (vtk.vtkCommand.ModifiedEvent, node.TransformModifiedEvent)
                self._watched[node.GetID()] = [node.AddObserver(each, self._node_modified) for each in events]
        table = self.ui.volumeTable
        table.blockSignals(True)
        table.setRowCount(len(nodes))
        height = max(_ROW, table.fontMetrics().height() + 6)  # Slicer lets users choose the size of letters
        table.verticalHeader().setDefaultSectionSize(height)
        head = table.horizontalHeader().sizeHint.height()
        table.setFixedHeight(height * min(6, max(2, len(nodes))) + head + 4)
        self._all.move(3, (head - self._all.sizeHint.height()) // 2)
        self._rows = [node.GetID() for node in nodes]
        for row, node in enumerate(nodes):
            name = qt.QTableWidgetItem(node.GetName())
            name.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable | qt.Qt.ItemIsUserCheckable)
            name.setCheckState(qt.Qt.Checked if node.GetID() in self._checked else qt.Qt.Unchecked)
            name.setToolTip(texts.literal(node.GetName()))
            table.setItem(row, _NAME, name)
            for column in (_SCAN, _STATE):
                table.setItem(row, column, qt.QTableWidgetItem(""))
            self._describe(row, node)
        if nodes and table.currentRow() < 0:
            table.setCurrentCell(0, _NAME)
        table.blockSignals(False)
        self._show_box()
        self._show_hint()
        self._next.start()
        self.changed.emit()

    def point_at(self, volume_id: str) -> None:
        """Highlight a volume; what is said below the list is of that one."""
        if volume_id in self._rows:
            self.ui.volumeTable.setCurrentCell(self._rows.index(volume_id), _NAME)

    def set_state(self, item: runs.Item, explain: bool = True) -> None:
        """Show how far a volume of a run is; ``explain`` also says below the list why it failed, once selected."""
        self._offered = ""
        busy = item.state in (runs.WAITING, runs.RUNNING)
        (self._at_work.add if busy else self._at_work.discard)(item.volume_id)
        marks = {
            runs.WAITING: ("…", "", _("waiting")),
            runs.RUNNING: ("●", texts.BUSY, _("running")),
            runs.DONE: ("✓", texts.GOOD, _("done")),
            runs.FAILED: ("✗", texts.BAD, _("failed")),
            runs.CANCELLED: ("–", "", _("cancelled")),
        }
        mark, color, word = marks[item.state]
        if item.state == runs.DONE and item.result.get("trusted") is False:
            mark, color, word = "!", texts.WARNING, _("doubtful")
        node = slicer.mrmlScene.GetNodeByID(item.volume_id)
        if node is None:
            return
        voxels = _voxels(node)
        if item.state in (runs.RUNNING, runs.DONE):  # the run has those of its start
            voxels = self._states.get(item.volume_id, (voxels,))[0]
        labels = item.segmentation_id if item.state == runs.DONE else ""
        told = (f"{mark} {word}", color, item.message if explain else "")
        self._states[item.volume_id] = voxels, labels, told
        self._describe_again(node)

    def _node_modified(self, node, event) -> None:
        if node.GetID() in self._rows:
            row = self._rows.index(node.GetID())
            known = self.ui.volumeTable.item(row, _NAME)
            if known is None or known.text() != node.GetName() or self._flight(node) is None:
                self._settled.start()

    def _key(self, node) -> tuple[str, str]:
        return node.GetID(), str(self._entry.path) if self._entry else ""

    def _flight(self, node) -> Preflight | None:
        place, flight = self._flights.get(self._key(node), (None, None))
        return flight if place == _place(node) else None

    def _state(self, node) -> tuple[str, str, str] | None:
        """What a run says of the volume, as long as its voxels are those of the run, and its result is there."""
        voxels, labels, state = self._states.get(node.GetID(), (None, "", None))
        gone = labels and slicer.mrmlScene.GetNodeByID(labels) is None
        return state if voxels == _voxels(node) and not gone else None

    def _look_at_one(self) -> None:
        """Look at one volume that was not looked at yet, so that the window stays quick with many of them."""
        if self._entry is None:
            return
        waiting = [node for node in self.nodes() if self._flight(node) is None]
        if not waiting:
            return
        node = waiting[0]
        self._flights[self._key(node)] = _place(node), preflight(node, self._entry)
        self._describe_again(node)
        self.changed.emit()
        if len(waiting) > 1:
            self._next.start()

    def _describe_again(self, node) -> None:
        if node.GetID() in self._rows:
            self.ui.volumeTable.blockSignals(True)
            self._describe(self._rows.index(node.GetID()), node)
            self.ui.volumeTable.blockSignals(False)
            self._show_hint()

    def _describe(self, row: int, node) -> None:
        flight = self._flight(node)
        scan, state = (self.ui.volumeTable.item(row, column) for column in (_SCAN, _STATE))
        text, color, tip = "", "", ""
        if flight is not None:
            scan.setText(_scan_text(flight))
            scan.setToolTip(texts.literal(flight.summary))
            if flight.problem:
                text, color, tip = "✗ " + _("unusable"), texts.BAD, flight.problem
            elif flight.foreign:
                text, color, tip = "! " + _("foreign"), texts.WARNING, flight.advice
            else:
                text = _("ready")
        text, color, tip = self._state(node) or (text, color, tip)
        state.setText(text)
        state.setToolTip(texts.literal(tip))
        state.setData(qt.Qt.ForegroundRole, qt.QBrush(qt.QColor(color)) if color else None)

    def _show_hint(self, *_cell: int) -> None:
        row = self.ui.volumeTable.currentRow()
        node = slicer.mrmlScene.GetNodeByID(self._rows[row]) if 0 <= row < len(self._rows) else None
        flight = self._flight(node) if node is not None else None
        told = self._state(node) if node is not None else None
        if not self._rows:
            text = self.unsuited() or _(
                "There is no volume in the scene yet. Load one, or take one from Sample Data."
            )
        elif flight is None:
            text = ""
        elif told and told[2]:
            text = texts.rich(f"{node.GetName()}: {told[2]}")
        elif flight.problem:
            text = texts.marked(texts.BAD, "✗", f"{node.GetName()}: {flight.problem}")
        else:
            text = texts.rich(f"{node.GetName()}: {flight.summary}")
            if flight.advice and not told:  # of one that was run, what to do before is no news
                text += "<br>" + texts.marked(texts.WARNING, "!", flight.advice)
        self.ui.volumeHintLabel.text = text
        self.ui.volumeHintLabel.setVisible(bool(text))

    def _cell_changed(self, row: int, column: int) -> None:
        if column != _NAME or row >= len(self._rows):
            return
        on = self.ui.volumeTable.item(row, _NAME).checkState() == qt.Qt.Checked
        (self._checked.add if on else self._checked.discard)(self._rows[row])
        self._offered = ""
        self._forget({self._rows[row]})
        self._show_box()
        self.changed.emit()

    def _cell_chosen(self, row: int, column: int, *_before: int) -> None:
        if column > _NAME:  # where the space bar would check nothing
            self.ui.volumeTable.setCurrentCell(row, _NAME)
        else:
            self._show_hint()

    def _check_all(self) -> None:
        """Check all volumes; none, where all are checked."""
        before, rows = self._checked, set(self._rows)
        self._checked, self._offered = set() if rows <= before else rows, ""
        self._forget(before ^ self._checked)
        self.refresh()

    def _forget(self, touched: set[str]) -> None:
        """What an earlier run said of volumes is over as soon as their boxes are touched."""
        for node_id in touched - self._at_work:
            self._states.pop(node_id, None)

    def _show_box(self) -> None:
        """Say at the head of the list whether all volumes are checked, some, or none."""
        some = qt.Qt.PartiallyChecked if self._checked else qt.Qt.Unchecked
        self._all.setCheckState(qt.Qt.Checked if self._checked >= set(self._rows) else some)
        self._all.setVisible(len(self._rows) > 1)


def _volumes() -> list:
    """All volumes of the scene that users see, but uncertainty maps."""
    return [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLVolumeNode")
        if not node.GetHideFromEditors() and not node.GetAttribute(UNCERTAINTY)
    ]


def _voxels(node) -> tuple:
    """Changes with the voxels of a volume, and with their size."""
    image = node.GetImageData()
    return image.GetMTime() if image else 0, *(round(each, 6) for each in node.GetSpacing())


def _place(node) -> tuple:
    """Changes with the voxels, and with the transforms above the volume."""
    matrix = transform_above(node)
    return *_voxels(node), node.GetTransformNodeID() if matrix is None else matrix.tobytes()


def _scan_text(flight: Preflight) -> str:
    if not any(flight.spacing):  # it was refused before that was asked
        return ""
    spacing = " × ".join(f"{each:.1f}".removesuffix(".0") for each in flight.spacing)
    if len({f"{each:.1f}" for each in flight.spacing}) == 1:
        spacing = f"{flight.spacing[0]:.1f}".removesuffix(".0")
    return f"{flight.modality.upper()} {spacing} mm".strip()
