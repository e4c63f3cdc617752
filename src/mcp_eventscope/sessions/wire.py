"""Event ids as a client sees them, and the names of streams: what comes from outside is encoded and bounded.

An id on the wire is `<event id>.<stream name>`, both percent-encoded. The stream is known even after the event has
expired. Browsers and proxies see visible ASCII without spaces, whatever a client chose as its request id.
"""

import hashlib
import re
from urllib.parse import quote, unquote

EMPTY_NAME = "!"
"""The name of the stream whose id is empty. Percent-encoding never writes a `!`."""
MAX_NAME = 128
"""The longest stream name in bytes; a longer one is hashed, so that keys and ids stay small."""
MAX_ID = 512
"""The longest id that is looked at, in characters: an event id (a store of others may have long ones) and a name."""

_ID = re.compile(r"(?P<event>[A-Za-z0-9_~%-]+)\.(?P<stream>!|!?[A-Za-z0-9_.~%-]+)", re.ASCII)


def stream_name(stream_id: str) -> str:
    """The name of a stream in keys and ids: percent-encoded, or `!` and a SHA-256 where that is too long.

    Args:
        stream_id: The SDK's stream id: a request id as text, which is the client's to choose, or `_GET_stream`.

    Returns:
        At most `MAX_NAME` visible ASCII characters, and at least one; different for different streams.
    """
    if not stream_id:
        return EMPTY_NAME  # "" is a request id like any other.
    name = stream_id if _plain(stream_id) else quote(stream_id, safe="")
    if len(name) <= MAX_NAME:
        return name
    return f"!{hashlib.sha256(stream_id.encode()).hexdigest()}"


def join(event_id: str, stream: str) -> str:
    """The id on the wire.

    Args:
        event_id: The store's id of the event.
        stream: From `stream_name`.
    """
    if not _plain(event_id):
        event_id = quote(event_id, safe="").replace(".", "%2E")
    return f"{event_id}.{stream}"


def _plain(text: str) -> bool:
    """Whether it is encoded as itself, which most ids are: to find that out by encoding takes as long as to store."""
    return text.isalnum() and text.isascii()


def split(wire_id: str) -> tuple[str, str] | None:
    """The store's id and the stream's name of an id on the wire; None when it is none of ours.

    Args:
        wire_id: A `Last-Event-ID`, which may be anything.
    """
    if len(wire_id) > MAX_ID or not (match := _ID.fullmatch(wire_id)):
        return None
    event_id, stream = unquote(match["event"], errors="replace"), match["stream"]
    # Only what `join` writes: two texts for one id would be two cursors for one event.
    return (event_id, stream) if join(event_id, stream) == wire_id else None
