"""The schedule of a run, drawn from one seed: faults, calls and cuts."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Fault(StrEnum):
    """The faults of a run, in three tracks: at most one of Redis, one of a worker and one of the network at a time."""

    REDIS_KILL_EMPTY = "redis killed, empty afterwards"
    REDIS_KILL_SAVED = "redis killed, restarted from an older snapshot"
    REDIS_FLUSH = "redis emptied by FLUSHALL"
    REDIS_CUT = "connections to redis cut again and again"
    REDIS_FREEZE = "redis frozen"
    REDIS_SLOW = "redis slow"
    WORKER_KILL = "worker killed"
    WORKER_FREEZE = "worker frozen"
    WORKER_FREEZE_LONG = "worker frozen past its lease"
    CLIENTS_CUT = "all clients cut at once"


REDIS_FAULTS = (
    Fault.REDIS_KILL_EMPTY,
    Fault.REDIS_KILL_SAVED,
    Fault.REDIS_FLUSH,
    Fault.REDIS_CUT,
    Fault.REDIS_FREEZE,
    Fault.REDIS_SLOW,
)
WORKER_FAULTS = (Fault.WORKER_KILL, Fault.WORKER_FREEZE, Fault.WORKER_KILL, Fault.WORKER_FREEZE_LONG)
NETWORK_FAULTS = (Fault.CLIENTS_CUT,)
LEASE = 3.0
"""The lease of the workers, in seconds."""
CALM = 5.0
"""Seconds without a fault at the end of a run."""
_FIRST = 3.0
_SECONDS: dict[Fault, tuple[float, float]] = {
    Fault.REDIS_KILL_EMPTY: (0.2, 4.0),
    Fault.REDIS_KILL_SAVED: (0.2, 4.0),
    Fault.REDIS_FLUSH: (0.0, 0.0),
    Fault.REDIS_CUT: (0.5, 3.0),
    Fault.REDIS_FREEZE: (0.1, 4.0),
    Fault.REDIS_SLOW: (1.0, 5.0),
    Fault.WORKER_KILL: (0.1, 2.0),
    Fault.WORKER_FREEZE: (0.2, 1.2),
    Fault.WORKER_FREEZE_LONG: (LEASE + 1, LEASE + 3),
    Fault.CLIENTS_CUT: (0.0, 0.0),
}
_DELAYS = (0.002, 0.02, 0.1, 0.3)
LEAST_GAP = 1.0
"""Seconds between two faults of a track, at least."""
_GAP = (LEAST_GAP, 5.0)
_NETWORK_GAP = (8.0, 20.0)
"""A call that is cut whenever it has just resumed would never end."""
_RESTART_SECONDS = 4.0
"""Seconds that a killed worker is assumed to take until it serves again."""
_WIDEST_CUTS = 5
"""The connection after which a call is cut no more, so that each call ends."""


@dataclass(frozen=True)
class Incident:
    """One fault: from when, and for how long."""

    at: float
    fault: Fault
    seconds: float
    worker: int = -1
    delay: float = 0.0
    """Seconds that each reply of Redis takes longer."""
    lead: float = 0.0
    """Seconds between the snapshot and the kill."""


def incidents(seed: int, seconds: float, workers: int) -> tuple[list[Incident], list[Incident], list[Incident]]:
    """Return the faults of Redis, those of workers, and those of the network between clients and workers.

    Args:
        seed: Of the run.
        seconds: How long the clients call.
        workers: How many there are.
    """
    return (
        _track(Random(f"{seed}/redis"), REDIS_FAULTS, seconds, workers),  # noqa: S311 - a schedule, no secret
        _track(Random(f"{seed}/workers"), WORKER_FAULTS, seconds, workers),  # noqa: S311 - a schedule, no secret
        _track(Random(f"{seed}/network"), NETWORK_FAULTS, seconds, workers),  # noqa: S311 - a schedule, no secret
    )


def _track(random: Random, faults: tuple[Fault, ...], seconds: float, workers: int) -> list[Incident]:
    found: list[Incident] = []
    gap = _NETWORK_GAP if faults is NETWORK_FAULTS else _GAP
    at, bag = _FIRST + random.uniform(*gap), [*faults]
    random.shuffle(bag)
    while True:
        if not bag:  # Each fault comes once before any comes again.
            bag = [*faults]
            random.shuffle(bag)
        fault = bag.pop()
        incident = Incident(
            round(at, 3),
            fault,
            round(random.uniform(*_SECONDS[fault]), 3),
            worker=random.randrange(workers) if fault in WORKER_FAULTS else -1,
            delay=random.choice(_DELAYS) if fault is Fault.REDIS_SLOW else 0.0,
            lead=round(random.uniform(0.0, 4.0), 3) if fault is Fault.REDIS_KILL_SAVED else 0.0,
        )
        restart = _RESTART_SECONDS if fault is Fault.WORKER_KILL else 0.0
        ends = at + incident.lead + incident.seconds + restart
        if ends > seconds - CALM:
            return found
        found.append(incident)
        at = ends + random.uniform(*gap)


@dataclass(frozen=True)
class CallPlan:
    """One call: the arguments of the tool, and the circumstances."""

    publishes: bool
    times: int
    pause: float
    padding: int
    text_id: bool
    """Whether the request id is a JSON string, of digits: `"7"` is not `7`."""
    new_session: bool
    """Whether the client changes to a new session before."""
    rest: float
    """Seconds of rest before."""


@dataclass(frozen=True)
class LinkPlan:
    """One connection of a stream: its worker, and when the client cuts it; never before the first event."""

    worker: int
    after_events: int | None = None
    after_seconds: float | None = None
    half_open: bool = False
    """Whether the client stops reading and leaves the connection open, as behind a dead network."""


class ClientPlan:
    """The plan of one client. Its n-th call and its n-th connection do not depend on the course of the run.

    Args:
        seed: Of the run.
        client: Its number.
        workers: How many there are.
    """

    def __init__(self, seed: int, client: int, workers: int) -> None:
        self._name = f"{seed}/{client}"
        self._workers = workers

    def call(self, number: int, *, listens: bool) -> CallPlan:
        """Return the plan of the n-th call of a client that has a standalone stream, or has none."""
        random = self._random("call", number)
        publishes = listens and random.random() < 0.6
        return CallPlan(
            publishes=publishes,
            times=0 if publishes else random.choice((0, 1, 2, 3, 5, 8, 13, 20, 30)),
            pause=round(random.choice((0.005, 0.02, 0.05, 0.1, 0.2)) * random.uniform(0.5, 1.5), 4),
            padding=random.choice((0, 0, 0, 0, 300, 5000)),
            text_id=random.random() < 0.25,
            new_session=number > 0 and random.random() < 0.07,
            rest=round(random.uniform(0.0, 0.4), 3),
        )

    def link(self, session: str, stream: str, number: int, *, standalone: bool = False) -> LinkPlan:
        """Return the plan of the n-th connection of a stream."""
        random = self._random("link", session, stream, number)
        worker, fate = random.randrange(self._workers), random.random()
        events, seconds = random.choice((1, 1, 2, 3, 5, 8)), round(random.uniform(0.02, 1.5), 3)
        half_open = random.random() < 0.25
        if standalone:
            return LinkPlan(worker, after_events=events) if fate < 0.5 else LinkPlan(worker, after_seconds=2 * seconds)
        if number >= _WIDEST_CUTS or fate > 0.7:
            return LinkPlan(worker)
        if fate < 0.45:
            return LinkPlan(worker, after_events=events, half_open=half_open)
        return LinkPlan(worker, after_seconds=seconds)

    def start(self) -> float:
        """Return the seconds after which the client begins."""
        return round(self._random("start").uniform(0.0, 1.5), 3)

    def _random(self, *parts: object) -> Random:
        return Random("/".join(map(str, (self._name, *parts))))  # noqa: S311 - a schedule, no secret
