import time

import fakeredis
import pytest

from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.leases import Leases

pytestmark = pytest.mark.anyio

LEASE = 10.0


class Clock:
    """A monotonic clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time, as it was set."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this process."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def server() -> fakeredis.FakeServer:
    """A Redis that can be away."""
    return fakeredis.FakeServer()


@pytest.fixture
def leases(server: fakeredis.FakeServer) -> Leases:
    """The leases, as this worker sees them."""
    return Leases(fakeredis.FakeAsyncRedis(server=server), Keys("mcp:"), "me")


async def test_whose_lease_has_run_out_is_gone(leases: Leases, server: fakeredis.FakeServer) -> None:
    """Whoever has a lease lives, and so do we; all others are gone."""
    other = Leases(fakeredis.FakeAsyncRedis(server=server), Keys("mcp:"), "other")
    await other.renew(LEASE)
    assert await leases.gone({"me", "other", "third"}) == {"third"}
    await other.leave()
    assert await leases.gone({"me", "other", "third"}) == {"other", "third"}


@pytest.mark.parametrize("seen_by", ["renewal", "look"])
async def test_nobody_is_gone_just_after_an_outage(
    leases: Leases, server: fakeredis.FakeServer, clock: Clock, seen_by: str
) -> None:
    """Leases run out while Redis is away: the others get the time to renew theirs."""
    await leases.renew(LEASE)
    server.connected = False
    with pytest.raises(StoreError):
        await (leases.renew(LEASE) if seen_by == "renewal" else leases.gone({"other"}))
    server.connected = True
    assert await leases.gone({"other"}) == set()
    clock.now += LEASE - 1
    assert await leases.gone({"other"}) == set()
    clock.now += 2
    assert await leases.gone({"other"}) == {"other"}


async def test_nobody_is_gone_just_after_a_stall(leases: Leases, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that has not answered for long has not let others renew either."""
    await leases.renew(LEASE)
    ask = leases._redis.exists

    async def slow(*names: str) -> object:
        clock.now += LEASE / 2
        return await ask(*names)

    monkeypatch.setattr(leases._redis, "exists", slow)
    assert await leases.gone({"other"}) == set()
    monkeypatch.setattr(leases._redis, "exists", ask)
    clock.now += LEASE + 1
    assert await leases.gone({"other"}) == {"other"}
