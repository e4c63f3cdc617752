"""The circuit breaker: one outage is one degradation, whatever happens during it."""

import pytest

from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.types import CameBack, StoreFact, Trouble, WentAway

pytestmark = pytest.mark.anyio

TIMEOUT = 0.25


@pytest.fixture
def facts() -> list[StoreFact]:
    """The reported facts."""
    return []


@pytest.fixture
def breaker(facts: list[StoreFact]) -> CircuitBreaker:
    """A closed circuit."""
    observers = Observers()
    observers.subscribe(facts.append)
    return CircuitBreaker(TIMEOUT, observers)


async def test_one_outage_is_reported_once(breaker: CircuitBreaker, facts: list[StoreFact]) -> None:
    """Further failures change the reason, and the recovery names the first one."""
    breaker.record_failure(Trouble.TIMEOUT, "no reply in time")
    breaker.record_failure(Trouble.CONNECTION, "refused")
    breaker.record_failure(Trouble.LOADING, "LOADING")
    assert breaker.reason is Trouble.LOADING
    breaker.record_success(0.01)
    assert breaker.reason is None
    went, back = facts
    assert went == WentAway(reason=Trouble.TIMEOUT, error="no reply in time")
    assert isinstance(back, CameBack)
    assert back.reason is Trouble.TIMEOUT
    assert back.seconds >= 0


async def test_next_outage_is_reported_again(breaker: CircuitBreaker, facts: list[StoreFact]) -> None:
    """With its own reason."""
    for reason in (Trouble.OOM, Trouble.READONLY):
        breaker.record_failure(reason, "")
        breaker.record_success(0)
    assert [fact.reason for fact in facts if isinstance(fact, WentAway | CameBack)] == [
        *[Trouble.OOM] * 2,
        *[Trouble.READONLY] * 2,
    ]


async def test_success_of_a_closed_circuit_is_not_reported(breaker: CircuitBreaker, facts: list[StoreFact]) -> None:
    """Each reply is recorded."""
    breaker.record_success(0)
    breaker.record_success(10)
    assert facts == []


async def test_slow_reply_keeps_the_circuit_open(breaker: CircuitBreaker, facts: list[StoreFact]) -> None:
    """A Redis that takes longer than a caller waits is of no use to it."""
    breaker.record_failure(Trouble.TIMEOUT, "")
    breaker.record_success(TIMEOUT)
    assert breaker.reason is Trouble.TIMEOUT
    breaker.record_success(TIMEOUT - 0.001)
    assert len(facts) == 2


@pytest.mark.parametrize(
    ("reason", "unreachable"),
    [
        (Trouble.TIMEOUT, True),
        (Trouble.CONNECTION, True),
        (Trouble.POOL, True),
        (Trouble.LOADING, True),
        (Trouble.BUSY, True),
        (Trouble.OOM, False),
        (Trouble.READONLY, False),
        (Trouble.AUTH, False),
        (Trouble.OTHER, False),
    ],
)
async def test_redis_that_refuses_writes_is_reachable(
    breaker: CircuitBreaker, reason: Trouble, *, unreachable: bool
) -> None:
    """It can be read from."""
    assert not breaker.unreachable
    breaker.record_failure(reason, "")
    assert breaker.unreachable is unreachable


async def test_each_failure_starts_a_probe(breaker: CircuitBreaker) -> None:
    """Something tries Redis until it answers, whichever caller has noticed the failure."""
    probes: list[str] = []
    breaker.on_open(lambda: probes.append("first"))
    breaker.on_open(lambda: probes.append("second"))
    breaker.record_failure(Trouble.TIMEOUT, "")
    breaker.record_failure(Trouble.TIMEOUT, "")
    assert probes == ["first", "second"] * 2


async def test_reset_closes_without_a_report(breaker: CircuitBreaker, facts: list[StoreFact]) -> None:
    """A store that is closed has not recovered."""
    breaker.record_failure(Trouble.TIMEOUT, "")
    breaker.reset()
    assert breaker.reason is None
    breaker.record_success(0)
    assert len(facts) == 1


async def test_observer_that_raises_changes_nothing(facts: list[StoreFact]) -> None:
    """The others are called, and the circuit opens."""
    observers = Observers()
    assert not observers

    def broken(_: StoreFact) -> None:
        raise ZeroDivisionError

    observers.subscribe(broken)
    observers.subscribe(facts.append)
    breaker = CircuitBreaker(TIMEOUT, observers)
    breaker.record_failure(Trouble.TIMEOUT, "")
    assert breaker.unreachable
    assert len(facts) == 1
