"""Faults at exact replies of Redis: replaced, cut in two, delayed or dropped."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Place(StrEnum):
    """Where in a reply a connection is cut."""

    BEFORE = "before"
    """The client receives none of the reply: where Redis has executed the command, this is the lost reply."""
    MIDDLE = "in"
    AFTER = "after"


class Reach(StrEnum):
    """Which commands Redis receives on a connection that is cut at a reply."""

    NONE = "none"
    """Neither the command of that reply nor later ones."""
    THIS = "this"
    """The command of that reply, but no later one."""
    ALL = "all"
    """Also the commands that the client has sent after it."""


@dataclass(frozen=True)
class Error:
    """Redis answers an error."""

    text: str
    executed: bool = False
    """Whether Redis receives the command, and only its reply is replaced."""

    def __str__(self) -> str:
        return f"{self.text.partition(' ')[0]}{'+executed' if self.executed else ''}"


@dataclass(frozen=True)
class Cut:
    """The connection is closed."""

    place: Place
    reach: Reach = Reach.ALL

    def __str__(self) -> str:
        return f"cut {self.place} it, {self.reach} executed"


@dataclass(frozen=True)
class Freeze:
    """Nothing passes on the connection for some seconds, then the reply does, or the connection is closed."""

    seconds: float
    cut: bool = False

    def __str__(self) -> str:
        return "freeze, then cut" if self.cut else "freeze"


ReplyFault: TypeAlias = Error | Cut | Freeze


@dataclass
class Step:
    """One command that a plan counts, and the faults at its reply."""

    faults: tuple[ReplyFault, ...]

    @property
    def forwarded(self) -> bool:
        """Whether Redis receives the command."""
        return not any(
            (isinstance(fault, Error) and not fault.executed)
            or (isinstance(fault, Cut) and fault.reach is Reach.NONE and fault.place is Place.BEFORE)
            for fault in self.faults
        )

    @property
    def last(self) -> bool:
        """Whether Redis receives no later command of this connection."""
        return any(isinstance(fault, Cut) and fault.reach is not Reach.ALL for fault in self.faults)

    def actions(self, reply: bytes) -> list[bytes | float | None]:
        """The actions on the connection: bytes are sent, a number is a pause in seconds, None closes it.

        Args:
            reply: Of Redis; empty where Redis has not received the command.
        """
        done: list[bytes | float | None] = []
        for fault in self.faults:
            if isinstance(fault, Error):
                reply = f"-{fault.text}\r\n".encode()
        for fault in self.faults:
            if isinstance(fault, Freeze):
                done += [fault.seconds, None] if fault.cut else [fault.seconds]
            elif isinstance(fault, Cut):
                sent = {Place.BEFORE: 0, Place.MIDDLE: len(reply) // 2, Place.AFTER: len(reply)}[fault.place]
                done += [reply[:sent], None]
        return done if None in done else [*done, reply]


class FaultPlan:
    """Counts the commands that contain a text, and chooses the faults at the reply of each.

    Until `released`, the replies of the counted commands are kept back, so that as many commands as a test
    needs are in flight when the first fault happens.

    Args:
        token: Looked for in all arguments.
        faults: Each with the index of its command, from 0, over all connections. Those of one index are combined.
    """

    def __init__(self, token: str, faults: Iterable[tuple[int, ReplyFault]]) -> None:
        self.seen = 0
        """Commands counted so far."""
        self.ready = 0
        """Commands whose reply is known, or which Redis does not receive."""
        self.released = False
        self._token = token.encode()
        self._faults = tuple(faults)

    def step(self, arguments: list[bytes]) -> Step | None:
        """The step of a command; None when the plan does not count it. Asked once for each."""
        if self._token not in b" ".join(arguments):
            return None
        index, self.seen = self.seen, self.seen + 1
        return Step(tuple(fault for at, fault in self._faults if at == index))
