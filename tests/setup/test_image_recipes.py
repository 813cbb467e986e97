"""The catalog's recipes: pinned, matched, one Dockerfile; and the images, where they are built."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "share" / "images"
BUILT = ("pytorch-2.1-cu121", "pytorch-2.6-cu124", "pytorch-2.8-cu128", "pytorch-2.13-cu130")
# torchvision and torchaudio that were released with a torch. Source: torchvision's README,
# "Installation"; torchaudio's "Installation matrix" (2.11 is its last release, for torch >= 2.11).
MATCHED = {
    "2.1.2": ("0.16.2", "2.1.2"),
    "2.6.0": ("0.21.0", "2.6.0"),
    "2.8.0": ("0.23.0", "2.8.0"),
    "2.13.0": ("0.28.0", "2.11.0"),
}
NEEDED = {
    *("torch", "torchvision", "torchaudio", "numpy", "pandas", "matplotlib", "tqdm", "setuptools"),
    *("opencv-python-headless", "nbgitpuller", "jupyterhub", "jupyterlab", "ipykernel"),
}


def run_script(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    unset = ("TORCH_INDEX_URL", "TORCH_REQUIREMENT", "LAB_EXTRAS", "BASE_IMAGE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    script, *rest = words
    return subprocess.run(
        [str(IMAGES / script), *rest],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def pins_of(recipe: str) -> dict[str, str]:
    lines = (IMAGES / "recipes" / f"{recipe}.lock").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    for line in pinned:
        assert re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line), line
    return dict(line.split(" ")[0].split("==") for line in pinned)


def test_the_recipes_are_the_catalogs() -> None:
    listed = run_script("build", "--list").stdout.split()
    assert sorted(listed) == sorted(["cpu", "cuda", "pytorch-2.1-cu118", *BUILT])
    assert list(IMAGES.rglob("Dockerfile*")) == [IMAGES / "Dockerfile"], "one for all of them"


@pytest.mark.parametrize("recipe", BUILT)
def test_a_recipe_pins_all_it_needs_and_what_belongs_together(recipe: str) -> None:
    pins = pins_of(recipe)
    assert set(pins) >= NEEDED
    _, torch, cuda = recipe.split("-")
    assert pins["torch"].startswith(f"{torch}.")
    assert (pins["torchvision"], pins["torchaudio"]) == MATCHED[pins["torch"]]
    runtime = pins.get("nvidia-cuda-runtime-cu12") or pins["nvidia-cuda-runtime"]
    assert f"cu{runtime.replace('.', '')}".startswith(cuda), "CUDA comes in the wheels"
    if torch == "2.1":
        assert pins["numpy"].startswith("1.")
    # OpenCV with windows needs X11; the other one of the two would overwrite its files.
    assert not {"opencv-python", "opencv-contrib-python"} & set(pins)


@pytest.mark.parametrize("recipe", [*BUILT, "pytorch-2.1-cu118"])
def test_a_recipe_is_small_and_has_a_title(recipe: str) -> None:
    text = (IMAGES / "recipes" / f"{recipe}.in").read_text()
    assert len(text.splitlines()) <= 12
    assert re.match(r"#: title PyTorch [0-9.]+, CUDA [0-9.]+\n", text)
    assert "-r common.in" in text


def test_the_recipes_change_nothing_of_the_cpu_image(tmp_path: Path) -> None:
    copied = tmp_path / "images"
    shutil.copytree(IMAGES, copied, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.rmtree(copied / "recipes")
    ask = [str(copied / "build"), "cpu", "--recipe-hash"]
    without = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert run_script("build", "cpu", "--recipe-hash").stdout == without


def test_each_recipe_has_a_hash_of_its_own_that_its_lock_changes() -> None:
    hashes = {
        recipe: run_script("build", recipe, "--recipe-hash").stdout.strip()
        for recipe in ("cpu", "cuda", *BUILT)
    }
    assert len(set(hashes.values())) == len(hashes)
    assert all(re.fullmatch(r"[0-9a-f]{16}", one) for one in hashes.values()), hashes


ADDRESS = "Set TORCH_INDEX_URL to its address."
REFUSALS = [
    (["build", "nosuch"], {}, 2, "no recipe nosuch; there are: cpu cuda pytorch-2.1-cu118"),
    (["build", "../x"], {}, 2, "usage:"),
    (["build", "pytorch-2.1-cu118"], {}, 1, "needs another package index: PyTorch's own index"),
    (["build", "pytorch-2.1-cu118"], {}, 1, ADDRESS),
    (["build", "pytorch-2.6-cu124"], {"TORCH_REQUIREMENT": "torch"}, 1, "has no say in the recipe"),
    (["build", "pytorch-2.6-cu124"], {"LAB_EXTRAS": "tensorrt"}, 1, 'no extra "tensorrt"'),
    (["build", "cpu"], {"LAB_EXTRAS": "tensorrt"}, 1, "is for the recipes of the catalog"),
    (["lock", "nosuch"], {}, 1, "there is no recipe nosuch"),
    (["lock", "pytorch-2.1-cu118"], {}, 1, ADDRESS),
    (["lock", "pytorch-2.6-cu124", "tensorrt"], {}, 1, "NVIDIA's own package index"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "environment", "code", "says"),
    REFUSALS,
    ids=[f"{' '.join(row[0])}: {row[3][:30]}" for row in REFUSALS],
)
def test_what_cannot_be_built_is_refused_with_a_sentence(
    words: list[str], environment: dict[str, str], code: int, says: str
) -> None:
    done = run_script(*words, **environment)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize("script", ["build", "lock", "smoke", "made-of", "base"])
def test_every_script_says_how_it_is_used(script: str) -> None:
    done = run_script(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: share/images/{script}")


# -- the images, where somebody built them -----------------------------------------------------


def inside(image: str, script: str, uid: int = 54321) -> str:
    options = f"--rm --network none --user {uid}:{uid} --cap-drop ALL --env HOME=/tmp"
    done = subprocess.run(
        ["docker", "run", *options.split(), image, "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=BUILT)
def built(request: pytest.FixtureRequest) -> tuple[str, str]:
    image = f"pytorch-spawner/lab:{request.param}"
    words = ["docker", "image", "inspect", image]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip(f"{image} is not built (share/images/build {request.param})")
    return request.param, image


@pytest.mark.docker
@pytest.mark.slow
def test_a_built_image_holds_what_its_lock_says_and_runs_as_anybody(
    built: tuple[str, str],
) -> None:
    recipe, image = built
    done = subprocess.run([IMAGES / "smoke", image], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout
    cuda = recipe.rpartition("-cu")[2]
    assert re.search(rf"^torch .* cuda {cuda[:2]}\.{cuda[2:]}$", done.stdout, re.MULTILINE)
    listed = inside(image, "pip list --format json 2>/dev/null")
    has = {
        re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in json.loads(listed)
    }
    # rfc3987-syntax and lark are taken out on purpose: see the Dockerfile.
    expected = {
        name: version
        for name, version in pins_of(recipe).items()
        if name not in ("rfc3987-syntax", "lark")
    }
    differing = {
        name: (version, has.get(name))
        for name, version in expected.items()
        if (has.get(name) or "").partition("+")[0] != version
    }
    assert differing == {}


@pytest.mark.docker
def test_nothing_is_left_of_a_build_and_nobody_logs_in_as_root(built: tuple[str, str]) -> None:
    _, image = built
    script = """
        find / -xdev \\( -name .cache -o -name '*.whl' -o -name conda -o -name micromamba \\) \
            -not -path '/proc/*' 2>/dev/null
        find /var/lib/apt/lists /var/cache/apt /tmp /var/tmp -type f 2>/dev/null
        ls -d /wheels/* 2>/dev/null; command -v sshd su-exec gosu sudo
        true
    """
    left = inside(image, script).splitlines()
    # What makes new virtual environments is Debian's package for that, not something left over.
    parts = ("site-packages", "/usr/share/python-wheels/")
    assert [line for line in left if not any(part in line for part in parts)] == []
    about = subprocess.run(
        ["docker", "image", "inspect", image], capture_output=True, text=True, check=True
    ).stdout
    (image_,) = json.loads(about)
    assert image_["Config"]["User"] == "65534"
    assert not [one for one in image_["Config"]["Env"] if "CERT" in one or "PIP_" in one]
    # "*" and "!" are the hash of no password.
    assert inside(image, "getent shadow root | cut -d: -f2", uid=0).strip() in ("*", "!", "!*")


@pytest.mark.docker
@pytest.mark.slow
def test_the_labels_of_a_built_image_are_true(built: tuple[str, str]) -> None:
    recipe, image = built
    template = "{{json .Config.Labels}}"
    words = ["docker", "image", "inspect", "--format", template, image]
    labels = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    ask = (
        "import torch; print(torch.__version__, torch.version.cuda, torch._C._cuda_getArchFlags())"
    )
    torch, cuda, *archs = inside(image, f"python3 -c '{ask}'").split()
    label = "org.pytorch-spawner.image."
    assert (labels[f"{label}torch"], labels[f"{label}cuda"]) == (torch, cuda)
    assert labels[f"{label}archs"] == ",".join(archs)
    assert labels[f"{label}variant"] == recipe
