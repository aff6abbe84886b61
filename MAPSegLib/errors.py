"""The failures that users meet: one sentence each, with the exit code of the command line.

Exit codes: 0 done, 1 anything unforeseen, 2 bad input, 3 out of memory after every fallback, 4 cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class MAPSegError(Exception):
    """A failure that is told to the user as one sentence, with advice where there is any."""

    kind = "error"
    exit_code = 1

    def __init__(self, message: str, advice: str = ""):
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        """Both, as a console shows it."""
        return f"{self.message} {self.advice}".rstrip()

    def record(self) -> dict[str, str]:
        """What events and reports say of it."""
        return {"kind": self.kind, "message": self.message, "advice": self.advice}


class InputError(MAPSegError):
    """Something the user gave (a file, an option, a model) cannot be used."""

    kind = "input"
    exit_code = 2


class MemoryExhausted(MAPSegError):
    """Neither a smaller batch nor the CPU was enough."""

    kind = "memory"
    exit_code = 3


class Cancelled(MAPSegError):
    """The user stopped the job (Ctrl-C, SIGTERM or the panel's Cancel button)."""

    kind = "cancelled"
    exit_code = 4


class Stopped(Exception):
    """The user wants what an adaptation has reached so far: no failure."""


_PLAIN = {
    "extra_forbidden": "there is no such option",
    "too_short": "at least one is needed",
    "missing": "is missing",
    "tuple_type": "a list is needed",
    "union_tag_not_found": "task is missing",
    "union_tag_invalid": "there is no such task",
    "model_type": "names and values are needed",
    "model_attributes_type": "names and values are needed",
}
"""What pydantic says to programmers, by the type of its errors."""


def first_problem(error: ValidationError, tagged: bool = False) -> str:
    """The first failure of a validation, in a few words.

    Args:
        tagged: places start with the kind of what was validated, which is known.
    """
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    where = ".".join(place[1:] if tagged else place)
    message = _PLAIN.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
