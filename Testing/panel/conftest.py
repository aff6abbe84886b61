"""The panel on real Qt, in a stand-in application around a real scene."""

import pytest

pytest.importorskip("PySide6", reason="needs PySide6-Essentials: pip install '.[test]'")
pytest.importorskip("slicer", reason="needs slicer-core: pip install '.[test]'")

from Testing.host import desktop as host_desktop
from Testing.host import pythonqt
from Testing.host import scene as host_scene


@pytest.fixture
def desktop():
    """An application with an empty scene, no settings and no dialogs; slots that raise fail the test."""
    host_scene.install()
    application = host_desktop.install()
    import qt

    qt.QSettings().clear()
    pythonqt.dialogs.clear()
    pythonqt.problems.clear()
    yield application
    assert not pythonqt.dialogs.expected, "a dialog was expected and did not come"
    assert not pythonqt.problems, "\n".join(pythonqt.problems)


@pytest.fixture
def problems(desktop):
    """Exceptions of slots so far."""
    return pythonqt.problems
