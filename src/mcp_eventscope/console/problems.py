"""The last problems: log events of this process, and conditions that the console has observed."""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mcp_eventscope.telemetry import declarations

KEPT = 100
"""Problems that are kept."""
_TEXT = 500
"""Characters of the longest text of a field."""
_HIDDEN = frozenset({"trace_id", "span_id"})


@dataclass(slots=True, kw_only=True)
class Problem:
    """A problem."""

    number: int
    """Counts the problems of this process, so that a page shows each once."""
    time: float
    """When it was reported or first observed, in seconds since 1970."""
    level: str
    """`warning` or `error`; `info` for a recovery."""
    name: str
    """The name of the log event, or of the condition."""
    fields: Mapping[str, object]
    """The fields of the log event, which contain no secret. Some are texts of clients: untrusted."""
    lasting: bool = False
    """Whether it is a condition that still holds."""
    until: float | None = None
    """When a condition ended; None for a log event, and while it holds."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A problem that lasts: it is observed again and again."""

    level: str
    name: str
    fields: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """What distinguishes it from other conditions."""
        return self.name, *(str(self.fields[name]) for name in ("worker", "session", "node") if name in self.fields)


class Problems:
    """The last problems, bounded."""

    def __init__(self) -> None:
        self._kept: deque[Problem] = deque(maxlen=KEPT)
        self._lasting: dict[tuple[str, ...], Problem] = {}
        self._number = 0

    def on_log(self, event: declarations.LogEvent, fields: Mapping[str, object]) -> None:
        """Keep a log event, unless it is a mere message; the recovery of a store is kept."""
        if event.level in {"warning", "error"} or event.name.endswith(".recovered"):
            self._keep(event.level, event.name, fields)

    def observe(self, conditions: Iterable[Condition]) -> None:
        """Replace the conditions that hold now: new ones begin, and absent ones end."""
        now = time.time()
        holding = {each.key: each for each in conditions}
        for key in self._lasting.keys() - holding.keys():
            ended = self._lasting.pop(key)
            ended.lasting, ended.until = False, now
        for key, condition in holding.items():
            if key in self._lasting:
                self._lasting[key].fields = _fields(condition.fields)
            else:
                self._lasting[key] = self._keep(condition.level, condition.name, condition.fields)
                self._lasting[key].lasting = True

    @property
    def latest(self) -> list[Problem]:
        """Lasting conditions and the last problems, the newest first."""
        return sorted({each.number: each for each in [*self._lasting.values(), *self._kept]}.values(), key=_newest)

    def _keep(self, level: str, name: str, fields: Mapping[str, object]) -> Problem:
        self._number += 1
        kept = Problem(number=self._number, time=time.time(), level=level, name=name, fields=_fields(fields))
        self._kept.append(kept)
        return kept


def _newest(problem: Problem) -> int:
    return -problem.number


def _fields(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: _plain(value) for name, value in fields.items() if name not in _HIDDEN}


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value[:10]]
    return str(value)[:_TEXT]
