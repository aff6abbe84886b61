"""FLARE's privacy filters on what leaves a site, in its start kit or simulated."""

from __future__ import annotations

from typing import Any

from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy

from .exchange import Update
from .flare_server import unpack
from .flare_site import pack
from .plan import NoiseFilter, PercentileFilter, PrivacyOptions

_KINDS: dict[type, type[DXOFilter]] = {PercentileFilter: PercentilePrivacy, NoiseFilter: SVTPrivacy}


def chosen(privacy: PrivacyOptions) -> list[tuple[type[DXOFilter], dict[str, Any]]]:
    """The filters of a plan and their settings, in the order in which they are applied."""
    return [(_KINDS[type(options)], options.model_dump()) for options in privacy.filters]


def filtered(update: Update, privacy: PrivacyOptions) -> Update:
    """An answer as the server would get it. The noise differs from call to call."""
    answer = pack(update)
    for kind, options in chosen(privacy):
        answer = kind(**options).process(answer, FLContext())
    return unpack(answer)
