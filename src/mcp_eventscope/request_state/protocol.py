"""The interface of request states: what a server installs, and a decorator wraps."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

from mcp.server.context import ServerMiddleware

from mcp_eventscope.request_state.facts import RequestStateFact


@runtime_checkable
class RequestState(Protocol):
    """Protects the states of multi-round-trip requests."""

    @property
    def audience(self) -> str | None:
        """The name of the service; None: the name of the server in which it is installed."""
        ...

    def middleware(self, audience: str) -> ServerMiddleware[Any]:
        """Create the middleware that replaces the SDK's `RequestStateBoundary`.

        Args:
            audience: The name of the server, the same in all of its processes.
        """
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Keep the keys current in the background, while the server runs."""
        ...

    def observe(self, callback: Callable[[RequestStateFact], None]) -> None:
        """Register a callback for facts. It must not block; its exceptions are suppressed."""
        ...


class Answer(Protocol):
    """The first use of an answer."""

    async def settle(self, outcome: bytes) -> bytes:
        """Record its outcome.

        Args:
            outcome: From `outcomes`.

        Returns:
            The outcome that stands: another one if this worker was declared dead in the meantime.
        """
        ...


class Answers(Protocol):
    """Lets each answer take effect once."""

    def require_running(self) -> None:
        """Check, before a question is sent, that its answer can be processed.

        Raises:
            MCPError: The request state is not running.
        """
        ...

    async def prepare(self, token: str) -> None:
        """Learn the key of a token that this worker does not know.

        Args:
            token: The token of a request with an answer.

        Raises:
            MCPError: The key could not be looked up, or the request state is not running.
        """
        ...

    async def claim(self, state: str, answer: str) -> Answer | bytes:
        """Claim an answer, or wait for the outcome of its first use.

        Args:
            state: The digest of the token.
            answer: The digest of the answer.

        Returns:
            The claim, if this is the first use; else the recorded outcome.

        Raises:
            MCPError: The answer was refused. It had no effect.
        """
        ...
