"""What Windows does otherwise than other systems, and what is done about it. Standard library only."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import clear_frames
from typing import TypeVar

from .errors import InputError

T = TypeVar("T")

ON = os.name == "nt"
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)\d)(\.|$)", re.IGNORECASE)
"""Names that Windows gives to devices, whatever their ending."""
LONGEST_PATH = 260
"""Letters of a path, its end included, that programs may use unless the system is set otherwise."""
_PATIENCE, _PAUSE = 3.0, 0.05
"""Seconds that a file may be held by a virus scanner, an indexer or a backup, and between two looks."""
_UTF8 = 65001


def patiently(action: Callable[[], T]) -> T:
    """Do what Windows refuses for as long as another program has the file open; elsewhere a refusal is final.

    Raises:
        OSError: what ``action`` raises.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return action()
        except PermissionError:
            if not ON or time.monotonic() >= end:
                raise
            time.sleep(_PAUSE)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another one. Raises OSError."""
    patiently(lambda: os.replace(source, target))


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises OSError."""
    patiently(lambda: path.unlink(missing_ok=True))


def close_files(failure: BaseException | None) -> None:
    """Let go what calls that failed still hold: open files, which Windows does not remove."""
    while failure is not None:
        clear_frames(failure.__traceback__)
        failure = failure.__context__


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, or all that the system lets go."""
    with suppress(OSError):
        patiently(lambda: shutil.rmtree(folder))
    shutil.rmtree(folder, ignore_errors=True)


def wait_for_input() -> None:
    """Come back when standard input has something to read, or has ended.

    On Windows a read that waits at a pipe keeps the whole process from asking what that pipe is. NumPy's libraries
    ask as they are loaded: the import would hang until something comes (https://github.com/numpy/numpy/issues/24290).
    """
    if not ON:
        return
    import _winapi
    import msvcrt

    with suppress(OSError):  # a console or a file, or the other end has gone: reading tells
        handle = msvcrt.get_osfhandle(0)
        while not _winapi.PeekNamedPipe(handle)[0]:
            time.sleep(_PAUSE)


def short_name(path: Path) -> str:
    """The short form of a path on Windows, which has ASCII's letters only; the path itself where it has no such form.

    Args:
        path: of a file or folder that is there.
    """
    if not ON or str(path).isascii():
        return str(path)
    short = ctypes.create_unicode_buffer(32_768)
    ctypes.WinDLL("kernel32").GetShortPathNameW(str(path), short, len(short))
    return short.value or str(path)


def itk_name(path: Path) -> str:
    """The name by which ITK finds a file or folder that is there.

    On Windows it takes names for text in the system's code page, and Python hands them over in UTF-8: of a path with
    other letters than ASCII's the short form is given, which has none.

    Raises:
        InputError: the path has no such form; or it is no text, on which SimpleITK would end the process.
    """
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:  # of other systems' names, which may be any bytes
        raise _beyond_itk(path) from error
    if not ON or name.isascii():
        return name
    if ctypes.WinDLL("kernel32").GetACP() == _UTF8:
        return name
    short = short_name(path)
    if not short.isascii():
        raise _beyond_itk(path)
    return short


def _beyond_itk(path: Path) -> InputError:
    return InputError(
        f"{path} has letters in it with which such files cannot be read or written here.",
        "Use folders and names of plain letters (A to Z), or NIfTI (.nii.gz).",
    )


@contextmanager
def itk_target(path: Path) -> Iterator[str]:
    """The name under which ITK is to write a file: another one in its folder where :func:`itk_name` says why.

    Raises:
        InputError: the folder has no such name, or the path is no text.
        OSError: the file cannot be renamed.
    """
    if not ON or str(path).isascii():
        yield itk_name(path)
        return
    plain = Path(itk_name(path.parent), f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield str(plain)
        replace(plain, path)
    finally:
        remove(plain)
