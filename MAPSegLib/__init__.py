"""MAPSeg: unsupervised domain adaptation of 3D segmentation networks (arXiv 2303.09373).

Importing the package costs nothing heavy: what is public loads its module on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who checks types follows no __getattr__
    from .api import adapt as adapt
    from .api import evaluate as evaluate
    from .api import list_models as list_models
    from .api import pretrain as pretrain
    from .api import review as review
    from .api import segment as segment
    from .api import train as train
    from .predictor import Predictor as Predictor

__version__ = "0.1.0"

_PUBLIC = {
    "segment": "api",
    "adapt": "api",
    "train": "api",
    "pretrain": "api",
    "evaluate": "api",
    "review": "api",
    "list_models": "api",
    "Predictor": "predictor",
}
__all__ = [*_PUBLIC, "__version__"]


def __dir__() -> list[str]:
    """What a notebook completes: the functions, too, before their first use."""
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _PUBLIC:
            return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
