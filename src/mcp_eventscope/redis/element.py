"""Elements of a run's list: a header with number, time and marks, and the payload.

`commit.lua`, `read_run.lua` and `evict.lua` read the number, the time, and whether the first mark is "f".
"""

LARGE_PAYLOAD = 4096
"""Payload bytes above which a payload has a key of its own: every element that a script reads is small."""
PLAIN = b"%d %d\n%b"
"""An element without marks: number, time in microseconds since 1970, payload."""
REASON = b"/"
"""Between the first lost number and the reason of the loss."""
_FINAL, _LOST, _LARGE, _TRACEPARENT = b"f", b"l", b"g", b"t"


def encode(  # noqa: PLR0913 - the parts of an element
    seq: int,
    time: int,
    payload: bytes,
    *,
    final: bool = False,
    first: int | None = None,
    reason: str = "",
    traceparent: str = "",
) -> bytes:
    """Encode an element with its marks.

    Args:
        seq: The number of the event.
        time: When the event was accepted, in microseconds since 1970.
        payload: The message as JSON; b"" for a priming event. Above `LARGE_PAYLOAD` only its size is in the element.
        final: Whether the event ends the run.
        first: The first number that a placeholder of lost events stands for; None for an event.
        reason: Of a placeholder, why the events were lost (`Gap`).
        traceparent: The producer's W3C traceparent; "": none.
    """
    header = [b"%d %d" % (seq, time)]
    if final:
        header.append(_FINAL)
    if first is not None:
        header.append(b"%b%d%b%b" % (_LOST, first, REASON, reason.encode()))
    if len(payload) > LARGE_PAYLOAD:
        header.append(b"%b%d" % (_LARGE, len(payload)))
        payload = b""
    if traceparent:
        header.append(_TRACEPARENT + traceparent.encode())
    return b"%b\n%b" % (b" ".join(header), payload)


def parse_marks(seq: int, marks: list[bytes]) -> tuple[int | None, int | None, str]:
    """Parse an element's marks: first lost number, size of a large payload, and reason of the loss or `traceparent`.

    Args:
        seq: The number of the element.
        marks: The words after number and time in the header.

    Raises:
        ValueError: A mark is damaged.
    """
    first = size = None
    note = ""
    for mark in marks:
        letter, value = mark[:1], mark[1:]
        if letter == _LOST:
            number, _, reason = value.partition(REASON)
            first, note = min(seq, int(number)), reason.decode("ascii", "replace")
        elif letter == _LARGE:
            size = int(value)
        elif letter == _TRACEPARENT:
            note = value.decode("ascii", "replace")
    return first, size, note
