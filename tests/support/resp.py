"""Splits the Redis protocol into messages, as far as a proxy needs it."""

_LINES = b"+-:,#_("
_BULKS = b"$=!"
_AGGREGATES = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}
"""Elements for each one that is announced."""
_ATTRIBUTE = ord("|")


def frame_end(buffer: bytes | bytearray, start: int = 0) -> int | None:
    """The place after the message that begins at `start`; None when it is not whole yet."""
    line_end = buffer.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, after = buffer[start], line_end + 2
    if kind in _LINES:
        return after
    count = int(buffer[start + 1 : line_end])
    if kind in _BULKS:
        end = after if count < 0 else after + count + 2
        return end if end <= len(buffer) else None
    # The value of an attribute follows it, as part of the same message.
    elements = max(0, count) * _AGGREGATES[kind] + (kind == _ATTRIBUTE)
    at: int | None = after
    for _ in range(elements):
        at = frame_end(buffer, at) if at is not None and at < len(buffer) else None
        if at is None:
            return None
    return at


def frames(buffer: bytearray) -> list[bytes]:
    """Take the whole messages off the front of a buffer."""
    found, start = [], 0
    while start < len(buffer) and (end := frame_end(buffer, start)) is not None:
        found.append(bytes(buffer[start:end]))
        start = end
    del buffer[:start]
    return found


def arguments(command: bytes) -> list[bytes]:
    """The arguments of a command, its name first."""
    at = command.index(b"\r\n") + 2
    found = []
    for _ in range(int(command[1 : at - 2])):
        line_end = command.index(b"\r\n", at)
        size, begin = int(command[at + 1 : line_end]), line_end + 2
        found.append(command[begin : begin + size])
        at = begin + size + 2
    return found
