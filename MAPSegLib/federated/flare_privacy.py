"""FLARE's privacy filters on what leaves a site, in its start kit or simulated."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy

from .exchange import Update
from .flare_server import unpack
from .flare_site import pack
from .plan import NoiseFilter, PercentileFilter, PrivacyOptions


class LargestDifferences(PercentilePrivacy):
    """FLARE's filter, in single precision: some versions of NumPy find no percentile of many halves."""

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        dxo.data = {name: array.astype(np.float32) for name, array in dxo.data.items()}
        sent = super().process_dxo(dxo, shareable, fl_ctx)
        if sent is not None:
            sent.data = {name: array.astype(np.float16) for name, array in sent.data.items()}
        return sent


class NoisyDifferences(SVTPrivacy):
    """FLARE's filter, less the account of its own work that it adds: some of that follows from the scans."""

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        known = set(dxo.meta)
        sent = super().process_dxo(dxo, shareable, fl_ctx)
        if sent is not None:
            sent.meta = {name: value for name, value in sent.meta.items() if name in known}
        return sent


_KINDS: dict[type, type[DXOFilter]] = {PercentileFilter: LargestDifferences, NoiseFilter: NoisyDifferences}


def chosen(privacy: PrivacyOptions) -> list[tuple[type[DXOFilter], dict[str, Any]]]:
    """The filters of a plan and their settings, in the order in which they are applied."""
    return [(_KINDS[type(options)], options.model_dump()) for options in privacy.filters]


def filtered(update: Update, privacy: PrivacyOptions) -> Update:
    """An answer as the server would get it. The noise differs from call to call."""
    answer = pack(update)
    for kind, options in chosen(privacy):
        answer = kind(**options).process(answer, FLContext())
    return unpack(answer)
