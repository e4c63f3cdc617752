"""What happened, in the order in which it happened: the timeline shows it, and the verdict is spoken on it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What can happen to a call."""

    EVENT = "event"
    """The client was told of one step."""
    CUT = "cut"
    """Its connections were reset; the number is how many."""
    RETURN = "return"
    """It came back with the id of the last event that it had."""
    RESULT = "result"
    """The call returned."""
    FAILURE = "failure"
    """The call failed."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened; `at` is in seconds since the call began."""

    at: float
    kind: Kind
    text: str = ""
    number: int = 0


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

    def add(self, kind: Kind, text: str = "", number: int = 0) -> None:
        """Note what happens now."""
        moment = Moment(time.time() - self.started, kind, text, number)
        self.moments.append(moment)
        self._tell(moment)


def of(kind: Kind, moments: Sequence[Moment]) -> list[Moment]:
    """Those of one kind."""
    return [moment for moment in moments if moment.kind is kind]


def after_cut(moments: Sequence[Moment]) -> list[Moment]:
    """What happened after the first cut that hit a connection; nothing when there was none."""
    cuts = (index for index, moment in enumerate(moments) if moment.kind is Kind.CUT and moment.number)
    return list(moments[next(cuts, len(moments)) + 1 :])
