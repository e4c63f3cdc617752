"""In whose trace an event is stored: that of the call it belongs to, told apart from that of the task that stores it.

One task stores the events of all calls of a session, and its context is that of `initialize`. The SDK hands over with
each message the context of whoever sent it, which is the tool's for what a tool says; a priming event is stored in the
context of its request. What W3C context a client sends in `params._meta` the SDK reads for its own span only.
"""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Token

import pydantic_core
from opentelemetry import context, propagate, trace
from opentelemetry.context import Context

_TRACEPARENT = b"traceparent"
_NOWHERE = Context()


class Calls:
    """The requests of one session, and in which traces they are. Nothing here raises."""

    def __init__(self) -> None:
        self._known: dict[str, Context] = {}
        self._last = _NOWHERE
        """The context in which the last message was sent: mostly that of the next one, too."""
        self._last_names_a_span = False

    def began(self, stream: str) -> None:
        """The request of a stream is being served, in the current context."""
        current = context.get_current()
        if _names_a_span(current):
            self._known[stream] = current

    def ended(self, stream: str) -> None:
        """The response of a stream has been said."""
        self._known.pop(stream, None)

    def enter(self, stream: str, sender: contextvars.Context | None, *, lasting: bool) -> Token[Context] | None:
        """Go into the context of the call that a message belongs to.

        Args:
            stream: The stream.
            sender: The context of whoever sent the message; None: it is not known, and the current one as good as any.
            lasting: Whether the stream is no request's.

        Returns:
            What `leave` takes.
        """
        found = self._known.get(stream)
        if sender is not None:
            said_in = _context_of(sender)
            if said_in is not self._last:
                self._last, self._last_names_a_span = said_in, _names_a_span(said_in)
            if self._last_names_a_span:
                found = said_in
                if not lasting:
                    # The response is sent outside of the span of the call, which may be the first that there is.
                    self._known.setdefault(stream, found)
            elif found is None:
                found = _NOWHERE
        if found is None or not (found or context.get_current()):
            return None
        return context.attach(found)

    @staticmethod
    def leave(token: Token[Context] | None) -> None:
        """Go back to where one was."""
        if token is not None:
            context.detach(token)


@contextmanager
def continued(body: bytes) -> Iterator[None]:
    """Be in the trace that a request names in `params._meta`, if it does, until the block ends.

    As in the SDK's own span it goes before one that HTTP headers name: what a client did for this message.

    Args:
        body: A JSON-RPC request, as it was sent, in any shape: it comes from outside.
    """
    found = _named_in(body) if _TRACEPARENT in body else None
    if found is None:
        yield
        return
    token = context.attach(found)
    try:
        yield
    finally:
        context.detach(token)


def _named_in(body: bytes) -> Context | None:
    try:
        meta = pydantic_core.from_json(body)["params"]["_meta"]
        found = propagate.extract({name: meta[name] for name in meta if isinstance(meta[name], str)})
    except Exception:  # noqa: BLE001 - anything may have been sent, and a propagator of the application's is asked
        return None
    return found if _names_a_span(found) else None


def _context_of(sender: contextvars.Context) -> Context:
    try:
        return sender.run(context.get_current)
    except RuntimeError:  # Somebody is in it just now.
        return _NOWHERE


def _names_a_span(found: Context) -> bool:
    return bool(found) and trace.get_current_span(found).get_span_context().is_valid
