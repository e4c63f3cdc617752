"""Passes the client's answers and notifications to the worker that they concern."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Protocol

from mcp_eventscope.store import codec
from mcp_eventscope.store.coordination import MESSAGE_SECONDS, MessageKind, WorkerMessage
from mcp_eventscope.store.events import DropReason
from mcp_eventscope.store.messages import JSONRPCError, JSONRPCMessage, JSONRPCResponse

_SENT_BYTES = 16 * 1024
"""Maximum size of a message that is sent without asking. A client may answer what was never asked."""
_HELD_BYTES = 16 * 1024 * 1024
"""Maximum size of the answers that are held until a worker asks for them. Of the session with the most, the oldest are
dropped."""


class Send(Protocol):
    """Sends a message to other workers, as `SessionRegistry.send`."""

    def __call__(self, session_id: str, kind: MessageKind, content: str = "", *, to: str | None = None) -> None:
        """Send the message in the background."""
        ...


class Forwarder:
    """Forwards what a client sent to a worker that it does not concern.

    Small messages are sent to the workers that serve the session. A large answer is offered to them, and sent to the
    one that asked the question: Redis never carries a large answer that was not asked for. A notification of that size
    is dropped: cancellations and progress are small.

    Args:
        send: Sends a message to other workers.
        drop: Counts a message that is dropped.
    """

    def __init__(self, send: Send, drop: Callable[[DropReason], None]) -> None:
        self._send = send
        self._drop = drop
        self._held: defaultdict[str, dict[str, str]] = defaultdict(dict)
        """The offered answers, by session and request id."""
        self._bytes: Counter[str] = Counter()
        """Their sizes, by session."""

    def forward(self, session_id: str, message: JSONRPCMessage) -> None:
        """Forward a message.

        Args:
            session_id: The session.
            message: An answer, a cancellation or a notification of progress.
        """
        content = codec.encode(message).decode()
        if len(content) <= _SENT_BYTES:
            self._send(session_id, MessageKind.DELIVER, content)
        elif isinstance(message, JSONRPCResponse | JSONRPCError) and len(request_id := str(message.id)) <= _SENT_BYTES:
            self._hold(session_id, request_id, content)
            self._send(session_id, MessageKind.OFFER, request_id)
        else:
            self._drop(DropReason.TOO_LARGE)

    def hand_over(self, session_id: str, wanted: WorkerMessage) -> None:
        """Send an offered answer to the worker that asked for it.

        Args:
            session_id: The session.
            wanted: The reply to the offer.
        """
        content = self._release(session_id, wanted.content)
        if content is not None:
            self._send(session_id, MessageKind.DELIVER, content, to=wanted.sender)

    def _hold(self, session_id: str, request_id: str, content: str) -> None:
        self._release(session_id, request_id)
        self._held[session_id][request_id] = content
        self._bytes[session_id] += len(content)
        while self._bytes.total() > _HELD_BYTES:
            ((largest, _),) = self._bytes.most_common(1)
            self._release(largest, next(iter(self._held[largest])))
            self._drop(DropReason.OVERFLOW)
        asyncio.get_running_loop().call_later(MESSAGE_SECONDS, self._expire, session_id, request_id, content)

    def _expire(self, session_id: str, request_id: str, content: str) -> None:
        if self._held.get(session_id, {}).get(request_id) is content:
            self._release(session_id, request_id)

    def _release(self, session_id: str, request_id: str) -> str | None:
        content = self._held.get(session_id, {}).pop(request_id, None)
        if content is not None:
            self._bytes[session_id] -= len(content)
            if not self._held[session_id]:
                del self._held[session_id], self._bytes[session_id]
        return content
