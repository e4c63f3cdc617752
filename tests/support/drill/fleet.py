"""What is done to two workers that share a Redis: nothing; a crash; an outage; wrong ids; outage after outage."""

import itertools
import time
from functools import partial

import anyio

from mcp_eventscope.redis.write.session_limit import ENTRY_RUNS
from support.chaos import content_of
from support.drill import modern
from support.drill.customer import GONE, ORPHANED, Customer, NewCustomer
from support.drill.site import FLEET, Site, has_stored
from support.http_client import Event, events
from support.processes import revive
from support.tool_control import ToolControl
from support.waiting import until

LEAST_RESUMES = 20
"""Of fewer no share is taken, and no alert fires."""
LEAST_OUTAGES = 5
"""More than three in a quarter of an hour of the rules are flapping."""
AT_ONCE = 200
"""Messages that the talker sends at a time."""


class Talker:
    """A call whose stream stays open, and what came on it."""

    def __init__(self, customer: Customer, steering: ToolControl) -> None:
        self.customer = customer
        self.steering = steering
        self.received: list[Event] = []
        self.reported = 0

    async def listen(self) -> None:
        """Call, and read to the end."""
        self.customer.ledger.requests += 1
        async with self.customer.client.call(1, "steps", name=self.steering.name) as response:
            async for event in events(response):
                self.received.append(event)

    async def send(self, count: int) -> None:
        """Have the tool report so many numbers, and return when the client has them."""
        await self.steering.step(*(str(number) for number in range(self.reported, self.reported + count)))
        self.reported += count
        await until(lambda: len(self.received) == 1 + self.reported)

    async def finish(self) -> None:
        """Have the tool return."""
        await self.steering.finish()
        await until(lambda: len(self.received) == 2 + self.reported)
        self.customer.ledger.stored.update(priming=1, notification=self.reported, response=1)
        assert [content_of(event) for event in self.received[1:]] == self.everything

    @property
    def everything(self) -> list[str]:
        """All results."""
        return [*map(str, range(self.reported)), f"{self.reported} steps"]


async def calm(site: Site, new: NewCustomer) -> None:
    """Calls are cut, and resumed on the other worker, in the call and after it; a session is deleted."""
    pair = (site.a, site.b)

    async def one(number: int) -> None:
        here, there = pair if number % 2 else pair[::-1]
        customer = new(FLEET)
        await customer.arrives(here)
        for _ in range(2):
            call = await customer.calls_and_is_cut(here, "1")
            await customer.ends(call, "2", "3")
            # Messages do not wait for Redis, and the other worker only has what is stored.
            await until(partial(has_stored, site.fleet_redis, customer.list_of(call), 5))
            assert await customer.comes_back(there, call.last) == ["2", "3", "3 steps"]
        if number == 0:
            await customer.leaves(there)

    async def fill(customer: Customer) -> None:
        """Make so many calls that the worker accounts for the session."""
        await customer.arrives(site.a)
        for _ in range(ENTRY_RUNS):
            await customer.ends(await customer.calls_and_is_cut(site.a))

    async def follow(customer: Customer) -> None:
        assert await customer.comes_back(site.b, customer.calls[-1].last, owed=False) == ["2", "2 steps"]

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(one, number)
        tasks.start_soon(fill, new(FLEET))
    followed = [new(FLEET) for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for customer in followed:
            await customer.arrives(site.a)
            await customer.calls_and_is_cut(site.a, "1")
            tasks.start_soon(follow, customer)
        await site.shows(f'sum(eventscope_streams_followed{{job="{FLEET}"}}) == {len(followed)}')
        for customer in followed:
            await customer.ends(customer.calls[-1], "2")
    await site.shows(f'job_store:eventscope_resumes:increase1h{{job="{FLEET}"}} >= {LEAST_RESUMES}')
    await site.scraped(*pair)


async def crash(site: Site, new: NewCustomer) -> None:
    """A worker is killed in two calls and a task; the clients come back on the other one, and receive an error."""
    customers = [new(FLEET) for _ in range(2)]
    for customer in customers:
        await customer.arrives(site.a)
        await customer.calls_and_is_cut(site.a, "1")
    task = await modern.starts(customers[0], site.a)
    # What it has counted and was not scraped is lost with it.
    await site.scraped(site.a, site.b)
    site.a.kill()
    ledger = site.ledgers[FLEET]
    ledger.crashed(site.a.url)

    async def one(customer: Customer) -> None:
        assert await customer.comes_back(site.b, customer.calls[-1].last, owed=False) == [ORPHANED]
        ledger.orphaned += 1

    async with anyio.create_task_group() as tasks:
        for customer in customers:
            tasks.start_soon(one, customer)
        tasks.start_soon(modern.is_orphaned, site, customers[0], task)
    await site.fires(FLEET, "EventscopeRequestsOrphaned", "EventscopeTasksOrphaned")
    await anyio.to_thread.run_sync(revive, [site.a])
    await site.scraped(site.a)


async def outage(site: Site, new: NewCustomer) -> None:
    """Redis is killed while a tool talks and clients come back.

    On the worker that runs their call they get everything immediately; on the other one when Redis has recovered.
    """
    ledger = site.ledgers[FLEET]
    near, waiting = new(FLEET), [new(FLEET) for _ in range(4)]
    await near.arrives(site.b)
    await near.calls_and_is_cut(site.b, "1")
    for customer in waiting:
        await customer.arrives(site.a)
        await customer.calls_and_is_cut(site.b, "1")
    talker = Talker(new(FLEET), near.steering())
    await talker.customer.arrives(site.a)
    over = anyio.Event()

    async def talk() -> None:
        while not over.is_set():
            await talker.send(AT_ONCE)
            await anyio.sleep(0.1)

    async def comes_back(customer: Customer) -> None:
        ledger.waited += 1
        assert await customer.comes_back(site.a, customer.calls[-1].last, owed=False) == ["2", "2 steps"]

    async def come_back() -> None:
        for customer in waiting:
            tasks.start_soon(comes_back, customer)
            await anyio.sleep(0.5 * site.interval)
        (call,) = near.calls
        await near.ends(call, "2")
        assert await near.comes_back(site.b, call.last) == ["2", "2 steps"]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(talker.listen)
        await until(lambda: talker.received)
        await site.scraped(site.a, site.b)
        async with anyio.create_task_group() as meanwhile:
            site.fleet_redis.kill()
            down = time.monotonic()
            meanwhile.start_soon(talk)
            meanwhile.start_soon(come_back)
            await site.fires(FLEET, "EventscopeStoreDegraded")
            # More than EventscopeBacklogGrowing allows: it must not fire, since the outage has an alert.
            await site.shows(f'job_store:eventscope_backlog_length:sum{{job="{FLEET}"}} > 1000')
            over.set()
        ledger.outages.append(time.monotonic() - down)
        site.fleet_redis.start()
        await site.shows(f'sum(eventscope_degraded{{job="{FLEET}"}} + eventscope_backlog_length) == bool 0')
        for customer in waiting:
            await customer.ends(customer.calls[-1], "2")
        await talker.finish()
    assert await talker.customer.comes_back(site.b, talker.received[0].id) == talker.everything
    await site.scraped(site.a, site.b)


async def flapping(site: Site, new: NewCustomer) -> None:
    """Redis becomes unreachable and comes back immediately, until that is noticed."""
    talker = Talker(new(FLEET), new(FLEET).steering())
    await talker.customer.arrives(site.a)

    async def talks_until(*, degraded: bool) -> None:
        while await site.is_degraded(site.a) is not degraded:
            await talker.send(1)
            await anyio.sleep(0.02)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(talker.listen)
        await until(lambda: talker.received)
        for number in itertools.count(1):
            site.fleet_redis.kill()
            down = time.monotonic()
            await talks_until(degraded=True)
            site.fleet_redis.start()
            site.ledgers[FLEET].outages.append(time.monotonic() - down)
            await talks_until(degraded=False)
            # Five are enough where they fit into the window of the alert; where they take longer, more are needed.
            if number >= LEAST_OUTAGES:
                await site.scraped(site.a)
                if "EventscopeStoreFlapping" in site.firing(FLEET):
                    break
            assert number < 4 * LEAST_OUTAGES, "the alert does not fire"
        await talker.finish()
    assert all(event.id for event in talker.received)
    assert await talker.customer.comes_back(site.b, talker.received[0].id) == talker.everything


async def wrong_ids(site: Site, new: NewCustomer) -> None:
    """Ids of another session, and one that is none: enough of them for an alert."""
    customer, other = new(FLEET), new(FLEET)
    for who in (customer, other):
        await who.arrives(site.a)
        await who.ends(await who.calls_and_is_cut(site.a, "1"))
    for number in range(30):
        if number < 18:
            # The other worker would wait for as long as this one is alive: the event may not be stored yet.
            assert await customer.misses(site.a, other.calls[0].last, "unknown") == [GONE]
        else:
            assert await customer.is_refused((site.a, site.b)[number % 2], "no-id-of-ours") == 400
    await site.fires(FLEET, "EventscopeResumesFailing", "EventscopeDueEventsUndelivered")
