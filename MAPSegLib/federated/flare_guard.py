"""What a site answers, and to whom: FLARE asks its rules about a command only where the message says that it is one.

A message that leaves the command's name out is obeyed unasked, and any site may send one to another through the server.
So a site that runs here knows none of FLARE's commands but those that a job takes, and hears nobody but the server.
FLARE's network diagnostics are no commands: they have rules of no kind, and tell a site's settings and processes, or
stop it. A site answers none of them.
"""

from __future__ import annotations

import logging
from typing import Any

from nvflare.fuel.f3.cellnet.core_cell import CoreCell, Message
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.net_agent import _CHANNEL as DIAGNOSTICS
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.private.admin_defs import Message as Request
from nvflare.private.admin_defs import MsgHeader, error_reply
from nvflare.private.admin_defs import ReturnCode as Verdict
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.fed.client.scheduler_cmds import (
    CancelResourceProcessor,
    CheckResourceProcessor,
    StartJobProcessor,
)
from nvflare.private.fed.client.training_cmds import (
    AbortAppProcessor,
    DeployProcessor,
    NotifyJobStatusProcessor,
)

_OF_A_JOB = (
    AbortAppProcessor,
    CancelResourceProcessor,
    CheckResourceProcessor,
    DeployProcessor,
    NotifyJobStatusProcessor,
    StartJobProcessor,
)
_log = logging.getLogger("MAPSegLib.federated")


class _Deploy(DeployProcessor):
    """Takes in a job; why it could not is told here, and not to the server: FLARE's reasons name folders."""

    def process(self, req: Request, app_ctx: Any) -> Request:
        try:
            reply = super().process(req, app_ctx)
            if reply.get_header(MsgHeader.RETURN_CODE) != Verdict.ERROR:
                return reply
            why = reply.body
        except Exception as error:
            why = error.__context__ or error  # FLARE's own text has only the kind of what it met
        _log.error("This site could not take in the job: %s", why)
        return error_reply("the job could not be taken in")


def forget_commands() -> None:
    """Leave the site that starts in this process no command but those of a job: none that reads files or settings."""
    known = ClientRequestProcessors.request_processors
    of_a_job = [processor for processor in known if isinstance(processor, _OF_A_JOB)]
    known[:] = [_Deploy() if isinstance(each, DeployProcessor) else each for each in of_a_job]


def hear_only_the_server(cell: CoreCell) -> None:
    """Refuse what comes from other sites and from the administrator, who speak to the server, and its diagnostics."""

    def refuse(message: Message) -> Message | None:
        origin = FQCN.get_root(message.get_header(MessageHeaderKey.ORIGIN) or "")
        if origin not in (FQCN.ROOT_SERVER, FQCN.get_root(cell.get_fqcn())):
            _log.warning("Refused a message from %s: this site hears its server only.", origin or "nobody")
            return make_reply(ReturnCode.UNAUTHENTICATED, error="not the server")
        if origin == FQCN.ROOT_SERVER and message.get_header(MessageHeaderKey.CHANNEL) == DIAGNOSTICS:
            _log.warning("Refused to tell the server of this site's settings and processes.")
            return make_reply(ReturnCode.UNAUTHENTICATED, error="no diagnostics")
        return None

    cell.add_incoming_filter(channel="*", topic="*", cb=refuse)
