"""Scripted journals: what hub and agent write in the situations that the pages have to show."""

from __future__ import annotations

from typing import Any

from lab_fakes import GPU

Story = list[tuple[float, str, dict[str, Any]]]


def check(
    code: str, level: str = "ok", sentence: str = "", **more: Any
) -> tuple[str, dict[str, Any]]:
    return "check", {
        "code": code,
        "phase": "done",
        "level": level,
        "sentence": sentence or f"{code} is as it should be.",
        "remedy": "",
        "admin_remedy": "",
        "seconds": 0.1,
        "facts": {},
        **more,
    }


CODES = [
    "driver",
    "cuda",
    "device",
    "tensor",
    "architecture",
    "memory",
    "shm",
    "home",
    "disk",
    "hub",
    "python",
    "compiler",
    "cache",
    "dataloader",
    "uid",
]
SENTENCES = {
    "driver": "Driver 580.159.04 runs CUDA 13.0.",
    "cuda": "PyTorch 2.9.1 was built for CUDA 12.8.",
    "device": "PyTorch sees 1 GPU.",
    "tensor": "A first tensor was computed on the GPU in 0.4 s.",
    "home": "The home directory can be written; 41 GB are free.",
}
TARGETS = [
    {"id": "cnn", "model": "cnn", "mode": "default"},
    {"id": "mlp", "model": "mlp", "mode": "reduce-overhead"},
    {"id": "gpt", "model": "gpt", "mode": "default"},
]


def hub_until(stage: str, gpus: list[dict[str, Any]] | None = None) -> Story:
    gpus = [GPU] if gpus is None else gpus
    said = "This server runs without a GPU." if not gpus else f"{gpus[0]['name']} is yours."
    story: Story = [
        (0.0, "start", {"stage": "requested", "message": "Your server is being prepared."}),
        (
            0.1,
            "start",
            {"stage": "gpu", "message": said, "share": "whole" if gpus else "none", "gpus": gpus},
        ),
        (0.3, "start", {"stage": "home", "message": "Your home directory is ready."}),
        (0.32, "start", {"stage": "image", "message": "Using the image lab/base:1."}),
        (0.7, "start", {"stage": "container", "message": "The container runs."}),
        (3.0, "start", {"stage": "lab", "message": "JupyterLab answers.", "url": "/user/ana/"}),
    ]
    names = [entry[2]["stage"] for entry in story]
    return story[: names.index(stage) + 1] if stage in names else []


def checks(**different: tuple[str, dict[str, Any]]) -> Story:
    story: Story = [(1.0, "check", {"code": "", "phase": "plan", "codes": CODES})]
    for code in CODES:
        story.append((1.2, *different.get(code, check(code, sentence=SENTENCES.get(code, "")))))
    return [*story, (2.2, "done", {"part": "checks", "seconds": 1.2, "level": "ok"})]


def warmup(done: int = 3, device: str = "cuda:0") -> Story:
    plan = {"phase": "plan", "targets": TARGETS, "device": device, "device_name": GPU["name"]}
    story: Story = [(3.2, "warmup", plan)]
    times = [(8.04, 1.1, False), (2.2, 0.6, False), (1.4, 1.3, True)]
    for place, target in enumerate(TARGETS[:done]):
        cold_s, warm_s, from_cache = times[place]
        ended = {
            "phase": "done",
            **target,
            "cold_s": cold_s,
            "warm_s": warm_s,
            "from_cache": from_cache,
            "counters": {"fx_hit": 0, "fx_miss": 1},
            "message": "",
        }
        story.append((6.0 + 3 * place, "warmup", ended))
    if done < len(TARGETS):
        story.append((6.1 + 3 * done, "warmup", {"phase": "running", **TARGETS[done]}))
    else:
        story.append((13.0, "done", {"part": "warmup", "seconds": 11.6, "level": "ok"}))
    return story


def samples(*busy: float | None) -> Story:
    return [
        (
            4.0 + place,
            "sample",
            {
                "gpus": [
                    {
                        "uuid": GPU["uuid"],
                        "utilisation_pct": value,
                        "memory_used_mib": 3174,
                        "memory_total_mib": 81559,
                        "temperature_c": 41,
                        "power_w": None if value is None else 121.4,
                    }
                ]
            },
        )
        for place, value in enumerate(busy)
    ]


SHM = check(
    "shm",
    "warn",
    "/dev/shm is 64 MB, so a DataLoader with several workers may crash.",
    remedy="Use num_workers=0 until it is larger.",
    admin_remedy="Set c.PyTorchSpawner.shm_size to at least 1g.",
)
DRIVER = check(
    "driver",
    "fail",
    "The driver 470.82 is too old for CUDA 12.8.",
    remedy="Stop the server and start it with the image pytorch-2.1-cu118.",
    admin_remedy="Install driver 525.60.13 or later.",
)
SIMULATED = {**GPU, "name": "Simulated GPU", "is_simulated": True, "driver": "", "pool": "default"}
BAD = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b>'

FINE = [*hub_until("lab"), *checks(), *warmup(), *samples(12, 30, 45, 62, 38)]
WARMING = [*hub_until("lab"), *checks(shm=SHM), *warmup(2), *samples(88, 91, 90)]
FAILING = [*hub_until("lab"), *checks(driver=DRIVER, shm=SHM), *samples(None)]
CPU = [*hub_until("lab", []), *checks(), *warmup(device="cpu")]
SIMULATION = [*hub_until("lab", [SIMULATED]), *checks(), *warmup(1, device="cpu")]
STARTING = [*hub_until("image")]
QUEUED: Story = [
    (0.0, "start", {"stage": "requested", "message": "Your server is being prepared."}),
    (0.1, "queue", {"place": 3, "reason": "All 8 GPUs are in use.", "expected_at": None}),
]
DIED = [
    *hub_until("container"),
    *checks()[:6],
    (
        2.0,
        "start",
        {
            "stage": "failed",
            "code": "container-died",
            "message": "The container ran out of memory before JupyterLab answered.",
            "remedy": "Start it again; if it happens again, ask for more memory.",
            "log_tail": [
                "[I 2026-03-02 09:00:01 ServerApp] starting",
                "Traceback (most recent call last):",
                "MemoryError",
                "JUPYTERHUB_API_TOKEN=0123456789abcdef0123456789abcdef",
                BAD,
            ],
        },
    ),
]
HOSTILE = [
    *hub_until("lab", [{**GPU, "name": BAD, "driver": BAD}]),
    (1.0, "check", {"code": "", "phase": "plan", "codes": [BAD, 7, None]}),
    (1.1, *check(BAD, "warn", BAD, remedy=BAD, admin_remedy=BAD)),
    (1.1, *check("long", "fail", "x" * 3000)),
    (1.1, "check", {"code": "odd", "phase": "done", "level": {"x": 1}, "sentence": ["no"]}),
    (1.1, "check", {"code": 7}),
    (1.2, "warmup", {"phase": "plan", "targets": [BAD, {"id": BAD, "model": BAD, "mode": BAD}]}),
    (1.3, "warmup", {"phase": "failed", "id": BAD, "message": BAD, "cold_s": "soon"}),
    (1.4, "sample", {"gpus": [{"uuid": GPU["uuid"], "utilisation_pct": 1e300, "power_w": "x"}]}),
    (1.4, "sample", {"gpus": "none"}),
    (1.5, "course", {"whatever": BAD}),
]
