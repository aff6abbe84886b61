"""A signal as Qt has them, without Qt: the parts below the panel tell what happened through these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Signal:
    """Calls everything that is connected, in order, whenever it is emitted."""

    def __init__(self) -> None:
        self._receivers: list[Callable[..., Any]] = []

    def connect(self, receiver: Callable[..., Any]) -> None:
        if receiver not in self._receivers:
            self._receivers.append(receiver)

    def disconnect(self, receiver: Callable[..., Any]) -> None:
        if receiver in self._receivers:
            self._receivers.remove(receiver)

    def emit(self, *args: Any) -> None:
        for receiver in list(self._receivers):  # a receiver may disconnect itself
            receiver(*args)
