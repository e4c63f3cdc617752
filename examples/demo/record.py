"""What happened, in the order in which it happened: the timeline shows it, and the verdict is spoken on it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What can happen in a scene."""

    CALL = "call"
    """A worker began to answer a call; the text is the tool."""
    EVENT = "event"
    """The client was told of one step."""
    CUT = "cut"
    """The way to a worker was cut; the number is how many event streams were reset."""
    KILL = "kill"
    """A worker was ended; the number is the signal that ended it."""
    RETURN = "return"
    """The client came back with the id of the last event that it had, and a worker answered with this status."""
    RESULT = "result"
    """A call returned."""
    FAILURE = "failure"
    """A call failed; the number is the code of its JSON-RPC error, or 0."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened; `at` is in seconds since the scene began, `worker` the name of whom it concerns."""

    at: float
    kind: Kind
    text: str = ""
    number: int = 0
    worker: str = ""


class Record:
    """Collects moments.

    Args:
        tell: Called with each, as it happens.
    """

    def __init__(self, tell: Callable[[Moment], None]) -> None:
        self.moments: list[Moment] = []
        # The clock that the server tells in its result, so that the two can be compared.
        self.started = time.time()
        self._tell = tell

    def add(self, kind: Kind, text: str = "", number: int = 0, worker: str = "") -> None:
        """Note what happens now."""
        moment = Moment(time.time() - self.started, kind, text, number, worker)
        self.moments.append(moment)
        self._tell(moment)

    @property
    def running_on(self) -> str:
        """The worker that runs the latest call; "" when there is none."""
        calls = of(Kind.CALL, self.moments)
        return calls[-1].worker if calls else ""


def of(kind: Kind, moments: Sequence[Moment]) -> list[Moment]:
    """Those of one kind."""
    return [moment for moment in moments if moment.kind is kind]


def after(kind: Kind, moments: Sequence[Moment]) -> list[Moment]:
    """What happened after the first of a kind; nothing when there is none."""
    found = (index for index, moment in enumerate(moments) if moment.kind is kind)
    return list(moments[next(found, len(moments)) + 1 :])
