"""A notebook waits neither for TCP's economy nor for the server's second question."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.services.kernels.connection import channels
from pytorch_spawner_standby import prompt

SETTING = "kernel_websocket_connection_class"


class Channel:
    """A control channel that counts what is asked over it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._closed = False

    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True


class Handler:
    """The websocket's handler."""

    def __init__(self) -> None:
        self.nodelay: list[bool] = []

    def set_nodelay(self, value: bool) -> None:
        self.nodelay.append(value)


class Manager:
    """The kernel's manager."""

    def __init__(self) -> None:
        self.channel = Channel()

    def connect_control(self) -> Channel:
        return self.channel


class Session:
    """What sends; the kernel is heard after some questions."""

    def __init__(self, is_heard: Callable[[], None], after: int) -> None:
        self._is_heard = is_heard
        self._after = after

    def send(self, channel: Channel, kind: str) -> None:
        channel.asked.append(kind)
        if len(channel.asked) == self._after:
            self._is_heard()


class Usual:
    """Jupyter's connection, as far as it is touched; each part is an object of its own."""

    def __init__(self, connected: Callable[[], Any], is_heard_after: int = 10**6) -> None:
        self._connected = connected
        self.websocket_handler = Handler()
        self.kernel_manager = Manager()
        self.session = Session(lambda: self.result.set_result(None), is_heard_after)
        self.result: Any = None

    def connect(self) -> Any:
        self.result = self._connected()
        return self.result


def connect(made: Usual) -> Any:
    return made.connect()


def a_future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def test_small_messages_leave_at_once() -> None:
    made = prompt.prompt(Usual)(lambda: None)
    assert connect(made) is None
    assert made.websocket_handler.nodelay == [True]


async def test_the_kernel_is_asked_until_it_is_heard_and_then_no_more() -> None:
    made = prompt.prompt(Usual)(a_future, is_heard_after=3)
    await asyncio.wait_for(connect(made), 1.0)
    await asyncio.sleep(0.1)
    assert made.kernel_manager.channel.asked == ["kernel_info_request"] * 3
    assert made.kernel_manager.channel.closed()


async def test_a_kernel_that_is_not_heard_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompt, "_FIRST_S", 0.001)
    monkeypatch.setattr(prompt, "_ALL_S", 0.01)
    made = prompt.prompt(Usual)(a_future)
    connected = connect(made)
    await asyncio.sleep(0.1)
    asked = len(made.kernel_manager.channel.asked)
    assert 1 <= asked <= 10
    await asyncio.sleep(0.1)
    assert len(made.kernel_manager.channel.asked) == asked
    assert not made.kernel_manager.channel.closed(), "what was asked may still be answered"
    connected.cancel()
    await asyncio.sleep(0)
    assert made.kernel_manager.channel.closed()


async def test_a_connection_that_is_there_already_is_not_asked() -> None:
    def there() -> asyncio.Future[None]:
        done = a_future()
        done.set_result(None)
        return done

    made = prompt.prompt(Usual)(there)
    await connect(made)
    await asyncio.sleep(0.05)
    assert made.kernel_manager.channel.asked == []


def test_the_questions_end_within_two_seconds() -> None:
    waits = list(prompt.delays())
    assert waits[0] == 0.02
    assert waits == sorted(waits)
    assert sum(waits) <= 2.0 < sum(waits) + waits[-1]


@pytest.mark.parametrize("part", ["websocket_handler", "kernel_manager", "session"])
async def test_a_version_without_one_of_these_connects_as_ever(part: str) -> None:
    made = prompt.prompt(Usual)(a_future)
    delattr(made, part)
    connected = connect(made)
    assert connected is made.result
    await asyncio.sleep(0.05)
    assert not connected.done()


@pytest.mark.parametrize("manager", [None, object()])
def test_kernels_that_run_elsewhere_are_reached_as_ever(manager: Any) -> None:
    settings = {SETTING: channels.ZMQChannelsWebsocketConnection, "kernel_manager": manager}
    assert prompt.make_prompt(settings) is True


@pytest.mark.parametrize("settings", [{}, {SETTING: None}, {SETTING: int}])
def test_a_server_without_the_place_for_it_stays_as_it_is(settings: dict[str, Any]) -> None:
    before = dict(settings)
    assert prompt.make_prompt(settings) is False
    assert settings == before


def test_jupyters_own_class_keeps_its_configuration() -> None:
    usual = channels.ZMQChannelsWebsocketConnection
    settings: dict[str, Any] = {SETTING: usual}
    assert prompt.make_prompt(settings) is True
    ours = settings[SETTING]
    assert issubclass(ours, usual)
    # By the names of a class's parents traitlets finds c.ZMQChannelsWebsocketConnection.
    assert usual.__name__ in ours.section_names()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real Jupyter Server with a real kernel says of each of six connections."""
    script = Path(__file__).with_name("prompt_server.py")
    folder = tmp_path_factory.mktemp("prompt")
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_real_server_sends_small_messages_at_once(real: dict[str, Any]) -> None:
    assert [one["nodelay"] for one in real["connections"]] == [True] * 6


@pytest.mark.slow
def test_a_real_kernel_is_asked_over_a_channel_that_is_closed_again(real: dict[str, Any]) -> None:
    assert all(one["asked"] >= 1 for one in real["connections"])
    assert real["open_channels"] == 0


@pytest.mark.slow
def test_a_real_kernel_that_does_not_listen_yet_is_tried_again_soon(real: dict[str, Any]) -> None:
    """ZeroMQ's own pause is 100 to 200 ms."""
    assert real["again_ms"] == [10] * 3


@pytest.mark.slow
def test_a_status_that_the_server_missed_is_told_before_its_second_question(
    real: dict[str, Any],
) -> None:
    """After 0.5 s otherwise. One of six may be that late: the machine may be busy elsewhere."""
    late = [one["seconds"] for one in real["connections"] if one["seconds"] > 0.45]
    assert len(late) <= 1, late
