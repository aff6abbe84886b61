"""What the benchmarks' commands share: what is missing is told in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable

from MAPSegLib.errors import MAPSegError


def told(main: Callable[[], object]) -> int:
    """Run a command; returns its exit code, 2 where data or a model are missing."""
    try:
        main()
    except MAPSegError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
