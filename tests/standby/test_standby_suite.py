"""jupyter_kernel_test's suite, which kernels are tested with, on both kinds."""

from __future__ import annotations

from typing import Any

import pytest

jupyter_kernel_test = pytest.importorskip("jupyter_kernel_test")
from standby_kernels import Kernel, Site  # noqa: E402

pytestmark = pytest.mark.programs


class Suite(jupyter_kernel_test.KernelTests):
    """What an ipykernel can do."""

    __test__ = False
    standby = True
    kernel: Kernel
    site: Site

    kernel_name = "python3"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [{"text": "zi", "matches": {"zip"}}]  # noqa: RUF012
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]  # noqa: RUF012
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]  # noqa: RUF012
    invalid_code_samples = ["import = 7q"]  # noqa: RUF012
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = [{"code": "1+2+3", "result": "6"}]  # noqa: RUF012
    code_display_data = [  # noqa: RUF012
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))",
            "mime": "text/html",
        }
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None:
        cls.site = Site()
        cls.kernel = cls.site.start(standby=cls.standby)
        assert cls.kernel.was_standby is cls.standby
        cls.km: Any = cls.kernel.manager
        cls.kc = cls.kernel.client

    @classmethod
    def tearDownClass(cls) -> None:
        cls.site.close()


class TestStandby(Suite):
    __test__ = True


class TestOrdinary(Suite):
    __test__ = True
    standby = False
