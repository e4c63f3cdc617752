"""The duration and the outcome of each request of a session."""

from collections.abc import Callable
from time import monotonic

from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE
from mcp_eventscope.store.messages import JSONRPCError, JSONRPCMessage, JSONRPCResponse, StreamId
from mcp_eventscope.telemetry.catalog.sessions import TOOL_ERROR


class Operations:
    """Reports each request that runs here once, when it ends.

    A request ends with its response, or with the error that replaces it: because the session ends here, another worker
    has answered in its place, or the client has reused its id.
    """

    def __init__(self) -> None:
        self._running: dict[StreamId, tuple[str, float]] = {}
        """Method and arrival, by the transport's stream id."""
        self.report: Callable[[str, float, str], None] | None = None
        """Called with the method, the seconds from arrival to end, and the error type ("" without an error)."""

    @property
    def running(self) -> tuple[StreamId, ...]:
        """The requests that run here."""
        return tuple(self._running)

    def begin(self, stream_id: StreamId, method: str, received: float) -> None:
        """Note an admitted request.

        Args:
            stream_id: The stream id of the transport: the request id as text.
            method: The method, as the client wrote it.
            received: When it arrived, on the clock of `time.monotonic`.
        """
        self.fail(stream_id, EVENTS_GONE)  # As the store answers a request whose id is reused before its response.
        self._running[stream_id] = method, received

    def answer(self, stream_id: StreamId, response: JSONRPCMessage | None) -> None:
        """End a request with its response."""
        if isinstance(response, JSONRPCError):
            self.fail(stream_id, response.error.code)
        elif stream_id in self._running:
            method, _ = self._running[stream_id]
            failed = isinstance(response, JSONRPCResponse) and response.result.get("isError") is True
            self._end(stream_id, TOOL_ERROR if failed and method == "tools/call" else "")

    def fail(self, stream_id: StreamId, code: int) -> None:
        """End a request, if it still runs, with a JSON-RPC error code."""
        if stream_id in self._running:
            self._end(stream_id, str(code))

    def _end(self, stream_id: StreamId, error_type: str) -> None:
        method, received = self._running.pop(stream_id)
        if self.report is not None:
            self.report(method, monotonic() - received, error_type)
