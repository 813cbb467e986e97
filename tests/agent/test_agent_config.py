"""What the spawner tells the agent."""

from __future__ import annotations

import json

import pytest

from pytorch_spawner.agent.config import Config, Gpu, as_job, from_job, parse

FULL = {
    "v": 1,
    "start": "s-1",
    "server": "ana/",
    "gpus": [{"uuid": "GPU-1", "name": "H100", "memory_mib": 81559, "simulated": False}],
    "share": "whole",
    "cache_dir": "/cache",
    "warmup": {"enabled": False, "models": ["mlp"], "modes": ["max-autotune"], "deadline_s": 30},
    "checks": {"deadline_s": 5},
    "shm_expected_mib": 2048,
    "from_the_future": {"x": 1},
}


def test_everything_that_is_said_is_read_and_unknown_keys_are_ignored() -> None:
    assert parse(json.dumps(FULL)) == (
        Config(
            start="s-1", server="ana/", gpus=(Gpu("GPU-1", "H100", 81559),), share="whole",
            cache_dir="/cache", warmup_enabled=False, warmup_models=("mlp",),
            warmup_modes=("max-autotune",), warmup_deadline_s=30, check_deadline_s=5,
            shm_expected_mib=2048,
        ),
        "",
    )  # fmt: skip


@pytest.mark.parametrize("text", [None, "", "{}"])
def test_nothing_said_gives_the_defaults_and_unknown_gpus(text: str | None) -> None:
    config, trouble = parse(text)
    assert (config, trouble) == (Config(), "")
    assert config.gpus is None
    assert config.may_use_gpu


@pytest.mark.parametrize("text", ["{", "[]", "null", "3", "[" * 100_000])
def test_nonsense_gives_the_defaults_and_a_sentence(text: str) -> None:
    config, trouble = parse(text)
    assert config == Config()
    assert trouble.endswith("defaults apply.")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("start", 5), ("gpus", "all"), ("share", "half"), ("cache_dir", None), ("warmup", 1),
        ("warmup", {"deadline_s": -1}), ("warmup", {"deadline_s": True}),
        ("checks", {"deadline_s": 0}),
        ("shm_expected_mib", "1g"), ("shm_expected_mib", float("nan")),
        ("warmup", {"models": "mlp"}),
    ],
)  # fmt: skip
def test_a_wrong_value_is_the_default(key: str, value: object) -> None:
    assert parse(json.dumps({key: value})) == (Config(), "")


def test_no_gpus_means_none_are_shared_and_a_simulated_one_is_not_real() -> None:
    assert parse('{"gpus": []}')[0].share == "none"
    assert parse('{"share": "none"}')[0].gpus == ()
    simulated = parse('{"gpus": [{"uuid": "GPU-s", "simulated": true}]}')[0]
    assert simulated.share == "whole"
    assert simulated.real_gpus == ()
    assert not simulated.may_use_gpu


@pytest.mark.parametrize("text", [json.dumps(FULL), "{}"])
def test_a_worker_reads_the_same_configuration(text: str) -> None:
    config, _ = parse(text)
    assert from_job(json.loads(json.dumps(as_job(config)))) == config
