"""The compile log: what of torch's words reaches the page, and how much of it."""

from __future__ import annotations

import json
import logging
import warnings
from types import SimpleNamespace

from pytorch_spawner.agent import compile_log, evidence, report


class FakeLogs:
    """torch's own switch for its logs, as it was before "perf_hints" came."""

    def __init__(self) -> None:
        self.asked: dict[str, bool] = {}

    def set_logs(self, *, graph_breaks: bool = False, recompiles: bool = False) -> None:
        self.asked = {"graph_breaks": graph_breaks, "recompiles": recompiles}


def a_logger(name: str) -> logging.Logger:
    """A logger as torch makes them: it has a handler, and passes nothing on."""
    logger = logging.getLogger(name)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.handlers = [logging.NullHandler()]
    return logger


def test_recompilations_warnings_and_repeats_are_heard_and_only_what_torch_knows_is_asked() -> None:
    logs = FakeLogs()
    dynamo = a_logger("torch._pretended")
    child = logging.getLogger("torch._pretended.guards.__recompiles")
    breaks = logging.getLogger("torch._pretended.symbolic.__graph_breaks")
    with compile_log.listening(SimpleNamespace(_logging=logs)) as listener:
        child.debug("Recompiling function forward in train.py:7\n    - 0/0: size mismatch")
        breaks.debug("Graph break in user code at train.py:9")
        dynamo.warning("hit the recompile limit")
        dynamo.warning("hit the recompile limit")
        warnings.warn("TensorFloat32 is available", UserWarning, stacklevel=1)
        logging.getLogger("somebody.else").warning("no business of ours")
        lines, recompiles = listener.take()
        assert listener.take() == ([], 0)
    assert logs.asked == {"graph_breaks": True, "recompiles": True}
    assert recompiles == 1
    assert lines[:3] == [
        "Recompiling function forward in train.py:7",
        "    - 0/0: size mismatch",
        "warning: hit the recompile limit",
    ]
    assert "TensorFloat32 is available" in lines[3]
    dynamo.warning("afterwards")
    assert listener.take() == ([], 0)


def test_a_torch_without_such_logs_is_listened_to_all_the_same() -> None:
    with compile_log.listening(SimpleNamespace()) as listener:
        assert listener.take() == ([], 0)


def test_a_message_that_cannot_be_put_into_words_is_left_out() -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError

    logger = a_logger("torch._odd")
    with compile_log.listening(SimpleNamespace()) as listener:
        logger.warning("%s", Odd())
        logger.warning("fine")
        assert listener.take() == (["warning: fine"], 0)


def test_however_much_is_said_the_event_keeps_the_last_of_it_within_its_limit() -> None:
    logger = a_logger("torch._loud")
    with compile_log.listening(SimpleNamespace()) as listener:
        for number in range(1000):
            logger.warning("%d %s", number, "x" * 5000)
        said = listener.take()
    assert [line.split()[1] for line in said[0]] == [str(n) for n in range(976, 1000)]
    log = compile_log.of_failure(RuntimeError("g++ says " + "é" * 90_000 + " the end"), said)
    assert log["error"].startswith("RuntimeError: g++ says")
    assert log["error"].endswith("the end")
    assert len(log["error"]) <= compile_log.MAX_ERROR
    event = report.fit({"kind": "warmup", "at": 1.0, "data": {"phase": "failed", "log": log}})
    assert len(json.dumps(event)) <= report.MAX_EVENT_BYTES
    assert event["data"]["log"]["error"].startswith("RuntimeError")


def test_what_ran_is_logged_with_the_counters_of_both_steps_and_every_reason() -> None:
    first = evidence.Evidence(2, 3, 2, ("print",), 0, 2, ("call to print\n  Hint: do not",))
    second = evidence.Evidence(2, 3, 2, ("print",), 2, 0)
    log = compile_log.of_success(first, second, (["warning: slow"], 1))
    assert log == {
        "first": {"graphs": 2, "frames": 3, "frames_ok": 2, "graph_breaks": 1,
                  "fx_hit": 0, "fx_miss": 2},
        "second": {"graphs": 2, "frames": 3, "frames_ok": 2, "graph_breaks": 1,
                   "fx_hit": 2, "fx_miss": 0},
        "reasons": ["call to print\n  Hint: do not"],
        "recompiles": 1,
        "lines": ["warning: slow"],
    }  # fmt: skip
