"""Trace propagation: the spans of an event belong to the trace of its call, not to that of the storing task.

One task stores the events of all calls of a session, in the context of `initialize`. With each message, the SDK passes
the context of its sender: that of the tool for messages of a tool. A priming event is stored in the context of its
request. The SDK reads a W3C context in `params._meta` for its own span only.
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
    """The trace contexts of a session's requests. No method raises."""

    def __init__(self) -> None:
        self._known: dict[str, Context] = {}
        self._last = _NOWHERE
        """The context of the last message, which the next one usually shares."""
        self._last_names_a_span = False

    def began(self, stream: str) -> None:
        """Remember the current context as that of a stream's request."""
        current = context.get_current()
        if _names_a_span(current):
            self._known[stream] = current

    def ended(self, stream: str) -> None:
        """Forget a stream, whose response was sent."""
        self._known.pop(stream, None)

    def enter(self, stream: str, sender: contextvars.Context | None, *, lasting: bool) -> Token[Context] | None:
        """Enter the context of the call that a message belongs to.

        Args:
            stream: The stream.
            sender: The context of the message's sender; None: unknown, so that the current one is kept.
            lasting: Whether the stream is the standalone stream.

        Returns:
            The argument of `leave`.
        """
        found = self._known.get(stream)
        if sender is not None:
            sent_in = _context_of(sender)
            if sent_in is not self._last:
                self._last, self._last_names_a_span = sent_in, _names_a_span(sent_in)
            if self._last_names_a_span:
                found = sent_in
                if not lasting:
                    # The response is sent outside of the call's span, which may be the only one.
                    self._known.setdefault(stream, found)
            elif found is None:
                found = _NOWHERE
        if found is None or not (found or context.get_current()):
            return None
        return context.attach(found)

    @staticmethod
    def leave(token: Token[Context] | None) -> None:
        """Restore the previous context."""
        if token is not None:
            context.detach(token)


@contextmanager
def continued(body: bytes) -> Iterator[None]:
    """Enter the trace that a request names in `params._meta`, if any, until the block ends.

    As in the SDK, it takes precedence over the trace in HTTP headers.

    Args:
        body: A JSON-RPC request as received; untrusted.
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
    except Exception:  # noqa: BLE001 - the body is untrusted, and the application chooses the propagator
        return None
    return found if _names_a_span(found) else None


def _context_of(sender: contextvars.Context) -> Context:
    try:
        return sender.run(context.get_current)
    except RuntimeError:  # The context is entered at the moment.
        return _NOWHERE


def _names_a_span(found: Context) -> bool:
    return bool(found) and trace.get_current_span(found).get_span_context().is_valid
