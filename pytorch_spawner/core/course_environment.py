"""Which variables a course may not set, and what of its environment a start gets. Pure.

Two rules, because of the manifests that are stored: one that breaks ``is_the_labs`` is none. What
``why_not`` says beyond that is refused where a manifest is written; of one that is older than the
rule, the variable is left out of a start, and the course stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# Variables that decide who a container is, what it reaches, which GPU and how much of it it sees,
# or what runs in everybody's shell, Python or git before a person's own code does.
_THE_LABS: Final = re.compile(
    r"(JUPYTER|JPY_|PYTORCH_SPAWNER|PYTORCH_CUDA_ALLOC_CONF|PYTORCH_ALLOC_CONF|NVIDIA_|CUDA_MPS_"
    r"|TORCHINDUCTOR_CACHE|TORCH_COMPILE_JOB|TRITON_CACHE|LD_|GIT_|IPYTHON|PIP_|XDG_|SSL_|BASH_"
    r"|PYTHON(?!HASHSEED\Z|UNBUFFERED\Z)"
    r"|(PATH|HOME|USER|LOGNAME|SHELL|ENV|TMPDIR|NB_USER|NB_UID|CUDA_VISIBLE_DEVICES"
    r"|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NODE_EXTRA_CA_CERTS|[A-Z]+_PROXY)\Z)"
)
# Variables by which a program runs another one, or loads a library, that the person never named.
# Sources: the programs' manual pages; ld.so(8) and the CUDA driver's injection libraries.
_RUNS_FIRST: Final = re.compile(
    "|".join(
        (
            # The shell: a prompt and MAILPATH are expanded, and expanding runs commands.
            r"PROMPT_COMMAND|PS[0-4]|SHELLOPTS|BASHOPTS|INPUTRC|ZDOTDIR|FCEDIT|MAILPATH",
            # Pagers, editors, browsers and remote shells, which git, pip, man and others run.
            r"[A-Z0-9_]*(PAGER|EDITOR)|VISUAL|BROWSER|LESS(OPEN|CLOSE|KEY[A-Z_]*)?|[A-Z_]+_RSH|SSH_.*",
            r"TAR_OPTIONS|CURL_HOME|WGETRC",
            # Compilers, which torch.compile and C++ extensions run; some flags name a program, too.
            r"CC|CXX|CPP|AR|AS|LD|(C|CXX|CPP|LD)FLAGS|CUDA_(HOME|PATH)|CUDACXX|CUDAHOSTCXX|NVCC_.*",
            r"CPATH|(C|CPLUS)_INCLUDE_PATH|LIBRARY_PATH|COMPILER_PATH|GCC_EXEC_PREFIX|CMAKE_.*",
            r"(GNU)?MAKEFLAGS|MAKEFILES|TRITON_([A-Z0-9_]+_)?(PATH|DIRS?|HOME)",
            # Libraries that are loaded into every process, and code that is cached for the GPU.
            r"GCONV_PATH|OPENSSL_.*|(CUDA|NVTX)_INJECTION.*|NCCL_[A-Z]+_PLUGIN|CUDA_CACHE_PATH",
            # Interpreters and package managers. MPLBACKEND may name a module of anybody's.
            r"MPLBACKEND|MPLCONFIGDIR|MATPLOTLIBRC|(CONDA|MAMBA|UV|NPM)_.*|NODE_(OPTIONS|PATH|REPL_.*)",
            r"PERL(5.*|LIB|_.*)|RUBY.*|GEM_.*|LUA_.*|JULIA_(?!NUM_THREADS\Z).*",
            r"R_(PROFILE|ENVIRON|LIBS|HOME|DEFAULT_PACKAGES).*",
            r"(_JAVA|JAVA_TOOL|JDK_JAVA)_OPTIONS|JAVA_HOME|CLASSPATH",
        )
    )
)


def is_the_labs(name: str) -> bool:
    """Whether a variable is the lab's own, so that no manifest ever held it."""
    return _THE_LABS.match(name.upper()) is not None


def why_not(name: str) -> str:
    """Why a course may not set a variable; "" where it may."""
    if is_the_labs(name):
        return "is set by the lab"
    if _RUNS_FIRST.fullmatch(name.upper()):
        return "decides what runs beside a person's own code"
    return ""


def allowed(said: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What of a course's environment its starts get.

    Returns:
        The variables, and a sentence with the remedy for each that is left out.
    """
    found = {name: value for name, value in said.items() if not why_not(name)}
    return found, tuple(
        f"The course's variable {name[:60]} is not set: it {why_not(name)}. Whoever teaches the "
        "course takes it out of the manifest's environment."
        for name in said
        if name not in found
    )
