"""What leaves a site, what the server takes, and that a failure at a site stays there."""

import logging
import math
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.fuel.utils import fobs

from MAPSegLib.errors import InputError
from MAPSegLib.federated.exchange import Update
from MAPSegLib.federated.flare_privacy import LargestDifferences, NoisyDifferences
from MAPSegLib.federated.flare_run import say
from MAPSegLib.federated.flare_server import RoundController, unpack
from MAPSegLib.federated.flare_site import RoundExecutor, check_terms, pack
from MAPSegLib.federated.flare_terms import ROUND, TERMS, terms
from MAPSegLib.federated.kits import choose_data

from . import standin
from .conftest import make_scans


def make_update(**changes):
    rng = np.random.default_rng(0)
    difference = {"encoder.a": rng.normal(0, 0.004, (40, 5)).astype(np.float16), "b": np.ones(3, np.float16)}
    return Update(**{"difference": difference, "scans": 3, "losses": {"loss": 0.5}} | changes)


def contents(answer):
    """Everything in a message: names, types and values."""
    headers = {key: value for key, value in answer.items() if key != "DXO"}
    return headers, answer["DXO"]


def test_what_waits_for_a_training_loads_no_pytorch():
    """A server or a site without a job, and the administrator's end."""
    code = "import sys\nfrom MAPSegLib.federated import flare_admin, flare_run, flare_server, flare_site\n"
    result = subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"])
    assert result.returncode == 0


def test_an_answer_holds_differences_count_and_losses_only():
    update = make_update()
    headers, body = contents(pack(update))
    assert headers == {"__headers__": {"__content_type__": "DXO"}}
    assert set(body) == {"kind", "data", "meta"}
    assert body["kind"] == DataKind.WEIGHT_DIFF
    assert body["meta"] == {"scans": 3, "losses": {"loss": 0.5}}
    assert set(body["data"]) == set(update.difference)
    for name, array in body["data"].items():
        assert array.dtype == np.float16
        np.testing.assert_array_equal(array, update.difference[name])


def test_an_answer_survives_the_way_without_pickle(monkeypatch):
    numpy_decomposers.register()
    monkeypatch.setattr("pickle.loads", None)
    monkeypatch.setattr("pickle.load", None)
    update = make_update()
    received = unpack(fobs.loads(fobs.dumps(pack(update))))
    assert (received.scans, received.losses) == (3, {"loss": 0.5})
    np.testing.assert_array_equal(received.difference["encoder.a"], update.difference["encoder.a"])


def test_objects_do_not_travel():
    numpy_decomposers.register()
    objects = np.array([{"path": "patient"}], dtype=object)
    with pytest.raises((TypeError, ValueError)):
        pack(make_update(difference={"a": objects}))
    with pytest.raises(RuntimeError, match="allow_pickle=False"):
        fobs.loads(fobs.dumps(DXO(DataKind.WEIGHT_DIFF, data={"a": objects}).to_shareable()))


@pytest.mark.parametrize(
    "filter", [LargestDifferences(50, 0.003), NoisyDifferences(0.3, epsilon=1, gamma=0.003)]
)
def test_filters_change_the_differences_and_keep_half_precision(filter):
    update = make_update()
    answer = filter.process(pack(update), FLContext())
    assert answer["DXO"]["meta"] == {
        "scans": 3,
        "losses": {"loss": 0.5},
        "filter_history": [type(filter).__name__],
    }
    received = unpack(answer)
    assert received.scans == 3 and received.losses == {"loss": 0.5}
    for name, array in received.difference.items():
        assert array.dtype == np.float16 and array.shape == update.difference[name].shape
    values = np.concatenate([array.ravel() for array in received.difference.values()])
    assert np.mean(values == 0) >= 0.4
    if isinstance(filter, LargestDifferences):
        assert np.abs(values).max() <= 0.0031


@pytest.mark.parametrize(("percentile", "left"), [(0, 1.0), (90, 0.1), (100, 0.0)])
def test_the_largest_differences_are_found_among_more_than_half_precision_counts(percentile, left):
    values = np.random.default_rng(0).normal(0, 0.004, (100, 1000)).astype(np.float16)
    answer = LargestDifferences(percentile, 1.0).process(
        pack(make_update(difference={"a": values})), FLContext()
    )
    sent = unpack(answer).difference["a"]
    assert np.mean(sent != 0) == pytest.approx(left * np.mean(values != 0), abs=2e-3)
    assert np.array_equal(sent[sent != 0], values[sent != 0])


@pytest.mark.parametrize(
    "answer",
    [
        make_reply(ReturnCode.EXECUTION_EXCEPTION),
        Shareable(),
        DXO(DataKind.WEIGHT_DIFF, data={"a": "text"}, meta={"scans": 1, "losses": {}}).to_shareable(),
        DXO(DataKind.WEIGHTS, data={"a": np.ones(2)}, meta={"scans": 1, "losses": {}}).to_shareable(),
        DXO(DataKind.WEIGHT_DIFF, data={"a": np.ones(2)}).to_shareable(),
        *(
            DXO(DataKind.WEIGHT_DIFF, data={"a": np.ones(2)}, meta={"scans": n, "losses": {}}).to_shareable()
            for n in ("x", math.inf, 10**9, 10**5000, -1)
        ),
        DXO(
            DataKind.WEIGHT_DIFF,
            data={"a": np.ones(2)},
            meta={"scans": 1, "losses": {str(i): 0.0 for i in range(1000)}},
        ).to_shareable(),
        DXO(
            DataKind.WEIGHT_DIFF, data={"a": np.ones(2)}, meta={"scans": 1, "losses": {"x" * 1000: 0.0}}
        ).to_shareable(),
    ],
)
def test_an_answer_without_an_update_is_none(answer):
    assert unpack(answer) is None


def test_a_poisoned_update_reaches_the_coordinator():
    # Whether to reject it is the coordinator's decision; it must not fail before.
    poisoned = make_update(difference={"a": np.full(3, np.nan, np.float16)}, losses={"loss": math.nan})
    assert np.isnan(unpack(pack(poisoned)).difference["a"]).all()


def test_other_terms_are_told():
    own = {"MAPSeg version": "1", "plan": "a", "start model": "b"}
    check_terms(own, own)
    for name in own:
        with pytest.raises(InputError, match=f"another {name} .other. than this site"):
            check_terms(own | {name: "other"}, own)
    with pytest.raises(InputError):
        check_terms(None, own)


class TestWaiting:
    """The server's patience with sites that do not answer."""

    def wait(self, heartbeat, round_timeout, answers, abort=False):
        controller = RoundController(heartbeat)
        controller._plan = SimpleNamespace(min_sites=1, minutes=round_timeout / 60)
        controller._heard = dict.fromkeys("abc", time.monotonic())
        controller._answers = answers
        signal = Signal()
        if abort:
            signal.trigger(True)
        return controller._wait(list("abc"), signal)

    def test_ends_when_all_have_answered(self):
        assert self.wait(1000, 1000, dict.fromkeys("abc", make_update())) == set()
        assert self.wait(1000, 1000, dict.fromkeys("abc")) == set()

    def test_ends_without_those_that_fell_silent(self, caplog):
        assert self.wait(0.01, 1000, {"a": make_update()}) == {"b", "c"}
        assert "b: no sign of life" in caplog.text

    def test_ends_when_late_sites_are_too_late(self, caplog):
        assert self.wait(1000, 0.01, {"a": make_update(), "b": None}) == set()
        assert "Too late for this round: c." in caplog.text

    def test_ends_when_the_training_is_stopped(self):
        assert self.wait(1000, 1000, {}, abort=True) == set()


class Engine:
    def __init__(self, root):
        self.root = root

    def get_workspace(self):
        return self

    def get_root_dir(self):
        return str(self.root)


def make_context(folder):
    context = FLContext()
    context.set_prop("__engine__", Engine(folder / "flare"), private=True)
    return context


def test_a_server_that_cannot_save_says_so(kits, caplog):
    class Full(RoundController):
        def make_coordinator(self, folder):
            raise InputError("state.json cannot be written: no space left on device.", "Make room.")

    (kits / "server" / "work").mkdir()
    controller = Full()
    controller.control_flow(Signal(), make_context(kits / "server"))
    assert controller._told == {
        "problem": "state.json cannot be written: no space left on device. Make room."
    }
    (record,) = caplog.records
    assert record.getMessage().startswith("The server cannot go on: state.json cannot be written")


class TestExecutor:
    @pytest.fixture
    def folder(self, kits, tmp_path):
        choose_data(kits / "hospital-b", make_scans(tmp_path / "scans"))
        (kits / "hospital-b" / "work").mkdir()
        return kits / "hospital-b"

    def run(self, folder, executor, meta=None, signal=None):
        meta = {ROUND: 1, TERMS: terms(folder)} if meta is None else meta
        task = DXO(DataKind.WEIGHTS, data={"a": np.zeros(3, np.float16)}, meta=meta).to_shareable()
        return executor.execute("train", task, make_context(folder), signal or Signal())

    def test_trains(self, folder):
        update = unpack(self.run(folder, standin.StandInExecutor()))
        assert update.scans == 2
        np.testing.assert_array_equal(update.difference["a"], np.full(3, 0.5))

    def test_another_plan_is_refused_in_one_sentence(self, folder, caplog):
        meta = {ROUND: 1, TERMS: terms(folder) | {"plan": "other"}}
        answer = self.run(folder, standin.StandInExecutor(), meta)
        assert answer.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
        (record,) = caplog.records
        assert "another plan" in record.getMessage() and record.exc_info is None

    def test_a_failure_answers_nothing_but_that(self, folder, caplog):
        class Failing(RoundExecutor):
            def make_site(self, folder, report):
                raise OSError(28, "No space left on device: /data/patient-17.nii.gz")

        answer = self.run(folder, Failing())
        assert dict(answer) == dict(make_reply(ReturnCode.EXECUTION_EXCEPTION))
        assert "No space left" in caplog.text

    def test_an_abort_ends_the_round(self, folder, caplog):
        caplog.set_level(logging.INFO)
        (folder / "pause.txt").write_text("60")
        signal = Signal()
        signal.trigger(True)
        answer = self.run(folder, standin.StandInExecutor(), signal=signal)
        assert answer.get_return_code() == ReturnCode.TASK_ABORTED


def test_names_cannot_give_orders_to_the_terminal_of_who_watches(capsys):
    say("case\x1b[2J.nii.gz")
    assert capsys.readouterr().out.endswith(" case\ufffd[2J.nii.gz\n")
