"""The operations on servers and what they hold."""

from __future__ import annotations

from typing import Final

from pytorch_spawner.lab import schemas
from pytorch_spawner.lab.answers import common, servers
from pytorch_spawner.lab.auth import ADMIN
from pytorch_spawner.lab.operations.base import (
    ENTER,
    OWN,
    OWNER,
    SERVER,
    SERVER_PATHS,
    TEXT,
    WHOLE,
    Operation,
)

OPERATIONS: Final = (
    Operation("get", "leases", "Who holds what (or what one holds)", ENTER, servers.Leases),
    *(
        Operation(
            "post",
            f"servers/{path}/stop",
            "Stop a server and tell its student why",
            ADMIN,
            servers.Stopping,
            status=202,
            body=schemas.StopServer,
            errors=(400, 404, 409, 502),
        )
        for path in SERVER_PATHS
    ),
    *(
        Operation(
            "post",
            f"servers/{path}/restart",
            "Stop one's own server, to start it again with the same choice",
            OWN,
            servers.Restarting,
            status=202,
            body=schemas.RestartServer,
            errors=(400, 404, 409, 502),
        )
        for path in SERVER_PATHS
    ),
    *(
        Operation(
            "get",
            f"servers/{path}/restart",
            "Whether it is stopped, and where to start it again with the same choice",
            OWN,
            servers.Restarting,
            query={"start": TEXT},
            errors=(404, 409, 502),
        )
        for path in SERVER_PATHS
    ),
    *(
        Operation(
            "get",
            f"servers/{path}/events",
            "A server's journal: server-sent events, or with format=json a list",
            OWNER,
            servers.Journal,
            query={
                "start": TEXT,
                "after": WHOLE,
                "format": {"type": "string", "enum": ["sse", "json"]},
            },
            errors=(404, 429),
            other="text/event-stream",
        )
        for path in SERVER_PATHS
    ),
    *(
        Operation(
            "get",
            f"servers/{path}/report",
            "What became of a server's latest start, as a text for the helpdesk, without secrets",
            OWNER,
            common.Text,
            errors=(404,),
        )
        for path in SERVER_PATHS
    ),
    *(
        Operation(
            "post",
            f"servers/{path}/events",
            "The agent's report",
            SERVER,
            servers.Accepted,
            body=servers.Report,
            errors=(400, 404, 409, 429),
        )
        for path in SERVER_PATHS
    ),
    *(
        Operation(
            "get",
            f"servers/{path}/course",
            "What the agent is to do with its course's files",
            SERVER,
            servers.CourseOrders,
            errors=(404, 429),
        )
        for path in SERVER_PATHS
    ),
)
