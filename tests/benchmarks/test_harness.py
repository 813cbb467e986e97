"""The results have the shape that others read, and the fake engine behaves like one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, NotFound
from docker.types import DeviceRequest

from pytorch_spawner.adapters import engine as adapter
from pytorch_spawner.adapters import home_engine
from tests.benchmarks import fake_engine
from tests.benchmarks.harness import Bench, percentile
from tests.benchmarks.loop_meter import blocked

QUICK = fake_engine.Latencies(1, 1, 1, 1, 1, 1, 1, 1, boot=20, job=1)


def test_results_have_the_fixed_shape(tmp_path: Path) -> None:
    bench = Bench("example")
    bench.add("ours", [1.0, 3.0, 2.0])
    bench.add("stock", [10.0], with_p99=True, goal=5)
    bench.ratios["ours/stock"] = 0.2
    told = json.loads(bench.write(tmp_path).read_text())
    assert {key: type(value) for key, value in told.items()} == {
        "name": str,
        "machine": str,
        "at": str,
        "unit": str,
        "rows": list,
        "ratios": dict,
    }
    assert told["rows"][0] == {"what": "ours", "n": 3, "median": 2.0, "min": 1.0, "max": 3.0}
    assert told["rows"][1]["p99"] == 10.0
    assert told["rows"][1]["met"] is False
    assert told["ratios"] == {"ours/stock": 0.2}
    assert "ours/stock = 0.2" in bench.table()


def test_a_row_without_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples of nothing"):
        Bench("example").add("nothing", [])


def test_percentiles_are_samples_by_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 99) == 7


def test_a_late_wake_up_counts_for_all_the_others_it_kept_from_happening() -> None:
    assert blocked([0.0, 12.0, 1.0], every_ms=5) == [0.0, 12.0, 7.0, 2.0, 1.0]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[fake_engine.Engine]:
    with fake_engine.running_engine(tmp_path, gpus=2, latencies=QUICK) as running:
        yield running


def _create(client: Any, name: str, device: str) -> str:
    host = client.create_host_config(
        auto_remove=True,
        network_mode=fake_engine.NETWORK,
        device_requests=[DeviceRequest(driver="cdi", device_ids=[device])],
    )
    made = client.create_container(
        "lab:cpu", name=name, ports=[8888], labels={"of": "bench"}, host_config=host
    )
    return str(made["Id"])


def test_the_fake_engine_serves_a_docker_client(fake: fake_engine.Engine) -> None:
    client = docker.APIClient(base_url=fake.host, version="auto")
    device = f"{fake_engine.KIND}={fake_engine.device_names(2)[0]}"
    container = _create(client, "lab-ada", device)
    assert client.inspect_container("lab-ada")["State"]["Status"] == "created"
    with pytest.raises(APIError) as taken:
        _create(client, "lab-ada", device)
    assert taken.value.status_code == 409
    client.start(container)
    state = client.inspect_container(container)
    assert state["State"]["Running"]
    assert state["NetworkSettings"]["Networks"]["bench"]["IPAddress"].startswith("127.77.")
    assert adapter.read_file(client, container, "/etc/passwd").startswith("root:x:0:0")
    adapter.put_files(client, container, {"/etc/passwd": (b"root:x:0:0", 0o644)})
    assert client.logs(container) == b""
    assert [row["Id"] for row in client.containers(filters={"label": "of=bench"})] == [container]
    assert client.containers(filters={"label": "of=nobody"}) == []
    assert fake.told()["devices_held"] == 1
    events = client.events(filters={"event": ["die"], "label": "of=bench"}, decode=True)
    adapter.remove(client, container)
    assert next(events)["Actor"]["Attributes"]["name"] == "lab-ada"
    events.close()
    with pytest.raises(NotFound):
        client.inspect_container(container)
    assert fake.told()["unknown"] == {}


def test_the_fake_engine_refuses_what_an_engine_refuses(fake: fake_engine.Engine) -> None:
    client = docker.APIClient(base_url=fake.host, version="auto")
    assert adapter.find_injection(client).kind == "cdi"
    container = _create(client, "lab-bob", f"{fake_engine.KIND}=GPU-none")
    with pytest.raises(APIError, match="CDI device injection failed"):
        client.start(container)
    client.remove_container(container)
    place = home_engine.Place(volume="home-bob")
    assert home_engine.volume_birth(client, "home-bob", {}) == home_engine.volume_birth(
        client, "home-bob", {}
    )
    home_engine.prepare_places(client, "lab:cpu", [place], 20000, 20000, {})
    assert fake.told()["containers"] == 0
    client.get(f"{client.base_url}/v1.51/swarm")
    assert fake.told()["unknown"] == {"GET /v1.51/swarm": 1}
