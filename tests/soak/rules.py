"""The deviations that the checker accepts, as data: each allowance names its conditions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from soak.history import Observation, Operation, What
from soak.schedule import LEASE

ORPHANED = -32010
"""The error of a call whose worker is dead."""
EVENTS_GONE = -32011
"""The error of a resume whose events are no longer stored."""
CONNECTION_REFUSED = 0
"""Stands for a status where there was no connection."""


class Class(StrEnum):
    """The classes of violations."""

    HANG = "hang"
    LOST = "lost"
    DUPLICATE = "duplicate"
    ORDER = "order"
    NO_ID = "message without id"
    NO_CURSOR = "cut call without cursor"
    ID_REUSED = "id given twice"
    FOREIGN = "message of another call"
    NOT_FOUND = "404 for a living session"
    ERROR = "error instead of a result"
    REFUSED = "refused"
    UNANSWERED = "request without response"
    BROKEN = "stream broken by the server"
    WORKER_DIED = "worker died by itself"
    ABANDONED = "call that the SDK's client ended without a refusal"
    PASSED_ON = "the SDK's client passed on something else than it received"


class Condition(StrEnum):
    """A condition of an allowance. The runner is the worker that ran the call."""

    RUNNER_KILLED = "the runner was killed since the call began"
    RUNNER_KILLED_BEFORE_COMMIT = "the runner was killed before it could store, and no other worker has read an event"
    RUNNER_FROZEN = "the runner was frozen past its lease since the call began"
    RUNNER_FROZEN_BEFORE_COMMIT = "the runner was frozen past its lease before it could store"
    REDIS_CUT = "connections to Redis were being cut when the session was opened, which concerns single workers"
    HOLDERS_FAILED = "Redis lost data, and each worker that served the session failed before it could restore it"
    PEER_DOWN = "the worker of the connection was killed, and is not back"
    PEER_FROZEN = "the worker of the connection was frozen a moment ago"
    REDIS_LOST_DATA = "Redis lost data since the call began, and the runner failed before it could restore them"
    REDIS_IMPAIRED = "Redis was unreachable or slow a moment ago, or the rig was, in which the proxy runs"


@dataclass(frozen=True)
class Suspicion:
    """Something that is a violation unless an allowance covers it."""

    kind: Class
    since: float
    """When the call, the session or the publication began that it concerns."""
    at: float
    detail: str
    client: int = -1
    session: str = ""
    stream: str = ""
    runner: int = -1
    peer: int = -1
    operation: str = ""
    code: int = 0
    stored: bool = False
    """Whether another worker has delivered an event of the call before, which it can only have read from Redis."""
    holders: tuple[tuple[int, float], ...] = ()
    """The workers that have served the session, and when each last began to serve a request of it."""


@dataclass(frozen=True)
class Allowance:
    """A deviation that is accepted while all of its conditions hold; it is counted under its name."""

    name: str
    kind: Class
    when: frozenset[Condition] = frozenset()
    codes: frozenset[int] = frozenset()
    """The codes that it is about; empty: any."""
    operations: frozenset[str] = frozenset()
    """The operations that it is about; empty: any."""


@dataclass(frozen=True)
class Rules:
    """The allowances, and the times that their conditions depend on."""

    allowances: tuple[Allowance, ...]
    freeze_tolerance: float
    """A worker that is frozen for longer may be declared dead: its lease, less the pause between two renewals."""
    commit_seconds: float
    """Seconds that an event may take to reach Redis while Redis is well."""
    redis_grace: float
    """Seconds for which Redis counts as impaired after it has recovered."""
    accept_seconds: float
    """Seconds that may pass from the start of a call on its worker until its client notes it, if the rig is on time."""
    restart_margin: float
    """Seconds for which a worker counts as down after it serves again: connections that broke may be noticed late."""


_KILLED = frozenset({Condition.RUNNER_KILLED})
_GETS = frozenset({Operation.RESUME, Operation.LISTEN})
_POSTS = frozenset({Operation.POST, Operation.NOTIFY})

DEFAULT_RULES = Rules(
    allowances=(
        Allowance("-32010, its worker was killed", Class.ERROR, _KILLED, frozenset({ORPHANED})),
        Allowance(
            "-32010, its worker was frozen past its lease",
            Class.ERROR,
            frozenset({Condition.RUNNER_FROZEN}),
            frozenset({ORPHANED}),
        ),
        # The client keeps its position: the answer has no number among the events of the worker that it stands for.
        Allowance("answer without id", Class.NO_ID, codes=frozenset({ORPHANED, EVENTS_GONE})),
        Allowance(
            "-32011, lost by Redis, its worker was killed",
            Class.ERROR,
            _KILLED | {Condition.REDIS_LOST_DATA},
            frozenset({EVENTS_GONE}),
        ),
        Allowance(
            "-32011, lost by Redis, its worker was frozen past its lease",
            Class.ERROR,
            frozenset({Condition.RUNNER_FROZEN, Condition.REDIS_LOST_DATA}),
            frozenset({EVENTS_GONE}),
        ),
        Allowance(
            "-32011, its worker was killed before it could store anything",
            Class.ERROR,
            frozenset({Condition.RUNNER_KILLED_BEFORE_COMMIT}),
            frozenset({EVENTS_GONE}),
        ),
        Allowance(
            "-32011, its worker was frozen past its lease before it could store anything",
            Class.ERROR,
            frozenset({Condition.RUNNER_FROZEN_BEFORE_COMMIT}),
            frozenset({EVENTS_GONE}),
        ),
        Allowance("notifications lost by Redis and a killed worker", Class.LOST, _KILLED | {Condition.REDIS_LOST_DATA}),
        Allowance(
            "notification not stored before its worker was killed",
            Class.LOST,
            frozenset({Condition.RUNNER_KILLED_BEFORE_COMMIT}),
        ),
        Allowance(
            "POST retried: connection refused", Class.REFUSED, frozenset(), frozenset({CONNECTION_REFUSED}), _POSTS
        ),
        Allowance("POST retried: 503", Class.REFUSED, frozenset(), frozenset({503}), _POSTS),
        Allowance(
            "GET retried: its worker was down",
            Class.REFUSED,
            frozenset({Condition.PEER_DOWN}),
            frozenset({CONNECTION_REFUSED}),
            _GETS,
        ),
        Allowance(
            "GET retried: 503 while Redis was impaired",
            Class.REFUSED,
            frozenset({Condition.REDIS_IMPAIRED}),
            frozenset({503}),
            _GETS,
        ),
        Allowance(
            "DELETE refused: its worker was down",
            Class.REFUSED,
            frozenset({Condition.PEER_DOWN}),
            frozenset({CONNECTION_REFUSED}),
            frozenset({Operation.DELETE}),
        ),
        Allowance(
            "DELETE refused: 503 while Redis was impaired",
            Class.REFUSED,
            frozenset({Condition.REDIS_IMPAIRED}),
            frozenset({503}),
            frozenset({Operation.DELETE}),
        ),
        Allowance(
            "DELETE refused: 503, its worker was frozen",
            Class.REFUSED,
            frozenset({Condition.PEER_FROZEN}),
            frozenset({503}),
            frozenset({Operation.DELETE}),
        ),
        Allowance("worker killed before it responded", Class.UNANSWERED, frozenset({Condition.PEER_DOWN})),
        Allowance("worker killed before the first event", Class.NO_CURSOR, frozenset({Condition.PEER_DOWN})),
        Allowance("worker killed during a stream", Class.BROKEN, frozenset({Condition.PEER_DOWN})),
        Allowance(
            "session opened in an outage by a worker that was killed in it",
            Class.NOT_FOUND,
            frozenset({Condition.RUNNER_KILLED_BEFORE_COMMIT}),
        ),
        Allowance(
            "session opened in an outage by a worker that was frozen in it past its lease",
            Class.NOT_FOUND,
            frozenset({Condition.RUNNER_FROZEN_BEFORE_COMMIT}),
        ),
        Allowance(
            "session lost by Redis, all workers that served it were killed or frozen past their leases",
            Class.NOT_FOUND,
            frozenset({Condition.HOLDERS_FAILED}),
        ),
        Allowance(
            "session opened by a worker that could not reach Redis, and not recorded yet",
            Class.NOT_FOUND,
            frozenset({Condition.REDIS_CUT}),
        ),
    ),
    freeze_tolerance=LEASE / 2,
    commit_seconds=1.0,
    redis_grace=LEASE,
    accept_seconds=0.5,
    restart_margin=1.0,
)


@dataclass(frozen=True)
class _Span:
    worker: int
    begin: float
    end: float

    def meets(self, since: float, until: float) -> bool:
        return self.begin <= until and since <= self.end


class Timeline:
    """The faults of a history, and which conditions they make true.

    Args:
        history: The observations.
        rules: The times that conditions depend on.
    """

    def __init__(self, history: Iterable[Observation], rules: Rules) -> None:
        observations = [one for one in history if one.what in _FAULTS]
        self._late = late = [
            _Span(-1, one.at - one.number / 1000, one.at) for one in observations if one.what is What.LAG
        ]
        self._rules = rules
        self._down = _spans(observations, What.WORKER_KILLED, What.WORKER_BACK)
        self._frozen = _spans(observations, What.WORKER_FROZEN, What.WORKER_THAWED)
        self._lost = [one.at for one in observations if one.what in _LOSSES]
        self._cutting = _spans(observations, What.REDIS_CUTTING, What.REDIS_MENDED)
        flushed = [_Span(-1, one.at, one.at) for one in observations if one.what is What.REDIS_FLUSHED]
        self._impaired = sorted(
            (
                *_spans(observations, What.REDIS_KILLED, What.REDIS_BACK),
                *_spans(observations, What.REDIS_FROZEN, What.REDIS_THAWED),
                *_spans(observations, What.REDIS_SLOW, What.REDIS_FAST),
                *self._cutting,
                *flushed,
                *late,
            ),
            key=lambda span: span.begin,
        )

    def earliest(self, at: float) -> float:
        """When something may have happened that the rig saw at a moment: it sees late while its event loop is late."""
        since = at - self._rules.accept_seconds
        for span in reversed(self._late):
            if span.begin <= at and span.end >= since:
                since = min(since, span.begin - self._rules.accept_seconds)
        return since

    def incarnation(self, worker: int, at: float) -> int:
        """Return how often a worker has been killed by a moment."""
        return sum(span.worker == worker and span.begin <= at for span in self._down)

    def allows(self, suspicion: Suspicion) -> Allowance | None:
        """Return the first allowance that covers a suspicion."""
        for allowance in self._rules.allowances:
            if (
                allowance.kind is suspicion.kind
                and (not allowance.codes or suspicion.code in allowance.codes)
                and (not allowance.operations or suspicion.operation in allowance.operations)
                and all(self.holds(condition, suspicion) for condition in allowance.when)
            ):
                return allowance
        return None

    def holds(self, condition: Condition, suspicion: Suspicion) -> bool:  # noqa: C901, PLR0911 - one for each
        """Return whether a condition holds of a suspicion."""
        since, at, runner = suspicion.since, suspicion.at, suspicion.runner
        match condition:
            case Condition.RUNNER_KILLED:
                return self._killed(runner, since, at)
            case Condition.RUNNER_KILLED_BEFORE_COMMIT:
                return not suspicion.stored and self._killed(runner, since, min(at, self._committed(since)))
            case Condition.RUNNER_FROZEN:
                return self._frozen_past_lease(runner, since, at)
            case Condition.RUNNER_FROZEN_BEFORE_COMMIT:
                by = min(at, self._committed(since))
                return not suspicion.stored and self._frozen_past_lease(runner, since, by)
            case Condition.REDIS_CUT:
                cut = any(span.meets(since, since + self._rules.commit_seconds) for span in self._cutting)
                return cut and at <= self._committed(since)
            case Condition.HOLDERS_FAILED:
                return bool(suspicion.holders) and any(
                    since <= moment <= at
                    and all(self._unrestored(worker, served, moment, at) for worker, served in suspicion.holders)
                    for moment in self._lost
                )
            case Condition.PEER_DOWN:
                spans = [span for span in self._down if span.worker == suspicion.peer]
                return any(span.meets(at - self._rules.restart_margin, at) for span in spans)
            case Condition.PEER_FROZEN:
                spans = [span for span in self._frozen if span.worker == suspicion.peer]
                return any(span.meets(at - self._rules.redis_grace, at) for span in spans)
            case Condition.REDIS_LOST_DATA:
                return any(
                    since <= moment <= at and self._unrestored(runner, since, moment, at) for moment in self._lost
                )
            case Condition.REDIS_IMPAIRED:
                return any(span.meets(at - self._rules.redis_grace, at) for span in self._impaired)

    def _killed(self, worker: int, since: float, until: float) -> bool:
        return any(span.worker == worker and since <= span.begin <= until for span in self._down)

    def _frozen_past_lease(self, worker: int, since: float, until: float) -> bool:
        spans = [span for span in self._frozen if span.worker == worker and span.meets(since, until)]
        return any(span.end - span.begin >= self._rules.freeze_tolerance for span in spans)

    def _unrestored(self, worker: int, since: float, lost: float, at: float) -> bool:
        """Whether a worker failed before it could store lost events again, which it has in memory."""
        until = min(at, self._committed(lost))
        return self._killed(worker, since, until) or self._frozen_past_lease(worker, lost, until)

    def _committed(self, since: float) -> float:
        """The moment by which an event of `since` is in Redis: outages that follow each other add up."""
        by = since + self._rules.commit_seconds
        for span in self._impaired:
            if span.meets(since, by):
                by = max(by, span.end + self._rules.redis_grace)
        return by


_LOSSES = frozenset({What.REDIS_KILLED, What.REDIS_FLUSHED})
_FAULTS = frozenset(what for what in What if what is What.LAG or what.startswith(("worker_", "redis_")))


def _spans(observations: Sequence[Observation], begin: What, end: What) -> list[_Span]:
    """Pair beginnings with ends; a fault that was not ended lasts."""
    found = []
    for worker in {one.worker for one in observations}:
        of_worker = [one for one in observations if one.worker == worker and one.what in {begin, end}]
        found += [_Span(worker, first.at, second.at) for first, second in pairwise(of_worker) if first.what is begin]
        if of_worker and of_worker[-1].what is begin:
            found.append(_Span(worker, of_worker[-1].at, float("inf")))
    return found
