"""MAPSeg: unsupervised domain adaptation of 3D segmentation networks (arXiv 2303.09373).

Importing the package costs nothing heavy: the public functions load their modules on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "segment": "api",
    "adapt": "api",
    "train": "api",
    "pretrain": "api",
    "evaluate": "api",
    "list_models": "api",
}
__all__ = [*_PUBLIC, "__version__"]


def __dir__() -> list[str]:
    """What a notebook completes: the functions, too, before their first use."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
