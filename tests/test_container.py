"""A hub that starts asks each server where it is; whatever the engine does, it starts."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from docker.errors import APIError, NullResource

from pytorch_spawner.container import ContainerSpawner
from pytorch_spawner.errors import EngineUnavailable

STORED = "http://172.18.0.2:8888/user/ana/"


class Spawner(ContainerSpawner):
    """Of a server that ran when the hub ended."""

    server = SimpleNamespace(url=STORED, base_url="/user/ana/")
    log = logging.getLogger("test")
    answer: Any = None

    @property
    def object_name(self) -> str:
        return "lab-ana"

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def running_in(network: str) -> dict[str, Any]:
    return {"Id": "c0", "NetworkSettings": {"Networks": {network: {"IPAddress": "172.18.0.9"}}}}


@pytest.mark.parametrize(
    "answer",
    [
        EngineUnavailable("The Docker Engine does not answer."),
        requests.exceptions.ConnectionError("refused"),
        requests.exceptions.ReadTimeout("60 s"),
        APIError("500"),
        NullResource("no id"),
        running_in("another"),
        {"Id": "c0"},
    ],
    ids=lambda answer: type(answer).__name__,
)
async def test_whatever_the_engine_says_the_hub_has_an_address(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    spawner = Spawner(use_internal_ip=True, network_name="lab")
    spawner.answer = answer
    assert await spawner.get_url() == STORED
    assert "its address is not known anew" in caplog.text


async def test_an_address_that_changed_is_the_new_one() -> None:
    spawner = Spawner(use_internal_ip=True, network_name="lab")
    spawner.answer = running_in("lab")
    assert await spawner.get_url() == "http://172.18.0.9:8888/user/ana/"
