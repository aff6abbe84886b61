"""The table of structures: colour, name, volume and confidence of each."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from . import texts
from .item import Item
from .result_texts import is_number, numbers

_COLOR, _STRUCTURE, _VOLUME, _CONFIDENCE = range(4)
_DOUBTFUL = 0.7
"""A confidence below this is marked."""


def prepare(table) -> None:
    """Give a table widget its columns."""
    table.setColumnCount(4)
    table.setHorizontalHeaderLabels(_header(_("Structure")))
    header = table.horizontalHeader()
    for column in (_COLOR, _VOLUME, _CONFIDENCE):
        header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
    header.setSectionResizeMode(_STRUCTURE, qt.QHeaderView.Stretch)
    header.setHighlightSections(False)
    table.verticalHeader().setVisible(False)


def clear(table) -> None:
    """Show no result."""
    table.setRowCount(0)
    table.setHorizontalHeaderLabels(_header(_("Structure")))


def fill(table, item: Item) -> None:
    """Show the numbers of the result that an item shows."""
    rows = item.report.get("structures", [])
    table.setHorizontalHeaderLabels(_header(_("Structure ({model})").format(model=item.model)))
    colors = _segment_colors(item.segmentation_id)
    table.verticalHeader().setDefaultSectionSize(max(22, table.fontMetrics().height() + 4))
    table.setRowCount(len(rows))
    for index, row in enumerate(rows):
        cells = [qt.QTableWidgetItem(text) for text in ("", row["structure"], *numbers(row))]
        color = colors.get(row["structure"])
        if color:
            cells[_COLOR].setIcon(_swatch(color))
        cells[_STRUCTURE].setToolTip(texts.literal(row["structure"]))
        for cell in cells[_VOLUME:]:
            cell.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
        confidence = row.get("confidence")
        if is_number(confidence) and confidence < _DOUBTFUL:
            cells[_CONFIDENCE].setData(qt.Qt.ForegroundRole, qt.QBrush(qt.QColor(texts.WARNING)))
            cells[_CONFIDENCE].setToolTip(_("The model was not sure of this structure: look at it."))
        for column, cell in enumerate(cells):
            table.setItem(index, column, cell)


def _header(structure: str) -> list[str]:
    return ["", structure, _("Volume, ml"), _("Confidence")]


def _segment_colors(segmentation_id: str) -> dict[str, tuple[int, int, int]]:
    node = slicer.mrmlScene.GetNodeByID(segmentation_id)
    if node is None:
        return {}
    segments = node.GetSegmentation()
    found = (segments.GetNthSegment(index) for index in range(segments.GetNumberOfSegments()))
    return {each.GetName(): tuple(round(255 * part) for part in each.GetColor()) for each in found}


def _swatch(color: tuple[int, int, int]):
    """A square of a colour, framed: some structures are nearly white."""
    pixmap = qt.QPixmap(14, 14)
    pixmap.fill(qt.QColor(texts.QUIET))
    painter = qt.QPainter(pixmap)
    painter.fillRect(1, 1, 12, 12, qt.QColor(*color))
    painter.end()
    return qt.QIcon(pixmap)
