"""What the transport of one session has as its event store: ids for the wire, following, and no store failures."""

import anyio

from mcp_eventscope.errors import StoreError
from mcp_eventscope.sessions import wire
from mcp_eventscope.types import EventCallback, EventId, EventMessage, EventStore, FactStore, JSONRPCMessage, StreamId


class SessionView(EventStore):
    """One session's view of a store.

    Args:
        store: The session's part of the store. It is expected to tell its own failures (`InstrumentedEventStore`).
        follow_limit: Seconds that a resumed stream is followed at most; the client then comes back by itself.
    """

    def __init__(self, store: FactStore, *, follow_limit: float) -> None:
        self._store = store
        self._follow_limit = follow_limit
        self._resuming: set[anyio.CancelScope] = set()
        self._closed = False

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event of the session.

        Args:
            stream_id: The stream, named after a request id of the client's.
            message: The message, or None for a priming event.

        Returns:
            Its id on the wire; "" when it could not be stored: the transport then sends it live, without an id.
        """
        try:
            name = wire.stream_name(stream_id)
            appended = await self._store.append(name, message)
        except Exception:  # noqa: BLE001 - the store has told it; raised here, the SDK would end the session for good
            return ""
        return wire.join(appended.event_id, name)

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> None:
        """Deliver what the client missed, and go on with what is stored later, until the response of the request.

        The SDK's own way, to replay here and then go live, loses what is stored between the two, and never ends a
        stream that is complete; so this returns only when nothing more is owed, and the stream is then closed.

        Args:
            last_event_id: The `Last-Event-ID`, in any shape: it comes from outside.
            send_callback: Awaited with each event, in order. What it raises is passed on.

        Returns:
            None: the stream is to be closed.
        """
        event_id, name = wire.split(last_event_id) or ("", "")

        async def send(event: EventMessage) -> None:
            await send_callback(EventMessage(event.message, wire.join(event.event_id or "", name)))

        with anyio.CancelScope() as scope:
            self._resuming.add(scope)
            if self._closed:
                return
            try:
                facts = await self._store.replay(event_id, send, stream_id=name)
                if facts.miss is None and not facts.completed:
                    await self._store.follow(name, facts.last_event_id, send, limit=self._follow_limit)
            except StoreError:
                return  # Told by the store. The stream ends, and the client asks again.
            finally:
                self._resuming.discard(scope)

    def close(self) -> None:
        """End what is being resumed: the session is over."""
        self._closed = True
        for scope in self._resuming:
            scope.cancel()
