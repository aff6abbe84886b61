"""Files beside the label maps: JSON, CSV, and the rule that a file appears under its name only when complete."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import windows
from .errors import InputError

CHECKPOINT, RECORD = "checkpoint.pt", "metrics.jsonl"
"""What a training keeps in its folder: all that it needs to go on, until it ends, and a line for every step."""
MAPS = ("uncertainty", "probabilities")
"""What can be mapped beside labels: the options of jobs, what reports tell the files under, and how their names end."""
SIDE_RESULTS = (*(f"_{kind}" for kind in MAPS), "_seg_source", "_seg_adapted")
"""Of names of maps that a job leaves beside its label maps (``_seg``)."""
STOP = "stop"
"""Name of the file beside a worker's job file that ends its adaptation with the best step so far."""
PART = ".part"
"""How the name of a checkpoint ends that is being written: always alike, as a kill may leave gigabytes."""
_UNSEEN = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
TEMPORARY = f".{'[0-9a-f]' * 8}-"
"""How the names of files that are being written begin, as a pattern."""


@contextlib.contextmanager
def replacing(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it when the block ends well and removed when it does not.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is off, or the disk refuses.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} already exists.", "Choose another name, or allow overwriting.")
    # Its ending decides the format, which libraries know in small letters: of x.Nii they would write another file.
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name.lower()}")
    try:
        yield temporary
        windows.replace(temporary, path)
    except BaseException as error:
        windows.close_files(error)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            windows.remove(temporary)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove the temporary files that killed processes left beside ``paths``, which no other one may be writing."""
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name.lower())
    for folder, own in names.items():
        for file in folder.glob(f"{TEMPORARY}*"):
            if file.name[len(".01234567-") :] in own:
                windows.remove(file)


def reason(error: OSError) -> str:
    """Why the system refused, in words."""
    held = ", or another program has it open" if windows.ON else ""
    told = {errno.ENOSPC: "no space left on the disk", errno.EACCES: f"permission denied{held}"}
    told |= {errno.ENOENT: "it does not exist", errno.EROFS: "the disk is read-only"}
    told |= {errno.ENAMETOOLONG: "the name is too long"}
    if windows.ON and len(str(error.filename)) >= windows.LONGEST_PATH:  # which Windows tells as not there
        told |= {errno.ENOENT: "the path is too long"}
    return told.get(error.errno, (error.strerror or str(error)).lower())


def first_few(names: Sequence[Any], most: int = 5) -> str:
    """Names for a message, which would be too long with all of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def unwritable(path: Path, error: OSError) -> InputError:
    """The sentence for a file or folder that the system refuses to write."""
    # a run that had begun goes on in its own folder, and a start kit has no other
    advice = "Free some space." if error.errno == errno.ENOSPC else "Choose another output folder."
    return InputError(f"{path} cannot be written: {reason(error)}.", advice)


def unusable(error: OSError) -> InputError:
    """The sentence for a path that the system refuses, wherever it was used."""
    return InputError(f"{error.filename} cannot be used: {reason(error)}.", "Check the path.")


def write_text(path: Path, text: str, overwrite: bool = False) -> Path:
    """Write a UTF-8 text file in one piece. Raises InputError as :func:`replacing` does."""
    with replacing(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Any, overwrite: bool = False) -> Path:
    """Write a JSON file; NaN, which JSON lacks, becomes null. Raises InputError as :func:`replacing` does."""
    return write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n", overwrite)


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], overwrite: bool = False, columns: Sequence[str] = ()
) -> Path:
    """Write rows that share their keys as CSV with a header; NaN stays empty, floats get six digits.

    Args:
        columns: the header where there are no rows.

    Raises:
        InputError: as for :func:`replacing`.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return write_text(path, text.getvalue(), overwrite)


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file that the user named; ``what`` it should be goes into the message.

    Raises:
        InputError: missing, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.", "Check the path.") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(
            f"{path} is not a JSON file with {what}: {error.msg} ({place}).",
            "JSON has no comments, and no comma after the last entry.",
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} is not a JSON file with {what}: {reason(error)}.", "Check the path."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file with {what}.", "Check the path.") from error


def reports_in(folder: Path) -> Iterator[Any]:
    """The contents of the reports in a folder of results, without those that cannot be read."""
    for path in filter(Path.is_file, folder.glob("*report.json")):  # a pipe would be waited for
        with contextlib.suppress(InputError):
            yield read_json(path, "a report")


def plain(value: Any) -> Any:
    """A value as JSON and UTF-8 know it: paths, foreign numbers and names turned, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # NumPy and PyTorch
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, Path)):  # a file's name need not be valid UTF-8
        return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value


def printable(text: str) -> str:
    """Text for a terminal, to which control characters in a name would be orders; tabs and ends of lines stay."""
    return text.translate(_UNSEEN)


def no_formula(text: str) -> str:
    """Text for a table: what a spreadsheet would compute, such as the name of a scan ``=x``, gets a ``'`` before."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _cell(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, str):
        return no_formula(value)
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
