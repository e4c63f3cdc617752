"""Event ids of sessions: `<time>-<number>-<run>[~<number>-<run>…]`.

The last part has the positions of the other runs of a standalone stream.
"""

import re
from dataclasses import dataclass, field

from mcp_eventscope.redis.write.runs import is_run
from mcp_eventscope.store.messages import EventId

_ID = re.compile(
    r"([1-9][0-9]{0,17})-(0|[1-9][0-9]{0,15})-([0-9a-f]+)((?:~(?:0|[1-9][0-9]{0,15})-[0-9a-f]+)*)", re.ASCII
)


@dataclass(slots=True)
class Cursor:
    """A position on a stream."""

    time: int
    """When the event was accepted, in microseconds since 1970."""
    run: str
    """The run of the event."""
    positions: dict[str, int] = field(default_factory=dict)
    """By run, the last number read. The stream of a request has one run."""

    @property
    def number(self) -> int:
        """The number of the event."""
        return self.positions[self.run]

    def event_id(self) -> EventId:
        """The event id."""
        return f"{self.time}-{self.number}{self.suffix(self.run)}"

    def suffix(self, run: str) -> str:
        """The part of an event id after the number, given the event's run."""
        others = "".join([f"~{position}-{other}" for other, position in self.positions.items() if other != run])
        return f"-{run}{others}"


def parse(event_id: EventId) -> Cursor | None:
    """Parse an event id; None for any other text."""
    match = _ID.fullmatch(event_id)
    if match is None:
        return None
    time, number, run, others = match.groups()
    positions = {run: int(number)}
    for position in others.split("~")[1:]:
        other, _, name = position.partition("-")
        if name in positions:
            return None  # A cursor has only one form.
        positions[name] = int(other)
    return Cursor(int(time), run, positions) if all(map(is_run, positions)) else None
