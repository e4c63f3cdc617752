"""A commit is executed once and in order, despite faults of command, reply and keys."""

import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.write.session_batch import COMMIT
from mcp_eventscope.store.events import (
    BatchCommitted,
    BatchRetried,
    EventsLost,
    FailureReason,
    LossReason,
    StoreDegraded,
)
from mcp_eventscope.store.results import StoreOutcome
from support.leaks import LeakChecker
from support.messages import answer, note
from support.proxy import Proxy
from support.servers import Valkey
from support.session_producers import Facts, Received, SessionProducer, elements, observed, run_of
from support.stores import patient_client, until_settled
from support.waiting import in_time

pytestmark = pytest.mark.anyio

TTL = 60
RUN = "0123456789ab1"
ENTRY = b"r 1 1"


# -- the script -------------------------------------------------------------------------------------------------------


@dataclass
class Commits:
    """Calls `commit.lua` for one run of one session, as a writer does."""

    client: aioredis.Redis
    prefix: str
    sent: int = 0
    """The largest number that was sent."""

    @property
    def elements_key(self) -> str:
        """The run's list."""
        return f"{self.prefix}stream:1:{RUN}"

    @property
    def requests(self) -> str:
        """The session's requests."""
        return f"{self.prefix}requests"

    @property
    def session(self) -> str:
        """The session's record."""
        return f"{self.prefix}session"

    @property
    def index(self) -> str:
        """The session's index."""
        return f"{self.prefix}index"

    async def __call__(
        self, first: int, *numbers: int, marks: str = "r", last: int | None = None, remove: str = ""
    ) -> str:
        """Commit elements with these numbers; returns the state.

        Args:
            first: The number that follows the last acknowledged one.
            numbers: The elements' numbers.
            marks: The marks of the part.
            last: The number of the element that has the mark of a response.
            remove: The SHA-1 of an element to remove.
        """
        now = time.time_ns() // 1000
        found = [b"%d %d%b\np%d" % (number, now, b" f" if number == last else b"", number) for number in numbers]
        sent, self.sent = self.sent, max(self.sent, first - 1, *numbers)
        keys = [self.elements_key, self.index]
        header = f"{len(found)} 0 {marks}"
        arguments: list[str | bytes | int] = [TTL, header, *found]
        if not marks.startswith("n"):
            keys += [self.requests, self.session]
            arguments = [TTL, f"{header} {first} {sent}", RUN, ENTRY, remove, *found]
        reply = await COMMIT(self.client, keys, arguments)
        clock, state = reply.decode().split("\n")
        assert abs(int(clock) - now) < 10_000_000
        return str(state)

    async def numbers(self) -> list[int]:
        """The numbers that the list has."""
        return [each.number for each in await elements(self.client, self.elements_key)]

    async def rows(self) -> list[str]:
        """The keys that the index names, without the prefix."""
        found = await self.client.lrange(self.index, 0, -1)
        return [(row.decode() if isinstance(row, bytes) else row).partition(" ")[2] for row in found]

    async def entry(self) -> str | None:
        """The run's entry in `requests`."""
        found = await self.client.hget(self.requests, RUN)
        return found.decode() if isinstance(found, bytes) else found


@pytest.fixture
async def commit(redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker) -> Commits:
    """Commits for one run; the test fails that leaves a key without TTL."""
    assert await leaks.keys() == []
    return Commits(redis_client, f"{key_prefix}{{s}}:")


async def test_commit_script_repeated_changes_nothing(commit: Commits) -> None:
    """A copy of this or an older commit returns how far the list has got."""
    assert await commit(1, 1, 2) == "k2"
    assert await commit(1, 1, 2) == "k2"
    assert await commit(3, 3, 4) == "k4"
    assert await commit(1, 1, 2) == "k4"
    assert await commit(3, 3, 4, 5) == "k5"
    assert await commit.numbers() == [1, 2, 3, 4, 5]


async def test_commit_script_after_the_response_does_not_reopen_the_request(commit: Commits) -> None:
    """Late copies of earlier commits leave the request closed."""
    await commit(1, 1)
    assert await commit.entry() == ENTRY.decode()
    assert await commit(2, 2, 3, marks="fr", last=3) == "k3"
    assert await commit.entry() is None
    assert await commit(1, 1) == "k3"
    assert await commit(2, marks="r") == "k3", "a question that was sent before the response"
    assert await commit.entry() is None
    assert await commit(2, 2, 3, marks="fr", last=3) == "k3"
    assert await commit(4, marks="f") == "k3"
    assert await commit.entry() is None
    assert await commit.numbers() == [1, 2, 3]


async def test_commit_script_beyond_the_list_writes_nothing(commit: Commits, redis_client: aioredis.Redis) -> None:
    """Where the list ends before the commit begins, Redis has lost events."""
    assert await commit(3, 3) == "b0"
    assert await redis_client.exists(commit.elements_key, commit.requests) == 0
    await commit(1, 1, 2)
    assert await commit(4, 4) == "b2"
    assert await commit(4) == "b2"
    assert await commit.numbers() == [1, 2]


async def test_commit_script_without_events_renews(commit: Commits, redis_client: aioredis.Redis) -> None:
    """It renews the TTL, and names an open run again that Redis has lost."""
    await commit(1, 1)
    await redis_client.delete(commit.requests)
    await redis_client.expire(commit.elements_key, 5)
    assert await commit(2) == "k1"
    assert await commit.entry() == ENTRY.decode()
    assert await redis_client.ttl(commit.elements_key) > 5


async def test_commit_script_renews_the_index_when_it_is_new_or_marked(
    commit: Commits, redis_client: aioredis.Redis
) -> None:
    """A row without the mark leaves the TTL as it is; an index that was evicted gets one again."""
    await commit(1, 1, 2, last=2, marks="fr")
    assert await redis_client.ttl(commit.index) > TTL
    await redis_client.delete(commit.elements_key)
    await redis_client.expire(commit.index, 5)
    await commit(1, 1, 2, last=2, marks="fr")
    assert await redis_client.llen(commit.index) == 2
    assert await redis_client.ttl(commit.index) <= 5
    await commit(3, 3, marks="ri")
    assert await redis_client.ttl(commit.index) > TTL
    await redis_client.delete(commit.index, commit.elements_key)
    await commit(1, 1, marks="r")
    assert await redis_client.ttl(commit.index) > TTL


async def test_commit_script_after_an_answer_for_the_worker_is_refused(commit: Commits) -> None:
    """Nothing is committed after the answer in place of the worker's."""
    await commit(1, 1)
    await commit.client.hset(commit.requests, RUN, "a 1 {}")
    assert await commit(2, 2, marks="fr", last=2) == "x"
    assert await commit(1, 1) == "x"
    assert await commit(2) == "x"
    assert await commit.numbers() == [1]
    assert await commit.entry() == "a 1 {}"


async def test_commit_script_to_an_ended_session_is_refused(commit: Commits) -> None:
    """Nothing is committed to an ended session."""
    await commit(1, 1)
    await commit.client.hset(commit.session, "ended", "1")
    await commit.client.expire(commit.session, TTL)
    assert await commit(2, 2) == "e"
    assert await commit(1, 1) == "e"
    assert await commit.numbers() == [1]


async def test_commit_script_with_a_repeated_placeholder_skips_it(commit: Commits) -> None:
    """An element for a range of numbers is skipped by its last number."""
    assert await commit(1, 5) == "k5"
    assert await commit(1, 1, 2) == "k5"
    assert await commit(1, 5, 6) == "k6"
    assert await commit.numbers() == [5, 6]


FOREIGN = {
    "next number": b"3 1\n{}",
    "larger number": b"4 1\n{}",
    "number beyond all": b"99999999999999999999 1\n{}",
    "response": b"9 1 f\n{}",
    "no time": b"3\n",
    "no number": b"rubbish",
    "nothing": b"",
    "no text": b"\xff\x00",
}


def sha1(element: bytes) -> str:
    """The SHA-1 of an element."""
    return hashlib.sha1(element, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
async def test_commit_script_after_an_element_of_another_program_writes_nothing(
    commit: Commits, foreign: bytes
) -> None:
    """It would hide the events that follow, which would be reported as stored. The next commit removes it."""
    await commit(1, 1, 2)
    await commit.client.rpush(commit.elements_key, foreign)
    assert await commit(3) == f"f{sha1(foreign)}", "a check finds it, too"
    assert await commit(3, 3, 4) == f"f{sha1(foreign)}"
    assert await commit.client.llen(commit.elements_key) == 3
    assert await commit(3, 3, 4, marks="fr", last=4, remove=sha1(foreign)) == "k4"
    assert await commit.numbers() == [1, 2, 3, 4]
    assert await commit.entry() is None


async def test_commit_script_removes_the_named_element_only(commit: Commits) -> None:
    """A copy of the commit that arrives after later ones removes none of theirs, nor any of another program."""
    await commit.client.rpush(commit.elements_key, b"9 1\n{}")
    assert await commit(1, 1, remove=sha1(b"9 1\n{}")) == "k1"
    assert await commit.entry() == ENTRY.decode()
    assert await commit(2, 2, 3) == "k3"
    commit.sent = 0
    assert (await commit(1, 1, remove=sha1(b"9 1\n{}"))).startswith("f")
    await commit.client.rpush(commit.elements_key, b"8 1\n{}")
    assert await commit(4, 4, remove=sha1(b"9 1\n{}")) == "f" + sha1(b"8 1\n{}")
    assert await commit.client.llen(commit.elements_key) == 4


@pytest.mark.parametrize("marks", ["r", "fin"])
@pytest.mark.parametrize("key", ["elements_key", "requests", "session", "index"])
async def test_commit_script_on_a_key_of_another_type_writes_nothing(commit: Commits, key: str, marks: str) -> None:
    """The error is that part's only."""
    name = getattr(commit, key)
    await commit.client.set(name, "another's", ex=TTL)
    assert (await commit(1, 1, marks=marks)).startswith("!WRONGTYPE")
    found = [
        each.decode() if isinstance(each, bytes) else each for each in await commit.client.keys(f"{commit.prefix}*")
    ]
    assert found == [name]


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def indexed(commit: Commits) -> Commits:
    """A session whose index has the row of another run."""
    await commit.client.rpush(commit.index, f"{time.time_ns() // 1000} stream:0:{RUN}")
    await commit.client.expire(commit.index, 5)
    return commit


async def test_commit_script_of_a_whole_run_writes_the_list_and_its_row(indexed: Commits) -> None:
    """The result is that of any commit with a response."""
    assert await indexed(1, 1, 2, marks="n", last=2) == "k2"
    assert await indexed.numbers() == [1, 2]
    assert TTL - 5 < await indexed.client.ttl(indexed.elements_key) <= TTL
    assert await indexed.rows() == [f"stream:0:{RUN}", f"stream:1:{RUN}"]
    assert await indexed.client.ttl(indexed.index) <= 5
    assert await indexed.client.exists(indexed.requests) == 0


async def test_commit_script_of_a_whole_run_renews_the_index_when_marked(indexed: Commits) -> None:
    """As any commit does."""
    assert await indexed(1, 1, 2, marks="ni", last=2) == "k2"
    assert await indexed.client.ttl(indexed.index) > TTL


async def test_commit_script_of_a_whole_run_repeated_stores_it_once(indexed: Commits) -> None:
    """The reply to the first copy was lost. The worker then sends an ordinary part, which finds all events."""
    assert await indexed(1, 1, 2, marks="n", last=2) == "k2"
    assert await indexed(1, 1, 2, marks="n", last=2) == "o"
    assert await indexed(1, 1, 2, marks="fr", last=2) == "k2"
    assert await indexed.numbers() == [1, 2]
    assert set(await indexed.rows()) == {f"stream:0:{RUN}", f"stream:1:{RUN}"}
    assert await indexed.entry() is None


async def test_commit_script_of_a_whole_run_changes_nothing_in_a_list_that_exists(indexed: Commits) -> None:
    """Another program, or a damaged snapshot, has left a part of the list. An ordinary part completes it."""
    await indexed(1, 1)
    assert await indexed(1, 1, 2, marks="n", last=2) == "o"
    assert await indexed.numbers() == [1]
    assert await indexed(1, 1, 2, marks="fr", last=2) == "k2"
    assert await indexed.numbers() == [1, 2]
    assert await indexed.entry() is None


async def test_commit_script_of_a_whole_run_to_a_session_without_an_index_writes_nothing(commit: Commits) -> None:
    """The session is new, or its index has expired. Only an ordinary part creates the index."""
    assert await commit(1, 1, 2, marks="ni", last=2) == "o"
    assert await commit.client.exists(commit.index, commit.elements_key) == 0


async def test_commit_script_of_a_whole_run_in_a_list_of_another_type_leaves_no_row(indexed: Commits) -> None:
    """Else the end of the session would delete another program's key."""
    await indexed.client.set(indexed.elements_key, "another's", ex=TTL)
    assert (await indexed(1, 1, marks="n", last=1)).startswith("!WRONGTYPE")
    assert await indexed.rows() == [f"stream:0:{RUN}"]
    assert await indexed.client.type(indexed.elements_key) in {"string", b"string"}


@pytest.mark.parametrize("marks", ["fr", "n"])
async def test_commit_script_that_cannot_store_a_large_payload_writes_nothing(
    indexed: Commits, valkey_server: Valkey, marks: str
) -> None:
    """The Redis user may not write it."""
    admin, large = indexed.client, f"{indexed.prefix}large:1:{RUN}:1"
    element = b"1 %d f g5000\n" % (time.time_ns() // 1000)
    keys = [indexed.elements_key, indexed.index, indexed.requests, indexed.session, large]
    arguments: list[str | bytes | int] = [TTL, f"1 1 {marks} 1 0", RUN, ENTRY, "", element, b"x" * 5000]
    if marks == "n":
        keys[2:4] = []
        arguments[1:5] = [f"1 1 {marks}"]
    await admin.execute_command("ACL", "SETUSER", "reader", "on", "nopass", "~*", "&*", "+@all", "-set")  # type: ignore[no-untyped-call]
    try:
        async with aioredis.Redis.from_url(valkey_server.url, username="reader", password="any") as user:
            reply = await COMMIT(user, keys, arguments)
    finally:
        await admin.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]
    assert reply.decode().split("\n")[1].startswith("!")
    assert await admin.exists(indexed.elements_key, large) == 0


async def test_end_of_a_session_that_redis_refuses_changes_nothing(indexed: Commits, valkey_server: Valkey) -> None:
    """The Redis user may lack a right that the end needs."""
    admin = indexed.client
    await admin.execute_command("ACL", "SETUSER", "reader", "on", "nopass", "~*", "&*", "+@all", "-rename")  # type: ignore[no-untyped-call]
    try:
        async with aioredis.Redis.from_url(valkey_server.url, username="reader", password="any") as user:
            with pytest.raises(aioredis.RedisError):
                await scripts.end(user, Keys(indexed.prefix), TTL)
    finally:
        await admin.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]
    assert await admin.exists(indexed.session) == 0
    assert await indexed(1, 1, 2, marks="n", last=2) == "k2"


async def test_commit_script_of_a_whole_run_to_an_ended_session_is_refused(indexed: Commits) -> None:
    """From the first step of the end, although the keys of other runs still exist."""
    await indexed.client.rpush(indexed.index, *[f"1 stream:{number}:{RUN}" for number in range(1000)])
    await scripts.end(indexed.client, Keys(indexed.prefix), TTL)
    assert await indexed.client.exists(indexed.prefix + "deleting") == 1
    assert await indexed(1, 1, 2, marks="n", last=2) == "o"
    assert await indexed(1, 1, 2, marks="fr", last=2) == "e"
    assert await indexed.client.exists(indexed.index, indexed.elements_key) == 0


# -- the command and its reply ----------------------------------------------------------------------------------------


@dataclass
class Behind:
    """A store behind a proxy, and one that bypasses it."""

    proxy: Proxy
    store: RedisEventStore
    reader: RedisEventStore
    facts: Facts
    direct: aioredis.Redis

    @property
    def token(self) -> str:
        """Every command of the store contains it."""
        return self.store.key_prefix


@pytest.fixture
async def behind(valkey_server: Valkey, key_prefix: str, leaks: LeakChecker) -> AsyncIterator[Behind]:
    """A store behind a proxy; Redis knows its script."""
    assert await leaks.keys() == []
    async with (
        Proxy(valkey_server.socket).running() as proxy,
        connect(proxy.url) as client,
        patient_client(valkey_server.url) as direct,
    ):
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL)
        warm = SessionProducer(store, session="warm")
        await warm.append_next()
        await until_settled(store)
        yield Behind(proxy, store, RedisEventStore(direct, key_prefix=key_prefix, ttl=TTL), observed(store), direct)
        proxy.clear()
        await store.flush(2)


async def through(behind: Behind, producers: list[SessionProducer]) -> None:
    """All is stored once, and counted once."""
    await until_settled(behind.store)
    for producer in producers:
        await producer.check(behind.reader)
        assert [each.number for each in await elements(behind.direct, producer.key)] == [
            *range(1, len(producer.appended) + 1)
        ]
    assert sum(fact.events for fact in behind.facts.of(BatchCommitted)) == sum(len(each.appended) for each in producers)
    assert not behind.facts.of(EventsLost)


@pytest.mark.parametrize("skip", [0, 1])
async def test_commit_whose_reply_is_lost_is_stored_once(behind: Behind, skip: int) -> None:
    """The commit was executed, and is sent again."""
    producers = [SessionProducer(behind.store, session=f"s{number}") for number in range(3)]
    fault = behind.proxy.drop_reply(behind.token, skip=skip)
    for _ in range(4):
        for producer in producers:
            await producer.append_next(5)
            await producer.outcomes()
    assert fault.happened == 1
    await through(behind, producers)


@pytest.mark.parametrize("after", [0, 40, 500])
async def test_commit_whose_request_is_cut_is_sent_again(behind: Behind, after: int) -> None:
    """The commit was not executed, and is sent again."""
    producer = SessionProducer(behind.store)
    fault = behind.proxy.cut_request(behind.token, after=after)
    for _ in range(4):
        await producer.append_next(10)
        await producer.outcomes()
    assert fault.happened == 1
    await through(behind, [producer])


@pytest.mark.parametrize("later", [0, 1, 20])
async def test_commit_copy_that_arrives_late_changes_nothing(behind: Behind, later: int) -> None:
    """The copy arrives after later commits."""
    producer = SessionProducer(behind.store)
    await producer.append_next(3)
    await producer.outcomes()
    fault = behind.proxy.delay_request(behind.token)
    await producer.append_next(2)
    await producer.outcomes()
    assert fault.happened
    for _ in range(later):
        await producer.append_next()
        await producer.outcomes()
    await behind.proxy.deliver(fault)
    await producer.append_next()
    await through(behind, [producer])


async def test_commit_copy_after_the_response_leaves_the_request_closed(behind: Behind) -> None:
    """It leaves no entry of a running request."""
    producer = SessionProducer(behind.store)
    await producer.append_next()
    await producer.outcomes()
    fault = behind.proxy.delay_request(behind.token)
    await producer.append_next()
    await producer.outcomes()
    await producer.append(answer())
    await producer.outcomes()
    await behind.proxy.deliver(fault)
    assert not await behind.direct.exists(f"{producer.part.key_prefix}requests")
    facts, received = await producer.replayed(behind.reader)
    assert (facts.completed, received.contents) == (True, [1, "JSONRPCResponse"])


async def short_call(behind: Behind, request_id: int) -> SessionProducer:
    """Append a call in one turn of the loop. It is committed as a whole run if the session has an index."""
    producer = SessionProducer(behind.store, request_id=request_id)
    await producer.append(None)
    await producer.append(answer(request_id))
    return producer


@pytest.mark.parametrize("fault", ["lost reply", "cut request", "deleted index", "late copy"])
async def test_short_calls_through_a_fault_are_stored_once(behind: Behind, fault: str) -> None:
    """As whole runs at first, and otherwise as ordinary parts."""
    calls = [await short_call(behind, 1)]
    await calls[0].outcomes()
    index = f"{calls[0].part.key_prefix}index"
    faults = {
        "lost reply": lambda: behind.proxy.drop_reply(behind.token),
        "cut request": lambda: behind.proxy.cut_request(behind.token, after=40),
        "late copy": lambda: behind.proxy.delay_request(behind.token),
    }
    begun = faults[fault]() if fault in faults else None
    if begun is None:
        await behind.direct.delete(index)
    calls += [await short_call(behind, number) for number in range(2, 7)]
    for call in calls:
        assert set(await call.outcomes()) == {StoreOutcome.STORED}
    assert begun is None or begun.happened
    if begun is not None and fault == "late copy":
        await behind.proxy.deliver(begun)
    await through(behind, calls)
    rows = await Commits(behind.direct, calls[0].part.key_prefix).rows()
    assert {call.key.removeprefix(call.part.key_prefix) for call in calls[1:]} <= set(rows)
    assert await behind.direct.ttl(index) > 0
    assert not await behind.direct.exists(f"{calls[0].part.key_prefix}requests")


async def test_short_call_to_a_session_that_ended_elsewhere_is_refused(behind: Behind) -> None:
    """Its commit as a whole run finds no index, and the ordinary one finds the end."""
    call = await short_call(behind, 1)
    await call.outcomes()
    await scripts.end(behind.direct, Keys(call.part.key_prefix), TTL)
    late = await short_call(behind, 2)
    assert set(await late.outcomes()) == {StoreOutcome.REFUSED}
    assert not await behind.direct.exists(late.key, f"{late.part.key_prefix}index")


async def test_commit_after_script_flush_loads_the_script(behind: Behind) -> None:
    """The script is loaded again, without a degradation."""
    producers = [SessionProducer(behind.store, session=f"s{number}") for number in range(3)]
    for _ in range(3):
        await behind.direct.script_flush()
        async with anyio.create_task_group() as tasks:
            for producer in producers:
                tasks.start_soon(producer.append_next, 20)
        for producer in producers:
            await producer.outcomes()
    assert {fact.reason for fact in behind.facts.of(BatchRetried)} == {FailureReason.NOSCRIPT}
    assert not behind.facts.of(StoreDegraded)
    await through(behind, producers)


async def test_replay_after_script_flush_between_chunks_continues(behind: Behind) -> None:
    """A replay continues when Redis loses its script between two chunks."""
    producer = SessionProducer(behind.store)
    await producer.append(None)
    for _ in range(6):
        await producer.append_next(100)
        await producer.outcomes()
    received = Received()

    async def flush(event: object) -> None:
        if len(received.ids) % 100 == 0:
            await behind.direct.script_flush()
        await received(event)  # type: ignore[arg-type]

    await behind.reader.for_session("s").replay(producer.ids[0], flush, stream_id="1")
    assert received.ids == producer.ids[1:]


# -- keys of others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "requests", "session"])
async def test_commit_to_a_key_of_another_type_loses_its_events_only(behind: Behind, kind: str) -> None:
    """They are counted as lost; those of other sessions are stored."""
    victim, others = (
        SessionProducer(behind.store, session="v"),
        [SessionProducer(behind.store, session=f"s{n}") for n in range(3)],
    )
    run = f"{victim.part.key_prefix}stream:1:{victim.part._queue.runs['1'].name}"
    key = {"list": run}.get(kind, f"{victim.part.key_prefix}{kind}")
    await behind.direct.set(key, "another's", ex=TTL)
    with in_time(10):
        for _ in range(3):
            await victim.append_next(2)
            for producer in others:
                await producer.append_next(2)
            await others[0].outcomes()
        assert set(await victim.outcomes()) <= {StoreOutcome.LOST, StoreOutcome.REFUSED}
        await until_settled(behind.store)
    assert not behind.facts.of(StoreDegraded)
    assert {fact.reason for fact in behind.facts.of(EventsLost)} == {LossReason.REJECTED}
    for producer in others:
        await producer.check(behind.reader)
    assert await behind.direct.get(key) == b"another's"


async def test_commit_of_a_large_payload_overwrites_a_key_of_another_type(behind: Behind) -> None:
    """`SET` takes any key."""
    producer = SessionProducer(behind.store)
    await producer.append(None)
    await producer.outcomes()
    key = f"{producer.part.key_prefix}large:1:{run_of(producer.ids[0])}:2"
    await behind.direct.rpush(key, "another's")
    await producer.append(note(1, "x" * 5000))
    await producer.outcomes()
    await producer.check(behind.reader)
    assert 0 < await behind.direct.ttl(key) <= TTL
