"""Event ids on the wire and stream names, which encode and bound untrusted text.

An id on the wire is `<event id>.<stream name>`, both percent-encoded. The stream is known even after the event has
expired. Browsers and proxies see visible ASCII without spaces, whatever request id a client has chosen.
"""

import hashlib
import re
from urllib.parse import quote, unquote

from mcp.types import RequestId

MAX_NAME = 128
"""The longest stream name in bytes. Longer names are hashed, so that keys and ids stay small."""
MAX_ID = 6144
"""The longest accepted id, in characters: that of a standalone stream has about 20 for each worker that sent events.
Proxies accept header lines of 8 KiB."""

_ID = re.compile(r"(?P<event>[A-Za-z0-9_~%-]+)\.(?P<stream>!?[A-Za-z0-9_.~%-]+)", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_~-]+", re.ASCII)
_NUMBER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)


def stream_name(request_id: RequestId) -> str:
    """Name a request's stream in keys and ids, preserving the id's JSON type.

    Args:
        request_id: The client's request id, with its JSON type: `7` and `"7"` are different requests.

    Returns:
        At most `MAX_NAME` visible ASCII characters, different for different requests: a number unchanged; `~` and a
        percent-encoded string; or `!` and a SHA-256 digest if that is too long.
    """
    name = f"~{quote(request_id, safe='')}" if isinstance(request_id, str) else str(request_id)
    return name if len(name) <= MAX_NAME else f"!{hashlib.sha256(name.encode()).hexdigest()}"


def request_id_of(name: str) -> RequestId | None:
    """The request id in a stream name; None for a hash or a standalone stream."""
    if name.startswith("~"):
        return unquote(name[1:])
    return int(name) if _NUMBER.fullmatch(name) else None


def join(event_id: str, stream: str) -> str:
    """Return the id on the wire.

    Args:
        event_id: The store's id of the event.
        stream: The result of `stream_name`, or the name of the standalone stream.
    """
    if _PLAIN.fullmatch(event_id) is None:
        event_id = quote(event_id, safe="").replace(".", "%2E")
    return f"{event_id}.{stream}"


def split(wire_id: str) -> tuple[str, str] | None:
    """Split an id on the wire into event id and stream name; None if invalid.

    Args:
        wire_id: A `Last-Event-ID` (untrusted).
    """
    if len(wire_id) > MAX_ID or not (match := _ID.fullmatch(wire_id)):
        return None
    event_id, stream = unquote(match["event"], errors="replace"), match["stream"]
    # Only the form that `join` writes: an event has exactly one cursor.
    return (event_id, stream) if join(event_id, stream) == wire_id else None
