"""The circuit breaker: one outage is one degradation, whatever happens during it."""

import pytest

from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.store.events import FailureReason, StoreDegraded, StoreEvent, StoreRecovered

pytestmark = pytest.mark.anyio

TIMEOUT = 0.25


@pytest.fixture
def facts() -> list[StoreEvent]:
    """The reported facts."""
    return []


@pytest.fixture
def breaker(facts: list[StoreEvent]) -> CircuitBreaker:
    """A closed circuit."""
    observers = Observers()
    observers.subscribe(facts.append)
    return CircuitBreaker(TIMEOUT, observers)


async def test_one_outage_is_reported_once(breaker: CircuitBreaker, facts: list[StoreEvent]) -> None:
    """Further failures change the reason, and the recovery names the first one."""
    breaker.record_failure(FailureReason.TIMEOUT, "no reply in time")
    breaker.record_failure(FailureReason.CONNECTION, "refused")
    breaker.record_failure(FailureReason.LOADING, "LOADING")
    assert breaker.reason is FailureReason.LOADING
    breaker.record_success(0.01)
    assert breaker.reason is None
    went, back = facts
    assert went == StoreDegraded(reason=FailureReason.TIMEOUT, error="no reply in time")
    assert isinstance(back, StoreRecovered)
    assert back.reason is FailureReason.TIMEOUT
    assert back.seconds >= 0


async def test_next_outage_is_reported_again(breaker: CircuitBreaker, facts: list[StoreEvent]) -> None:
    """With its own reason."""
    for reason in (FailureReason.OOM, FailureReason.READONLY):
        breaker.record_failure(reason, "")
        breaker.record_success(0)
    assert [fact.reason for fact in facts if isinstance(fact, StoreDegraded | StoreRecovered)] == [
        *[FailureReason.OOM] * 2,
        *[FailureReason.READONLY] * 2,
    ]


async def test_success_of_a_closed_circuit_is_not_reported(breaker: CircuitBreaker, facts: list[StoreEvent]) -> None:
    """Each reply is recorded."""
    breaker.record_success(0)
    breaker.record_success(10)
    assert facts == []


async def test_slow_reply_keeps_the_circuit_open(breaker: CircuitBreaker, facts: list[StoreEvent]) -> None:
    """A Redis that takes longer than a caller waits is of no use to it."""
    breaker.record_failure(FailureReason.TIMEOUT, "")
    breaker.record_success(TIMEOUT)
    assert breaker.reason is FailureReason.TIMEOUT
    breaker.record_success(TIMEOUT - 0.001)
    assert len(facts) == 2


@pytest.mark.parametrize(
    ("reason", "unreachable"),
    [
        (FailureReason.TIMEOUT, True),
        (FailureReason.CONNECTION, True),
        (FailureReason.POOL, True),
        (FailureReason.LOADING, True),
        (FailureReason.BUSY, True),
        (FailureReason.OOM, False),
        (FailureReason.READONLY, False),
        (FailureReason.AUTH, False),
        (FailureReason.OTHER, False),
    ],
)
async def test_redis_that_refuses_writes_is_reachable(
    breaker: CircuitBreaker, reason: FailureReason, *, unreachable: bool
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
    breaker.record_failure(FailureReason.TIMEOUT, "")
    breaker.record_failure(FailureReason.TIMEOUT, "")
    assert probes == ["first", "second"] * 2


async def test_reset_closes_without_a_report(breaker: CircuitBreaker, facts: list[StoreEvent]) -> None:
    """A store that is closed has not recovered."""
    breaker.record_failure(FailureReason.TIMEOUT, "")
    breaker.reset()
    assert breaker.reason is None
    breaker.record_success(0)
    assert len(facts) == 1


async def test_observer_that_raises_changes_nothing(facts: list[StoreEvent]) -> None:
    """The others are called, and the circuit opens."""
    observers = Observers()
    assert not observers

    def broken(_: StoreEvent) -> None:
        raise ZeroDivisionError

    observers.subscribe(broken)
    observers.subscribe(facts.append)
    breaker = CircuitBreaker(TIMEOUT, observers)
    breaker.record_failure(FailureReason.TIMEOUT, "")
    assert breaker.unreachable
    assert len(facts) == 1
