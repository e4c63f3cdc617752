"""Event ids as a client sees them, and the names of streams: text from outside is encoded and bounded.

An id on the wire is `<event id>.<stream name>`, both percent-encoded. The stream is known even after the event has
expired. Browsers and proxies see visible ASCII without spaces, whatever a client chose as its request id.
"""

import hashlib
import re
from urllib.parse import quote, unquote

from mcp.types import RequestId

MAX_NAME = 128
"""The longest stream name in bytes; a longer one is hashed, so that keys and ids stay small."""
MAX_ID = 2048
"""The longest id that is looked at, in characters: one of a standalone stream names a position for each worker."""

_ID = re.compile(r"(?P<event>[A-Za-z0-9_~%-]+)\.(?P<stream>!?[A-Za-z0-9_.~%-]+)", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_~-]+", re.ASCII)
_NUMBER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)


def stream_name(request_id: RequestId) -> str:
    """The name of a request's stream in keys and ids: it says whether the id is a number or a string.

    Args:
        request_id: The client's id of the request, with its JSON type: `7` and `"7"` are different requests.

    Returns:
        At most `MAX_NAME` visible ASCII characters, different for different requests: a number as it is; a string
        percent-encoded behind a `~`; `!` and a SHA-256 where that would be longer.
    """
    name = f"~{quote(request_id, safe='')}" if isinstance(request_id, str) else str(request_id)
    return name if len(name) <= MAX_NAME else f"!{hashlib.sha256(name.encode()).hexdigest()}"


def request_id_of(name: str) -> RequestId | None:
    """The request id that a stream is named after; None where the name is a hash, or no request's."""
    if name.startswith("~"):
        return unquote(name[1:])
    return int(name) if _NUMBER.fullmatch(name) else None


def join(event_id: str, stream: str) -> str:
    """The id on the wire.

    Args:
        event_id: The store's id of the event.
        stream: From `stream_name`, or the standalone stream's.
    """
    if _PLAIN.fullmatch(event_id) is None:
        event_id = quote(event_id, safe="").replace(".", "%2E")
    return f"{event_id}.{stream}"


def split(wire_id: str) -> tuple[str, str] | None:
    """The store's id and the stream's name of an id on the wire; None when it is none of ours.

    Args:
        wire_id: A `Last-Event-ID`, which may be anything.
    """
    if len(wire_id) > MAX_ID or not (match := _ID.fullmatch(wire_id)):
        return None
    event_id, stream = unquote(match["event"], errors="replace"), match["stream"]
    # Only the text that `join` writes: two texts for one id would be two cursors for one event.
    return (event_id, stream) if join(event_id, stream) == wire_id else None
