"""The failures that users meet: one sentence each, with the exit code of the command line.

Exit codes: 0 done, 1 anything unforeseen, 2 bad input, 3 out of memory after every fallback, 4 cancelled.
"""


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
