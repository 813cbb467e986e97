"""JupyterHub's ways of saying no, and of being asked, for the versions we support (5.3 to 6)."""

from __future__ import annotations

import html
from typing import Any

from jupyterhub.handlers.pages import SpawnHandler

from pytorch_spawner.errors import LabError

try:
    from jupyterhub.spawner import SpawnException
except ImportError:  # JupyterHub 5 has none; an HTTPError is passed on with its message
    from tornado.web import HTTPError

    class SpawnException(HTTPError):  # type: ignore[no-redef]
        """JupyterHub 6's exception, as much of it as is used here."""

        def __init__(self, message: str, *, status_code: int = 400, **_: Any) -> None:
            super().__init__(status_code, message.replace("%", "%%"))


_STATUS = {
    "bad-request": 400,
    "not-granted": 403,
    "no-gpu-available": 409,
    "removed-from-queue": 409,
    "start-is-over": 409,
    "engine-unavailable": 503,
    "ledger-unavailable": 503,
}


class StartRefused(SpawnException):  # type: ignore[misc]
    """A start that ended in a sentence instead of a server.

    JupyterHub 6.1.1's pages look only at ``jupyterhub_message`` and ``jupyterhub_html_message``
    (jupyterhub/utils.py, format_exception), which SpawnException itself does not set: without them
    the log-only text is shown instead.
    """

    def __init__(self, message: str, *, code: str, html_message: str, status_code: int) -> None:
        super().__init__(message, reason=code, log_message=message, status_code=status_code)
        self.code = code
        self.jupyterhub_message = message
        self.jupyterhub_html_message = html_message

    @classmethod
    def of(cls, error: LabError) -> StartRefused:
        """Say a LabError to the hub; the container's last lines are escaped."""
        sentence = html.escape(error.public_message)
        lines = html.escape("\n".join(error.log_tail))
        tail = (
            f"<details><summary>Last lines</summary><pre>{lines}</pre></details>" if lines else ""
        )
        return cls(
            error.public_message,
            code=error.code,
            html_message=f"<p>{sentence}</p>{tail}",
            status_code=_STATUS.get(error.code, 500),
        )


def is_asked_by_page(handler: Any) -> bool:
    """Whether a person who looks at the hub's pages asked for a start, and not a program.

    Args:
        handler: Of the request; None where there is none.
    """
    return isinstance(handler, SpawnHandler)
