"""What the worker needs and Slicer does not bring: installed with consent when the user presses Apply."""

from __future__ import annotations


def ensure(parent=None, wheels: str = "") -> bool:
    """Make sure that the worker can run; asks before anything is installed. False when the user declines.

    Args:
        parent: widget for dialogs.
        wheels: folder of wheel files for sites without internet.

    Raises:
        RuntimeError: the installation failed; the message says why and what to do.
    """
    raise NotImplementedError


def missing() -> list[str]:
    """Requirements that are not met, by name."""
    raise NotImplementedError


def describe_device(device: str = "auto") -> str:
    """Which device will be used and why, in one sentence. Quick after the first call, which starts a process."""
    raise NotImplementedError
