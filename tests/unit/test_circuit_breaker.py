"""The circuit breaker: one outage is one degradation, whatever happens during it."""

import asyncio

import pytest

from mcp_eventscope.redis.circuit_breaker import PROBED_SECONDS, CircuitBreaker
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


async def test_breaker_in_one_outage_reports_it_once(breaker: CircuitBreaker, facts: list[StoreEvent]) -> None:
    """Later failures change the reason; the recovery names the first one."""
    breaker.record_failure(FailureReason.TIMEOUT, "no reply in time")
    breaker.record_failure(FailureReason.CONNECTION, "refused")
    breaker.record_failure(FailureReason.LOADING, "LOADING")
    assert breaker.reason is FailureReason.LOADING
    breaker.record_success(0.01)
    assert breaker.reason is None
    degraded, recovered = facts
    assert degraded == StoreDegraded(reason=FailureReason.TIMEOUT, error="no reply in time")
    assert isinstance(recovered, StoreRecovered)
    assert recovered.reason is FailureReason.TIMEOUT
    assert recovered.seconds >= 0


async def test_breaker_in_a_second_outage_reports_it_with_its_reason(
    breaker: CircuitBreaker, facts: list[StoreEvent]
) -> None:
    """Each outage is reported with its own reason."""
    for reason in (FailureReason.OOM, FailureReason.READONLY):
        breaker.record_failure(reason, "")
        breaker.record_success(0)
    assert [fact.reason for fact in facts if isinstance(fact, StoreDegraded | StoreRecovered)] == [
        *[FailureReason.OOM] * 2,
        *[FailureReason.READONLY] * 2,
    ]


async def test_breaker_that_is_closed_reports_no_success(breaker: CircuitBreaker, facts: list[StoreEvent]) -> None:
    """Recording a success of a closed circuit reports nothing."""
    breaker.record_success(0)
    breaker.record_success(10)
    assert facts == []


async def test_breaker_after_a_slow_reply_stays_open(breaker: CircuitBreaker, facts: list[StoreEvent]) -> None:
    """A reply later than the callers' timeout does not close the circuit."""
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
async def test_breaker_when_writes_are_refused_is_reachable(
    breaker: CircuitBreaker, reason: FailureReason, *, unreachable: bool
) -> None:
    """A Redis that refuses writes can still be read."""
    assert not breaker.unreachable
    breaker.record_failure(reason, "")
    assert breaker.unreachable is unreachable


@pytest.mark.parametrize(("reason", "slow"), [(FailureReason.TIMEOUT, True), (FailureReason.CONNECTION, False)])
async def test_breaker_is_slow_after_late_replies_or_long_after_its_last_failure(
    breaker: CircuitBreaker, monkeypatch: pytest.MonkeyPatch, reason: FailureReason, *, slow: bool
) -> None:
    """A process that was suspended has not probed Redis meanwhile."""
    loop, ahead = asyncio.get_running_loop(), 0.0
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + ahead)
    assert not breaker.slow
    breaker.record_failure(reason, "")
    assert breaker.slow is slow
    ahead = PROBED_SECONDS + 0.1
    assert breaker.slow
    breaker.record_failure(reason, "")
    assert breaker.slow is slow
    ahead += PROBED_SECONDS + 0.1
    breaker.record_success(0)
    assert not breaker.slow


async def test_breaker_on_each_failure_starts_a_probe(breaker: CircuitBreaker) -> None:
    """Every failure starts the probes, whichever caller records it."""
    probes: list[str] = []
    breaker.on_failure(lambda: probes.append("first"))
    breaker.on_failure(lambda: probes.append("second"))
    breaker.record_failure(FailureReason.TIMEOUT, "")
    breaker.record_failure(FailureReason.TIMEOUT, "")
    assert probes == ["first", "second"] * 2


async def test_breaker_reset_closes_without_a_report(breaker: CircuitBreaker, facts: list[StoreEvent]) -> None:
    """Closing the store is no recovery."""
    breaker.record_failure(FailureReason.TIMEOUT, "")
    breaker.reset()
    assert breaker.reason is None
    breaker.record_success(0)
    assert len(facts) == 1


async def test_breaker_with_an_observer_that_raises_still_opens(facts: list[StoreEvent]) -> None:
    """The circuit opens, and the other observers are called."""
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


@pytest.fixture
def nodes(facts: list[StoreEvent]) -> CircuitBreaker:
    """A closed circuit of a cluster."""
    observers = Observers()
    observers.subscribe(facts.append)
    return CircuitBreaker(TIMEOUT, observers, cluster=True)


async def test_breaker_of_a_cluster_after_a_failure_stays_closed_and_probes(
    nodes: CircuitBreaker, facts: list[StoreEvent]
) -> None:
    """The failure may be that of one node."""
    probes: list[str] = []
    nodes.on_failure(lambda: probes.append("probe"))
    nodes.record_failure(FailureReason.CONNECTION, "refused")
    assert probes == ["probe"]
    assert nodes.reason is None
    assert facts == []


@pytest.mark.parametrize("partial", [True, False])
async def test_breaker_of_a_cluster_is_closed_by_a_probe_only(
    nodes: CircuitBreaker, facts: list[StoreEvent], *, partial: bool
) -> None:
    """Replies of other nodes close nothing; Redis is unreachable only if no node answers."""
    nodes.open(FailureReason.CONNECTION, "refused", partial=partial)
    nodes.record_success(0)
    assert nodes.reason
    assert nodes.unreachable is not partial
    nodes.open(FailureReason.TIMEOUT, "no reply in time", partial=not partial)
    assert nodes.unreachable is partial
    nodes.record_success(TIMEOUT, probe=True)
    assert nodes.reason
    nodes.record_success(0, probe=True)
    assert nodes.reason is None
    assert [type(fact) for fact in facts] == [StoreDegraded, StoreRecovered]
