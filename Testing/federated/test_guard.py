"""What a site hears and answers, of all that FLARE would obey."""

import errno
from types import SimpleNamespace

from nvflare.fuel.f3.cellnet.core_cell import Message
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.private.admin_defs import error_reply
from nvflare.private.defs import CellChannel, TrainingTopic
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.fed.client.training_cmds import DeployProcessor

from MAPSegLib.federated.flare_guard import DIAGNOSTICS, forget_commands, hear_only_the_server


def test_a_site_knows_no_commands_but_those_of_a_job(monkeypatch):
    known = ClientRequestProcessors.request_processors
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", list(known))
    forget_commands()
    topics = {topic for each in ClientRequestProcessors.request_processors for topic in each.get_topics()}
    assert topics == {
        TrainingTopic.ABORT,
        TrainingTopic.CANCEL_RESOURCE,
        TrainingTopic.CHECK_RESOURCE,
        TrainingTopic.DEPLOY,
        TrainingTopic.NOTIFY_JOB_STATUS,
        TrainingTopic.START_JOB,
    }


def test_why_a_job_was_not_taken_in_is_told_at_the_site_alone(monkeypatch, caplog):
    def full(*_):
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/mueller")
        except OSError as error:
            raise Exception("exception <class 'OSError'> when deploying app") from error

    known = ClientRequestProcessors.request_processors
    for processed in (lambda *_: error_reply("Missing config folder inside /data/mueller"), full):
        with monkeypatch.context() as flare:
            flare.setattr(DeployProcessor, "process", processed)
            flare.setattr(ClientRequestProcessors, "request_processors", list(known))
            forget_commands()
            (deploy,) = (
                each
                for each in ClientRequestProcessors.request_processors
                if TrainingTopic.DEPLOY in each.get_topics()
            )
            reply = deploy.process(None, None)
        assert vars(error_reply(reply.body))["headers"] == reply.headers and "/" not in reply.body
        assert "could not take in the job" in caplog.text and "/data/mueller" in caplog.text
        caplog.clear()


def test_a_site_tells_nobody_its_settings():
    """FLARE's diagnostics (``show_config_vars SITE`` and the like) ask for no right."""
    refuse = []
    cell = SimpleNamespace(
        get_fqcn=lambda: "hospital-b", add_incoming_filter=lambda channel, topic, cb: refuse.append(cb)
    )
    hear_only_the_server(cell)
    for origin, channel, heard in (
        ("server", DIAGNOSTICS, False),
        ("server.job", DIAGNOSTICS, False),
        ("hospital-b.job", DIAGNOSTICS, True),  # so are a job's processes ended
        ("server", CellChannel.CLIENT_MAIN, True),
        ("hospital-c", CellChannel.CLIENT_MAIN, False),
    ):
        headers = {MessageHeaderKey.ORIGIN: origin, MessageHeaderKey.CHANNEL: channel}
        assert (refuse[0](Message(headers)) is None) is heard, (origin, channel)
