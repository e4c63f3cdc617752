"""The moments of a scene, in order, for the timeline and the verdict."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The kinds of moments in a scene."""

    CALL = "call"
    """A worker began to answer a call; the text names the tool."""
    EVENT = "event"
    """The client received one step."""
    CUT = "cut"
    """The connections to a worker were cut; the number counts the event streams that were reset."""
    KILL = "kill"
    """A worker was killed; the number is the signal that ended it."""
    RETURN = "return"
    """The client reconnected with the id of its last event; the number is the HTTP status of the answer."""
    RESULT = "result"
    """A call returned."""
    FAILURE = "failure"
    """A call or a task failed; the number is the code of its JSON-RPC error, or 0."""
    TASK = "task"
    """A worker began to run a tool as a task; the text names the tool."""
    LEFT = "left"
    """The client of a task closed its connection."""
    STATUS = "status"
    """A worker answered a poll with a new status message."""
    SIGNAL = "signal"
    """A worker signalled a change on a `subscriptions/listen` stream; the text names the resource."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment; `at` is in seconds since the start of the scene, `worker` the name of the worker concerned."""

    at: float
    kind: Kind
    text: str = ""
    number: int = 0
    worker: str = ""


class Record:
    """Collects moments.

    Args:
        show: Called with each moment.
    """

    def __init__(self, show: Callable[[Moment], None]) -> None:
        self.moments: list[Moment] = []
        # The server's result has times of the same clock.
        self.started = time.time()
        self._show = show

    def add(self, kind: Kind, text: str = "", number: int = 0, worker: str = "") -> None:
        """Add a moment, now."""
        moment = Moment(time.time() - self.started, kind, text, number, worker)
        self.moments.append(moment)
        self._show(moment)

    @property
    def running_on(self) -> str:
        """The worker that runs the latest call; "" if there is none."""
        calls = of(Kind.CALL, self.moments)
        return calls[-1].worker if calls else ""


def of(kind: Kind, moments: Sequence[Moment]) -> list[Moment]:
    """The moments of one kind."""
    return [moment for moment in moments if moment.kind is kind]


def after(kind: Kind, moments: Sequence[Moment]) -> list[Moment]:
    """The moments after the first of a kind; none if there is no such moment."""
    found = (index for index, moment in enumerate(moments) if moment.kind is kind)
    return list(moments[next(found, len(moments)) + 1 :])
