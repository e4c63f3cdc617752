"""The entries of a session's `requests`: open requests, standalone runs, and substitute answers.

The scripts read the first letter of an entry: `answer.lua`, `commit.lua`, `peek_runs.lua` and `standalone.lua`.
"""

import pydantic_core

from mcp_eventscope.store.messages import RequestId, StreamId

ANSWERED = b"a"
"""The first letter of an answer, which `peek_runs.lua` returns alone."""
STANDALONE = b"s 0"
"""The entry of a standalone run; `commit.lua` writes the last number into it."""


def open_request(stream: StreamId, request_id: RequestId) -> bytes:
    """Encode the entry of an open request, whose id keeps its JSON type."""
    return b"r %b %b" % (stream.encode(), pydantic_core.to_json(request_id))


def answer(time: int, payload: bytes) -> bytes:
    """Encode the entry of a request that was answered in place of its dead worker.

    Args:
        time: The time of the answer, in microseconds since 1970.
        payload: The error as JSON.
    """
    return b"%b %d %b" % (ANSWERED, time, payload)


def is_open(entry: bytes) -> bool:
    """Whether an entry is that of an open request."""
    return entry.startswith(b"r ")


def answer_of(entry: bytes | None) -> bytes | None:
    """The error in an entry, as JSON, which may be damaged; None if the entry is not an answer."""
    if entry is None or not entry.startswith(ANSWERED + b" "):
        return None
    return b"".join(entry.split(b" ", 2)[2:])


def request_id_of(entry: bytes) -> RequestId:
    """The request id of the entry of an open request of this process, with its JSON type."""
    request_id: RequestId = pydantic_core.from_json(entry.split(b" ", 2)[2])
    return request_id


def stored_request_id_of(entry: bytes) -> RequestId | None:
    """The request id of the entry of an open request in Redis; None if the entry is damaged."""
    try:
        request_id: object = pydantic_core.from_json(b"".join(entry.split(b" ", 2)[2:]))
    except ValueError:
        return None
    return request_id if isinstance(request_id, int | str) and not isinstance(request_id, bool) else None
