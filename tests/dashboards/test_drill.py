import logging
import time
import uuid
from collections.abc import Iterator

import anyio
import httpx2
import pytest

from mcp_eventscope.redis.connection import connect
from support.drill import fleet, others
from support.drill.customer import Customer
from support.drill.site import FLEET, FOREVER, SHORT, Site, site
from support.raw import RawClient
from support.steering import Steering

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

LOG = logging.getLogger("drill")
FAILING = {"EventscopeResumesFailing", "EventscopeResumesFailingSlowly", "EventscopeOwedEventsUndelivered"}
EXPECTED = {
    FLEET: FAILING
    | {
        "EventscopeRequestsOrphaned",
        "EventscopeStoreDegraded",
        "EventscopeStoreErrors",
        "EventscopeStoreFlapping",
        "EventscopeBacklogGrowing",
    },
    SHORT: FAILING
    | {
        "EventscopeTTLHeadroomLow",
        "EventscopeKeysWithoutTTL",
        "EventscopeRedisEvicting",
        "EventscopeRedisMemoryNearLimit",
        "EventscopeRedisUnsampled",
    },
    FOREVER: FAILING | {"EventscopeTTLMissing", "EventscopeMetricsAbsent"},
}


async def drill(site: Site, control_url: str) -> None:
    """All of it, stage after stage."""
    async with connect(control_url) as control, httpx2.AsyncClient(timeout=60, trust_env=False) as http:

        def new(job: str) -> Customer:
            return Customer(RawClient(http, ""), site.ledgers[job], lambda: Steering(control, uuid.uuid4().hex))

        async def told(name: str, stage: object) -> None:
            began = time.monotonic()
            await stage  # type: ignore[misc]
            LOG.info("%5.1f s %s: %.1f s", time.time() - site.began, name, time.monotonic() - began)

        async def first() -> None:
            await told("crash", fleet.crash(site, new))
            await told("outage", fleet.outage(site, new))
            await told("wrong ids", fleet.wrong_ids(site, new))
            await told("flapping", fleet.flapping(site, new))

        async def second() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(told, "too short", others.too_short(site, new))
                tasks.start_soon(told, "for ever", others.for_ever(site, new))
            await told("full", others.full(site))

        await site.begin()
        await told("calm", fleet.calm(site, new))
        assert site.prometheus.query("ALERTS") == [], "nothing was wrong"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            tasks.start_soon(second)
        for job, names in EXPECTED.items():
            await told(f"alerts of {job}", site.fires(job, *(names & WAITED_FOR), within=60))


WAITED_FOR = {"EventscopeResumesFailingSlowly", "EventscopeMetricsAbsent"}


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Site]:
    """The drill, when it is over."""
    with site(tmp_path_factory.mktemp("drill"), valkey_url) as drilled:
        anyio.run(drill, drilled, valkey_url)
        yield drilled


def test_alerts(after: Site) -> None:
    """What should have fired has, and nothing else."""
    assert after.fired() == {(job, name) for job, names in EXPECTED.items() for name in names}
