"""The widgets of CTK and of the application that the panel is built from, on PySide6.

They have the properties and signals that the module uses and draw themselves plainly, in the application's manner.
"""

from __future__ import annotations

import shiboken6
import slicer
from PySide6.QtCore import Property, QEvent, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPen
from PySide6.QtWidgets import (
    QComboBox,
    QFileDialog,
    QLineEdit,
    QMessageBox,
    QPushButton,
    QStyle,
    QStyleOption,
    QStyleOptionButton,
    QWidget,
)

from .pythonqt import dialogs

_SEGMENTS_CHANGED = (
    slicer.vtkSegmentation.SegmentAdded,
    slicer.vtkSegmentation.SegmentRemoved,
    slicer.vtkSegmentation.ContainedRepresentationNamesModified,
)


class ctkCollapsibleButton(QWidget):
    """A section under a button-like title; its children hide when it is collapsed."""

    contentsCollapsed = Signal(bool)
    toggled = Signal(bool)
    clicked = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self._set_margins()
        self.setFocusPolicy(Qt.StrongFocus)

    def title_height(self) -> int:
        return QFontMetrics(self.font()).height() + 8

    def _set_margins(self) -> None:
        self.setContentsMargins(0, self.title_height(), 0, 0)

    def _get_text(self) -> str:
        return self._text

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def childEvent(self, event) -> None:
        if event.added() and event.child().isWidgetType():
            event.child().setProperty("visibilityToParent", True)
            event.child().installEventFilter(self)
        super().childEvent(event)

    def eventFilter(self, child, event) -> bool:
        """As CTK: what a child is told while the section is closed counts when it opens again."""
        if event.type() == QEvent.ShowToParent:
            child.setProperty("visibilityToParent", True)
            if self._collapsed:
                self._quietly(child, False)
        elif event.type() == QEvent.HideToParent and not self._collapsed:
            child.setProperty("visibilityToParent", False)
        return super().eventFilter(child, event)

    def _quietly(self, child, visible: bool) -> None:
        before = child.property("visibilityToParent")
        child.setVisible(visible)
        child.setProperty("visibilityToParent", before)

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        for child in self.findChildren(QWidget, options=Qt.FindDirectChildrenOnly):
            self._quietly(child, not collapsed and bool(child.property("visibilityToParent")))
        self.setMaximumHeight(self.title_height() if collapsed else 16777215)
        self.updateGeometry()
        self.update()
        self.contentsCollapsed.emit(collapsed)
        self.toggled.emit(not collapsed)

    text = Property(str, _get_text, _set_text)
    collapsed = Property(bool, _get_collapsed, _set_collapsed)
    checked = Property(bool, lambda self: not self._collapsed, lambda self, on: self._set_collapsed(not on))

    def mousePressEvent(self, event) -> None:
        if event.position().y() < self.title_height():
            self._set_collapsed(not self._collapsed)
            self.clicked.emit(not self._collapsed)

    def sizeHint(self) -> QSize:
        return QSize(200, self.title_height()) if self._collapsed else super().sizeHint()

    def minimumSizeHint(self) -> QSize:
        return QSize(60, self.title_height()) if self._collapsed else super().minimumSizeHint()

    def paintEvent(self, event) -> None:
        painter = QPainter(self)
        option = QStyleOptionButton()
        option.initFrom(self)
        option.rect.setHeight(self.title_height())
        option.state |= QStyle.State_Raised
        self.style().drawControl(QStyle.CE_PushButtonBevel, option, painter, self)
        arrow = QStyleOption()
        arrow.initFrom(self)
        side = QFontMetrics(self.font()).height() - 4
        arrow.rect.setRect(8, (self.title_height() - side) // 2, side, side)
        shape = QStyle.PE_IndicatorArrowRight if self._collapsed else QStyle.PE_IndicatorArrowDown
        self.style().drawPrimitive(shape, arrow, painter, self)
        area = QRectF(8 + side + 8, 0, self.width(), self.title_height())
        painter.drawText(area, Qt.AlignVCenter | Qt.AlignLeft, self._text)


class ctkSearchBox(QLineEdit):
    """A line edit with a clear button; not a QLineEdit to Python, though it has its members."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setClearButtonEnabled(True)

    def _get_icon(self) -> bool:
        return True

    showSearchIcon = Property(bool, _get_icon, lambda self, on: None)


class ctkComboBox(QComboBox):
    """A combo box that may leave the mouse wheel to the panel around it."""

    NeverScroll, AlwaysScroll = range(2)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._effect = self.AlwaysScroll

    def _get_effect(self) -> int:
        return self._effect

    def _set_effect(self, effect: int) -> None:
        self._effect = effect

    scrollWheelEffect = Property(int, _get_effect, _set_effect)

    def wheelEvent(self, event) -> None:
        if self._effect == self.AlwaysScroll:
            super().wheelEvent(event)
        else:
            event.ignore()


class ctkMessageBox(QMessageBox):
    """A message box that the test answers."""

    def exec_(self) -> int:
        return dialogs.answer("message", self.text())


class FileDialog(QFileDialog):
    """A dialog that the test answers with a path, empty to cancel, or with a path and the kind of file chosen."""

    def exec(self) -> int:
        suggested = self.selectedFiles()[0]
        answer = dialogs.answer("save", self.windowTitle(), suggested, self.nameFilters())
        self._path, kind = (answer, "") if isinstance(answer, str) else answer
        self.selectNameFilter(next(each for each in self.nameFilters() if kind in each))
        return int(bool(self._path))

    def selectedFiles(self) -> list[str]:
        return [self._path] if hasattr(self, "_path") else super().selectedFiles()


class qMRMLWidget(QWidget):
    """A widget that knows the scene."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self):
        return self._scene


class qMRMLSegmentationShow3DButton(QPushButton):
    """Makes closed surfaces and takes them away again; as the application's, it follows whatever else does so."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node, self._tags = None, []
        self.setCheckable(True)
        self.setText("Show 3D")
        self.setEnabled(False)
        self.toggled.connect(self._apply)

    def setSegmentationNode(self, node) -> None:
        for tag in self._tags:
            self._node.RemoveObserver(tag)
        self._node, self._tags = node, []
        for event in _SEGMENTS_CHANGED if node is not None else ():
            self._tags.append(node.AddObserver(event, self._update))
        self._update()

    def segmentationNode(self):
        return self._node

    def _update(self, *_event) -> None:
        if not shiboken6.isValid(self):
            return
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        self.setEnabled(segmentation is not None and segmentation.GetNumberOfSegments() > 0)
        if segmentation is not None:
            blocked = self.blockSignals(True)
            self.setChecked(segmentation.ContainsRepresentation("Closed surface"))
            self.blockSignals(blocked)

    def _apply(self, on: bool) -> None:
        if self._node is None:
            return
        segmentation = self._node.GetSegmentation()
        if on:
            segmentation.CreateRepresentation("Closed surface")
        else:
            segmentation.RemoveRepresentation("Closed surface")


class qMRMLPlotView(QWidget):
    """Draws the chart of a plot view node from the tables in the scene."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = self._node = None

    def setMRMLScene(self, scene) -> None:
        # As in the application: a view node of another scene is let go.
        self._scene = scene
        if self._node is not None and self._node.GetScene() is not scene:
            self._node = None

    def setMRMLPlotViewNode(self, node) -> None:
        if node is not None and self._scene is None:
            raise RuntimeError("the scene must be set before the view node")
        self._node = node
        self.update()

    def _chart(self):
        return self._node.GetPlotChartNode() if self._node is not None and self._node.GetScene() else None

    def series(self) -> list[tuple[str, QColor, list[tuple[float, float]]]]:
        """Name, colour and points of every series of the chart."""
        chart, found = self._chart(), []
        for index in range(chart.GetNumberOfPlotSeriesNodes() if chart else 0):
            node = chart.GetNthPlotSeriesNode(index)
            table = node.GetTableNode().GetTable()
            x, y = (table.GetColumnByName(name) for name in (node.GetXColumnName(), node.GetYColumnName()))
            points = [(x.GetValue(i), y.GetValue(i)) for i in range(table.GetNumberOfRows())]
            found.append((node.GetName(), QColor.fromRgbF(*node.GetColor()), points))
        return found

    def fitToContent(self) -> None:
        self.update()

    def paintEvent(self, event) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.Antialiasing)
        painter.fillRect(self.rect(), Qt.white)
        chart, series, font = self._chart(), self.series(), QFont(self.font())
        if chart is None:
            return
        points = [point for _, _, each in series for point in each]
        area = QRectF(self.rect()).adjusted(38, 20, -10, -20)
        painter.setPen(QPen(Qt.darkGray, 1))
        painter.drawRect(area)
        font.setPixelSize(chart.GetAxisLabelFontSize())
        painter.setFont(font)
        low, high = min([y for _, y in points] + [0.0]), max([y for _, y in points] + [0.1])
        high += 0.05 * (high - low)
        right = max([x for x, _ in points] + [1.0])
        painter.drawText(QRectF(0, area.top() - 8, 34, 16), Qt.AlignRight, f"{high:.1f}")
        painter.drawText(QRectF(0, area.bottom() - 8, 34, 16), Qt.AlignRight, f"{low:.1f}")
        painter.drawText(QRectF(area.right() - 60, area.bottom() + 2, 60, 16), Qt.AlignRight, f"{right:.0f}")
        font.setPixelSize(chart.GetLegendFontSize())
        painter.setFont(font)
        left = area.left() + 4
        for name, color, each in series:
            painter.setPen(QPen(color, 2))
            where = [
                QPointF(
                    area.left() + x / right * area.width(),
                    area.bottom() - (y - low) / (high - low) * area.height(),
                )
                for x, y in each
            ]
            painter.drawPolyline(where)
            painter.drawText(QPointF(left, area.top() - 5), name)
            left += painter.fontMetrics().horizontalAdvance(name) + 16


CTK = {each.__name__: each for each in (ctkCollapsibleButton, ctkComboBox, ctkSearchBox, ctkMessageBox)}
MRML = {each.__name__: each for each in (qMRMLWidget, qMRMLSegmentationShow3DButton, qMRMLPlotView)}
