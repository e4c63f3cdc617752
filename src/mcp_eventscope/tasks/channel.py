"""The channel between the tool of a task and its client, which is not connected."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import anyio
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError
from mcp.shared.transport_context import TransportContext
from mcp.types import MISSING_REQUIRED_CLIENT_CAPABILITY, ClientCapabilities, RequestId

from mcp_eventscope.tasks.protocol import JSONObject

Ask: TypeAlias = Callable[[str, JSONObject], Awaitable[dict[str, Any]]]
"""Asks the client: takes a method and its parameters, and returns the client's result."""
Report: TypeAlias = Callable[[str], None]
"""Reports progress as text."""

_CAPABILITIES: Mapping[str, str] = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}


class TaskChannel:
    """The `DispatchContext` of a tool that runs as a task.

    Progress and log messages become the status message of the task, since their notifications are not sent for tasks
    (SEP-2663). Requests to the client become its requests for input.

    Args:
        request_id: The id of the call.
        capabilities: The capabilities of the client that made the call.
        ask: Asks the client.
        report: Reports progress.
    """

    can_send_request = True
    message_metadata = None

    def __init__(
        self, request_id: RequestId | None, capabilities: ClientCapabilities | None, ask: Ask, report: Report
    ) -> None:
        self.transport = TransportContext(kind="task", can_send_request=True)
        self.request_id = request_id
        self.cancel_requested = anyio.Event()
        self._capabilities = capabilities
        self._ask = ask
        self._report = report

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """Ask the client, through the task.

        Raises:
            MCPError: The client lacks the capability, so that it would never answer.
            TimeoutError: The client has not answered within the timeout of the caller.
        """
        needed = _CAPABILITIES.get(method)
        if needed is None or getattr(self._capabilities, needed, None) is None:
            msg = f"The client cannot answer {method}: it has not declared the capability"
            raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, msg)
        with anyio.fail_after((opts or {}).get("timeout")):
            return await self._ask(method, dict(params or {}))

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Report the text of a log message. Other notifications have no place in a task."""
        data = (params or {}).get("data")
        if method == "notifications/message" and isinstance(data, str):
            self._report(data)
        elif method == "notifications/progress" and params is not None:
            await self.progress(params["progress"], params.get("total"), params.get("message"))

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress, with the numbers where there is no message."""
        self._report(message or (f"{progress:g}" if total is None else f"{progress:g}/{total:g}"))


def detached(ctx: ServerRequestContext[Any, Any], ask: Ask, report: Report) -> ServerRequestContext[Any, Any]:
    """The context of a call that runs as a task, whose session no longer depends on its connection.

    Args:
        ctx: The context of the call.
        ask: Asks the client.
        report: Reports progress.
    """
    session = ctx.session
    channel = TaskChannel(ctx.request_id, session.client_capabilities, ask, report)
    connection = Connection(channel, protocol_version=ctx.protocol_version, client_params=session.client_params)
    connection.client_capabilities = session.client_capabilities
    connection.initialized.set()
    return replace(
        ctx,
        session=ServerSession(channel, connection, request_meta=ctx.meta),
        close_sse_stream=None,
        close_standalone_sse_stream=None,
    )
