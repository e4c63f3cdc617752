"""What is done to a worker whose TTL is too short, to one that has none, and to the Redis that they share."""

import time
from functools import partial

import anyio

from support.drill import modern
from support.drill.customer import GONE, Call, Customer, NewCustomer
from support.drill.fleet import LEAST_RESUMES
from support.drill.site import FOREVER, SHORT, Site, has_stored
from support.processes import revive
from support.waiting import until

MOST_FAILURES = LEAST_RESUMES - LEAST_RESUMES // 4 - 1
"""Of so few resumes, those before included, no alert about resumes may fire."""


def _age(call: Call) -> float:
    """Seconds since the last event that the client has: ids are clocks."""
    return time.time() - int(call.last.partition("-")[0]) / 1e6


async def _expired(site: Site, customer: Customer, made: Call) -> bool:
    """Whether the list of a call has expired: a TTL after its last commit, which its client may not have seen."""

    def absent() -> bool:
        with site.other_redis.client() as redis:
            return not redis.exists(customer.list_of(made))

    return await anyio.to_thread.run_sync(absent)


async def too_short(site: Site, new: NewCustomer) -> None:
    """Clients come back when nine tenths of the TTL are over, and then again after it."""
    await anyio.to_thread.run_sync(revive, [site.short])
    await site.scraped(site.short)
    await modern.are_forgotten(site, new(SHORT))
    customers = [new(SHORT) for _ in range(4)]

    async def call(customer: Customer) -> None:
        await customer.arrives(site.short)
        for _ in range(6):
            await customer.ends(await customer.calls_and_is_cut(site.short, "1"), "2")

    async def each(resumed: list[tuple[Customer, Call]]) -> None:
        async with anyio.create_task_group() as tasks:
            for customer, made in resumed:
                tasks.start_soon(back, customer, made)

    async def all_expired() -> bool:
        return all([await _expired(site, customer, made) for customer, made in calls])

    async def back(customer: Customer, made: Call) -> None:
        expired_before = await _expired(site, customer, made)
        received = await customer.comes_back(site.short, made.last)
        # It may expire on the way: then it had not when the client asked, and has when it is answered.
        if received == [GONE]:
            assert await _expired(site, customer, made)
            customer.missed("expired")
        else:
            assert received == ["2", "2 steps"]
            assert not expired_before

    async with anyio.create_task_group() as tasks:
        for customer in customers:
            tasks.start_soon(call, customer)
    calls = [(customer, made) for customer in customers for made in customer.calls]
    await until(lambda: max(_age(made) for _, made in calls) > 0.92 * site.ttl, within=site.patience)
    assert "EventscopeTTLHeadroomLow" not in site.firing()
    await each(calls)
    await until(all_expired, within=site.patience)
    await each(calls)
    await each(calls[:6])
    await site.fires(SHORT, "EventscopeTTLHeadroomLow", "EventscopeResumesFailing", "EventscopeDueEventsUndelivered")
    await site.fires(SHORT, "EventscopeTasksUncollected")


async def for_ever(site: Site, new: NewCustomer) -> None:
    """Nothing expires. Resumes fail, at first too few for an alert; then the worker ends, and its target with it."""
    await anyio.to_thread.run_sync(revive, [site.forever])
    await site.scraped(site.forever)
    customer, other = new(FOREVER), new(FOREVER)
    for who in (customer, other):
        await who.arrives(site.forever)
        await who.ends(await who.calls_and_is_cut(site.forever, "1"))

    async def strangers(count: int) -> None:
        for _ in range(count):
            assert await customer.misses(site.forever, other.calls[0].last, "unknown") == [GONE]

    await strangers(LEAST_RESUMES // 4)
    await site.shows(f'job_store:eventscope_resumes_failed:ratio_rate1h{{job="{FOREVER}"}} == 1')
    await _spoilt(site, other)
    await site.fires(FOREVER, "EventscopeTTLMissing")
    assert not any("Resumes" in name for name in site.firing(FOREVER)), "of so few no share is taken"
    await strangers(LEAST_RESUMES)
    await site.fires(FOREVER, "EventscopeResumesFailing", "EventscopeDueEventsUndelivered")
    await site.scraped(site.forever)
    site.forever.kill()
    site.ledgers[FOREVER].crashed(site.forever.url)


async def _spoilt(site: Site, customer: Customer) -> None:
    """Another program writes to the key of a stream: its next event is lost, and Redis refuses to read it."""
    call = await customer.calls_and_is_cut(site.forever, "1")
    key = customer.list_of(call)
    await until(partial(has_stored, site.other_redis, key, len(call.events)))
    with site.other_redis.client() as redis:
        redis.set(key, "not a list")
    await call.steering.step("2")
    customer.ledger.lost["rejected"] += 1
    await site.fires(FOREVER, "EventscopeEventsLost")
    for _ in range(MOST_FAILURES):
        if "EventscopeStoreErrors" in site.firing(FOREVER):
            break
        await customer.fails(site.forever, call.last)
        await anyio.sleep(site.interval)
    await site.fires(FOREVER, "EventscopeStoreErrors")
    await call.steering.finish()
    await call.steering.ended()


async def full(site: Site) -> None:
    """It holds keys without TTL of the one under the prefix of the other; it fills up; who samples it is locked out."""
    await site.fires(SHORT, "EventscopeKeysWithoutTTL")
    with site.other_redis.client() as redis:
        for number in range(200):
            redis.set(f"ballast:{number}", "x" * 4096, ex=600)
        used = redis.info("memory")["used_memory"]
        site.other_redis.set(maxmemory_policy="allkeys-random", maxmemory=used)
        await site.fires(SHORT, "EventscopeRedisEvicting", "EventscopeRedisMemoryNearLimit")
        site.other_redis.set(maxmemory=used * 2)  # So that it has evicted what it will.
        site.evicted = redis.info("stats")["evicted_keys"]
        await site.scraped(site.short)
        redis.execute_command("ACL", "SETUSER", "default", "-dbsize")
    await site.fires(SHORT, "EventscopeRedisStatsStale")
