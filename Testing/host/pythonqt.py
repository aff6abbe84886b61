"""Real Qt (PySide6) behind PythonQt's manners, and behind the record of what the application offers.

As in PythonQt: properties are attributes and not methods, signals connect by signature strings, constructors take no
keywords, a wrapped object takes no new attributes, callables get no more arguments than they accept, and file dialogs
return one string. Stricter than PythonQt: a name that is not on record, a signal that does not exist, a value of the
wrong type and an exception in a slot are errors here, where the application would only print them.
"""

from __future__ import annotations

import inspect
import traceback
import types
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from . import record

problems: list[str] = []
"""Exceptions that slots raised; a test that leaves any has failed."""

HOST_ONLY = {
    "QFile",
    "QUiLoader",
    "QSizePolicy",
    "QApplication",
    "ctkMessageBox",
    "QMainWindow",
    "QStatusBar",
}
"""What the application's own Python uses, recorded or not."""

_faces: dict[str, Face] = {}
_slots: dict[tuple, list] = {}
_real_classes: dict[str, type] = {}


class Face(type):
    """Class of the classes: enumerations and static functions are looked up in Qt, if they are on record."""

    _name: str
    _real_class: type

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or name in ("_name", "_real_class"):
            raise AttributeError(name)
        _check(cls._name, name)
        scripted = dialogs.statics.get((cls._name, name))
        if scripted:
            return scripted
        return wrap(getattr(cls._real_class, name))

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(unwrap(instance), cls._real_class)


class Wrapped(metaclass=Face):
    """An object of Qt as a module sees it."""

    __slots__ = ("__weakref__", "_real")
    _name = ""
    _real_class = object

    def __init__(self, *args):
        object.__setattr__(self, "_real", type(self)._real_class(*map(unwrap, args)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_real":
            raise AttributeError(name)
        real = self._real
        if isinstance(real, QtCore.QObject):
            if name in ("connect", "disconnect"):
                return getattr(_Signals(self), name)
            if name == "className":
                return lambda: real.metaObject().className()
            if name == "name":  # of every object; slicer.util finds the widgets of a .ui file by it
                return real.objectName()
            if name in _properties(self):
                return wrap(real.property(name))
        _check(self._name, name)
        return wrap(getattr(real, name))

    def __setattr__(self, name: str, value: Any) -> None:
        real = self._real
        if not isinstance(real, QtCore.QObject) or name not in _properties(self):
            raise AttributeError(f"{self._name} has no property {name}, and takes no new attributes")
        if not _accepts(real, name, value) or not real.setProperty(name, unwrap(value)):
            raise AttributeError(f"{self._name}.{name} does not accept {value!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrapped) and (
            self._real is other._real or _address(self._real) == _address(other._real)
        )

    def __hash__(self) -> int:
        return hash(_address(self._real))

    def __repr__(self) -> str:
        return f"<{self._name} {self._real!r}>"


class _Signals:
    """Connecting by strings."""

    def __init__(self, owner: Wrapped):
        self.owner = owner

    def _signal(self, signature: str):
        signature = signature.replace(" ", "")
        real = self.owner._real
        allowed = record.signals(self.owner._name) if record.known(self.owner._name) else None
        if allowed is not None and not _alike(signature, allowed):
            raise AttributeError(f"{self.owner._name} has no signal {signature} on record")
        normal = QtCore.QMetaObject.normalizedSignature(signature).data().decode()
        if real.metaObject().indexOfSignal(normal) < 0 and "vtk" not in normal:
            raise AttributeError(f"{self.owner._name} has no signal {signature} in Qt 6")
        name, _, rest = normal.partition("(")
        count = len([part for part in rest.rstrip(")").split(",") if part])
        return getattr(real, name), count, normal

    def connect(self, signature: str, target: Callable) -> bool:
        if not isinstance(signature, str) or not callable(target):
            raise TypeError("connect takes a signature and a callable")
        signal, count, normal = self._signal(signature)
        slot = _slot(target, count)
        signal.connect(slot)
        _slots.setdefault((_address(self.owner._real), normal), []).append((target, slot))
        return True

    def disconnect(self, signature: str, target: Callable) -> bool:
        signal, _, normal = self._signal(signature)
        known = _slots.get((_address(self.owner._real), normal), [])
        for pair in known:
            if pair[0] == target:
                known.remove(pair)
                signal.disconnect(pair[1])
                return True
        return False


class Dialogs:
    """Modal dialogs, answered in advance by the test; one that nobody expects is an error."""

    def __init__(self):
        self.expected: list[tuple[str, Any]] = []
        self.asked: list[tuple[str, tuple]] = []
        files = ("getOpenFileName", "getExistingDirectory", "getOpenFileNames")
        self.statics = {("qt.QFileDialog", name): self._static(name) for name in files}
        self.statics["qt.QInputDialog", "getText"] = self._static("getText")
        self.statics["qt.QDesktopServices", "openUrl"] = self._open

    def expect(self, kind: str, answer: Any) -> None:
        """Answer the next dialog, a file dialog's function or ``message``, with a value."""
        self.expected.append((kind, answer))

    def answer(self, kind: str, *told: Any) -> Any:
        self.asked.append((kind, told))
        if not self.expected or self.expected[0][0] != kind:
            raise AssertionError(f"an unexpected dialog: {kind} {told}")
        return self.expected.pop(0)[1]

    def _static(self, kind: str) -> Callable:
        return lambda *args: self.answer(kind, *args)

    def _open(self, url: Any) -> bool:
        self.asked.append(("openUrl", (unwrap(url).toString(),)))
        return True

    def clear(self) -> None:
        self.expected.clear()
        self.asked.clear()


dialogs = Dialogs()


def wrap(value: Any) -> Any:
    """A value of PySide6 as PythonQt would give it."""
    if isinstance(value, QtCore.QObject) or isinstance(type(value), type(QtCore.QObject)):
        face = _face_of(type(value))
        made = face.__new__(face)
        object.__setattr__(made, "_real", value)
        return made
    if isinstance(value, (list, tuple)):
        return type(value)(map(wrap, value)) if type(value) in (list, tuple) else value
    if isinstance(value, (types.BuiltinMethodType, types.MethodType, types.FunctionType)) or (
        callable(value) and type(value).__name__ in ("builtin_function_or_method", "method_descriptor")
    ):
        return lambda *args: wrap(value(*map(unwrap, args)))
    return value


def unwrap(value: Any) -> Any:
    """The PySide6 object behind a wrapped one; callables are guarded as slots are."""
    if isinstance(type(value), Face):
        return value._real
    if isinstance(value, Face):
        return value._real_class
    if type(value) in (list, tuple):
        return type(value)(map(unwrap, value))
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return _slot(value, 0)
    return value


def face(name: str, real_class: type | None = None) -> Face:
    """The class ``qt.QLabel`` (or ``ctk.…``, ``slicer.…``) that a module sees."""
    if name not in _faces:
        if real_class is None:
            short = name.split(".")[-1]
            modules = (QtWidgets, QtGui, QtCore, QtUiTools)
            real_class = next((getattr(m, short) for m in modules if hasattr(m, short)), None)
        if real_class is None:
            raise AttributeError(f"there is no {name}")
        body = {"__slots__": (), "_name": name, "_real_class": real_class}
        _faces[name] = Face(name.split(".")[-1], (Wrapped,), body)
        _real_classes[real_class.__name__] = real_class
    return _faces[name]


class QtModule(types.ModuleType):
    """Module ``qt``, ``ctk``, or the widgets of ``slicer``: classes by name, those on record only."""

    def __init__(self, name: str, custom: dict[str, type] | None = None):
        super().__init__(name)
        self.__dict__["_custom"] = custom or {}

    def __getattr__(self, name: str) -> Face:
        full = f"{self.__name__}.{name}"
        if not name[0].isalpha() or not (record.known(full) or name in HOST_ONLY):
            raise AttributeError(f"{full} is not on record")
        return face(full, self._custom.get(name))


def _face_of(real_class: type) -> Face:
    """The closest class on record."""
    for parent in real_class.__mro__:
        for prefix in ("qt", "ctk", "slicer"):
            name = f"{prefix}.{parent.__name__}"
            if name in _faces or record.known(name) or (prefix == "qt" and parent.__name__ in HOST_ONLY):
                return face(name, parent)
    return face(f"qt.{real_class.__name__}", real_class)


def _check(owner: str, name: str) -> None:
    if record.known(owner) and name not in record.members(owner) and owner.split(".")[-1] not in HOST_ONLY:
        raise AttributeError(f"{owner}.{name} is not on record")


def _properties(wrapped: Wrapped) -> frozenset[str] | set[str]:
    name, real = wrapped._name, wrapped._real
    meta = real.metaObject()
    there = {meta.property(i).name() for i in range(meta.propertyCount())} if not record.known(name) else None
    return record.properties(name) if there is None else there


def _accepts(real: QtCore.QObject, name: str, value: Any) -> bool:
    """Whether a property's type takes a value; Qt itself would turn much into something."""
    meta = real.metaObject()
    kind = meta.property(meta.indexOfProperty(name)).typeName()
    allowed = {"QString": (str,), "bool": (bool, int), "int": (int, float), "double": (int, float)}.get(kind)
    return allowed is None or isinstance(value, allowed)


def _alike(signature: str, allowed: frozenset[str]) -> bool:
    """Whether a signature is on record, const and references aside."""
    plain = {each.replace("const ", "").replace("&", "") for each in allowed}
    return signature.replace("const", "").replace("&", "") in plain


def _slot(target: Callable, count: int) -> Callable:
    """A callable as PythonQt calls it: with no more arguments than it takes, errors reported and not raised."""
    most = count
    if isinstance(target, (types.FunctionType, types.MethodType)):
        kinds = inspect.signature(target).parameters.values()
        if not any(p.kind is p.VAR_POSITIONAL for p in kinds):
            most = min(count, sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in kinds))

    def slot(*args):
        try:
            target(*map(wrap, args[:most]))
        except Exception:
            problems.append(traceback.format_exc())

    return slot


def _address(real: Any) -> int:
    try:
        return shiboken6.getCppPointer(real)[0]
    except (TypeError, RuntimeError):
        return id(real)
