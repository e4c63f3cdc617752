"""Facts about workers and sessions, and why event ids resume: read from Redis without changing it."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.cli.main import main
from mcp_eventscope.cli.output import Exit
from mcp_eventscope.errors import StoreUnavailableError
from mcp_eventscope.redis import inspection
from mcp_eventscope.redis.client import client_for
from mcp_eventscope.redis.inspection import Crawl, Inspector, Walk, event_facts
from mcp_eventscope.redis.keys import Keys, pattern_of
from mcp_eventscope.sessions import event_ids
from mcp_eventscope.sessions.diagnosis import RESUMABLE, Diagnosis, Verdict, diagnose
from mcp_eventscope.store.coordination import NewRecord
from mcp_eventscope.store.messages import GET_STREAM_KEY
from support.clusters import valkey_cluster
from support.leaks import LeakChecker
from support.messages import answer, note
from support.session_producers import Received, SessionProducer, run_of
from support.stores import patient_client, until_settled
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio

TTL = 600
LEASE = 60.0
HANDSHAKE = '{"protocolVersion":"2025-11-25","clientInfo":{"name":"c","version":"1"}}'


async def nothing() -> None:
    """Nothing is published."""


@dataclass
class Rig:
    """A living worker, a dead one, and the tool of an operator."""

    redis: aioredis.Redis
    worker: RedisEventStore
    dead: RedisEventStore
    reader: RedisEventStore
    inspector: Inspector

    async def record(self, store: RedisEventStore, session_id: str = "s", *, owner: str = "") -> None:
        """Record a session that a worker serves."""
        await store.coordinator.record(NewRecord(session_id, owner, HANDSHAKE, "srv"), ttl=TTL)

    async def run(
        self, store: RedisEventStore, events: int, *, final: bool = False, request_id: int | str = 1, session: str = "s"
    ) -> SessionProducer:
        """A stored stream of one request: a priming event, notifications, and the response if it is final."""
        producer = SessionProducer(store, session, request_id)
        await producer.append(None)
        if events:
            await producer.append_next(events)
        if final:
            await producer.append(answer(request_id))
        await producer.outcomes()
        return producer

    async def why(self, producer: SessionProducer, place: int, *, session_id: str | None = None) -> Diagnosis:
        """The diagnosis of an event of a stream, by its place."""
        wire_id = event_ids.join(producer.ids[place], producer.stream)
        return await diagnose(self.reader, self.inspector, wire_id, Walk(), session_id=session_id)

    async def state(self) -> dict[str, Any]:
        """Every key under the prefix, with its content and whether it expires."""
        found = {}
        any_client: Any = self.redis
        async for key in self.redis.scan_iter(f"{pattern_of(self.reader.key_prefix)}*", count=1000):
            content = await any_client.execute_command("DUMP", key, NEVER_DECODE=True)
            found[str(key)] = (content, await any_client.execute_command("PEXPIRETIME", key))
        return {key: value for key, value in found.items() if "worker:" not in key and "inbox" not in key}


@pytest.fixture
async def redis_client(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """One kind of client: an inspector decodes replies itself."""
    async with patient_client(valkey_url) as client:
        yield client


@pytest.fixture
async def rig(redis_client: aioredis.Redis, leaks: LeakChecker, key_prefix: str) -> AsyncIterator[Rig]:
    """A living worker, a dead one, and a reader without a lease."""
    del leaks
    stores = [RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL, store_timeout=10) for _ in range(3)]
    worker, dead, reader = stores
    async with worker.coordinator.hold_lease(LEASE, lambda _: None, nothing):
        await until(lambda: worker.coordinator.leased)
        yield Rig(redis_client, worker, dead, reader, Inspector(redis_client, Keys(key_prefix)))
        await worker.flush()
    await dead.flush()


# -- facts ------------------------------------------------------------------------------------------------------------


async def test_inspection_of_busy_prefix_returns_facts_and_changes_nothing(rig: Rig) -> None:
    """Workers, sessions, runs and positions are read; no key is created, renewed or removed."""
    await rig.record(rig.worker)
    await rig.record(rig.worker, "other {x}*", owner="digest")
    running = await rig.run(rig.worker, 2)
    complete = await rig.run(rig.worker, 1, final=True, request_id="a:b")
    abandoned = await rig.run(rig.dead, 1, request_id=3)
    standalone = await rig.worker.for_session("s").append(GET_STREAM_KEY, note(1))
    assert standalone.pending is not None
    await standalone.pending.acknowledged()
    await until_settled(rig.worker)
    before = await rig.state()
    page = await rig.inspector.sessions(Walk(), limit=10)
    runs = {each.run: each for each in await rig.inspector.runs("s")}
    workers = {each.name: each for each in await rig.inspector.workers(Walk())}
    found = await rig.inspector.find_run(running.stream, run_of(running.ids[0]), Walk())
    rows = await rig.inspector.events("s", running.stream, run_of(running.ids[0]), 1)
    await rig.why(complete, 0)
    await rig.why(abandoned, 0)
    assert await rig.state() == before
    assert found == "s"
    assert [row[0] for row in rows] == [2, 3]

    sessions = {each.session_id: each for each in page.sessions}
    assert set(sessions) == {"s", "other {x}*"}
    assert not page.truncated
    facts = sessions["s"]
    assert (facts.state, facts.server, facts.authenticated, facts.running) == ("live", "srv", False, 2)
    assert (facts.client, facts.protocol_version, facts.workers) == ("c 1", "2025-11-25", (rig.worker.worker,))
    assert facts.age is not None
    assert facts.expires_in is not None
    assert 0 < facts.expires_in <= TTL
    assert sessions["other {x}*"].authenticated
    assert len((await rig.inspector.sessions(Walk(), limit=10, server="srv")).sessions) == 2
    assert (await rig.inspector.sessions(Walk(), limit=10, server="other")).sessions == ()

    one, two, three = (runs[run_of(each.ids[0])] for each in (running, complete, abandoned))
    assert (one.state, one.request_id, one.first, one.last, one.retained) == ("running", 1, 1, 3, 3)
    assert (two.state, two.request_id, two.last, two.stream) == ("completed", None, 3, complete.stream)
    assert (three.state, three.worker) == ("running", rig.dead.worker)
    own = runs[run_of(standalone.event_id)]
    assert (own.state, own.stream, own.last) == ("standalone", GET_STREAM_KEY, 1)
    (positions,) = await rig.inspector.positions(["s"])
    assert positions[running.stream, one.run] == 3

    alive, dead = workers[rig.worker.worker], workers[rig.dead.worker]
    assert (alive.alive, alive.sessions, alive.requests) == (True, 2, 1)
    assert (dead.alive, dead.lease_seconds, dead.sessions, dead.requests) == (False, None, 0, 1)


async def test_walk_beyond_its_limit_reports_that_it_was_truncated(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited walk is marked, and a search that found nothing within it decides nothing."""
    monkeypatch.setattr(inspection, "SCANNED_AT_ONCE", 1)
    for number in range(50):
        await rig.record(rig.worker, f"s{number}")
    steps: list[int] = []
    walk = Walk(max_keys=2, on_step=steps.append)
    page = await rig.inspector.sessions(walk, limit=100)
    assert (page.truncated, walk.truncated, steps) == (True, True, [1, 2])
    limited = await rig.inspector.sessions(Walk(), limit=3)
    assert (len(limited.sessions), limited.truncated) == (3, True)
    wire_id = f"1-1-{'0' * 12}1.7"
    found = await diagnose(rig.reader, rig.inspector, wire_id, Walk(max_keys=1))
    assert (found.verdict, found.sentence.startswith("Undecided")) == (Verdict.UNKNOWN_SESSION, True)


async def test_crawl_in_parts_finds_new_sessions_and_forgets_expired_ones(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is bounded and continues; a session is forgotten after a round without it."""
    monkeypatch.setattr(inspection, "SCANNED_AT_ONCE", 2)
    names = {f"s{number}" for number in range(20)}
    for name in names:
        await rig.record(rig.worker, name)
    crawl, workers, few = Crawl(100), Crawl(100), Crawl(5)
    await rig.inspector.crawl_sessions(crawl, max_keys=2)
    assert len(crawl.names) < 20
    assert not crawl.rounds
    while not crawl.rounds:
        await rig.inspector.crawl_sessions(crawl, max_keys=10)
    assert set(crawl.names) == names
    assert not crawl.truncated
    await rig.inspector.crawl_workers(workers, max_keys=inspection.MAX_KEYS)
    assert workers.names == [rig.worker.worker]
    await rig.inspector.crawl_sessions(few, max_keys=inspection.MAX_KEYS)
    assert (len(few.names), few.truncated) == (5, True)
    keys = Keys(rig.reader.key_prefix)
    await rig.redis.delete(keys.for_session("s3").session)
    await rig.record(rig.worker, "new")
    await rig.inspector.crawl_sessions(crawl, max_keys=inspection.MAX_KEYS)
    assert "new" in crawl.names
    await rig.inspector.crawl_sessions(crawl, max_keys=inspection.MAX_KEYS)
    assert set(crawl.names) == names - {"s3"} | {"new"}


async def test_crawl_that_redis_interrupts_begins_its_round_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cursor of a removed master has no meaning; what the last round has found is kept."""
    await rig.record(rig.worker)
    crawl = Crawl(100)
    await rig.inspector.crawl_sessions(crawl, max_keys=inspection.MAX_KEYS)
    with monkeypatch.context() as patched:
        patched.setattr(Inspector, "_scan", failing)
        with pytest.raises(StoreUnavailableError):
            await rig.inspector.crawl_sessions(crawl, max_keys=inspection.MAX_KEYS)
    assert crawl.names == ["s"]
    await rig.inspector.crawl_sessions(crawl, max_keys=inspection.MAX_KEYS)
    assert (crawl.names, crawl.rounds) == (["s"], 2)


async def failing(*_: object) -> None:
    """Fail, as without Redis."""
    msg = "unreachable"
    raise StoreUnavailableError(msg)


async def test_activity_and_followers_of_a_session_are_read(rig: Rig) -> None:
    """The last numbers and the time of the last event; the processes that follow by a subscription."""
    await rig.record(rig.worker)
    running = await rig.run(rig.worker, 2)
    await rig.run(rig.worker, 1, final=True, request_id="a:b")
    run, now = run_of(running.ids[0]), await rig.inspector.clock() / 1_000_000
    active, absent = await rig.inspector.activity(["s", "absent"], rows=16, most=16)
    assert active.numbers[run] == 3
    assert len(active.numbers) == 2
    assert active.last_time == pytest.approx(now, abs=CEILING)
    assert (absent.numbers, absent.last_time) == ({}, None)
    (bounded,) = await rig.inspector.activity(["s"], rows=16, most=1)
    assert len(bounded.numbers) == 1
    (facts,) = await rig.inspector.read_sessions(["s"])
    assert facts.running_on == {rig.worker.worker: 1}
    streams = [running.stream, "other"]
    assert await rig.inspector.following("s", streams) == dict.fromkeys(streams, 0)
    assert await rig.inspector.following("s", []) == {}
    async with rig.redis.pubsub() as subscriber:
        await subscriber.subscribe(Keys(rig.reader.key_prefix).for_session("s").stream(running.stream))

        async def counted() -> bool:
            return await rig.inspector.following("s", streams) == {running.stream: 1, "other": 0}

        await until(counted)


@pytest.mark.parametrize(
    ("payload", "first", "kind", "method"),
    [
        (b"", 5, "priming", ""),
        (None, 5, "lost", ""),
        (b"{}", 3, "lost", ""),
        (b"{", 5, "corrupt", ""),
        (b'{"jsonrpc":"2.0","method":"m"}', 5, "notification", "m"),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', 5, "response", ""),
    ],
)
async def test_row_is_described_by_its_message(payload: bytes | None, first: int, kind: str, method: str) -> None:
    """A row that stands for several numbers replaces lost events."""
    facts = event_facts((5, 2_000_000, first, "", payload))
    assert (facts.number, facts.time, facts.type, facts.method, facts.payload) == (5, 2.0, kind, method, payload)


async def test_keys_of_other_programs_are_left_out(rig: Rig) -> None:
    """Keys of another type, with another form, or under a longer prefix are no sessions."""
    prefix = rig.reader.key_prefix
    await rig.redis.set(f"{prefix}{{odd}}:session", "text", ex=TTL)
    await rig.redis.hset(f"{prefix}x:{{far}}:session", mapping={"owner": "", "server": ""})
    await rig.redis.expire(f"{prefix}x:{{far}}:session", TTL)
    await rig.redis.set(f"{prefix}worker:notaworker", "1", ex=TTL)
    await rig.record(rig.worker)
    page = await rig.inspector.sessions(Walk(), limit=10)
    assert [each.session_id for each in page.sessions] == ["s"]
    assert [each.name for each in await rig.inspector.workers(Walk())] == [rig.worker.worker]
    assert (await rig.inspector.session("odd")).state == "absent"


async def test_damaged_and_large_handshake_leaves_client_unknown(rig: Rig) -> None:
    """A handshake that is no object, or too large to be read, is no error."""
    for session_id, handshake in (("a", "[]"), ("b", "{"), ("c", '{"clientInfo": "' + "x" * 70_000 + '"}')):
        await rig.worker.coordinator.record(NewRecord(session_id, "", handshake, "srv"), ttl=TTL)
        assert (await rig.inspector.session(session_id)).client == ""


async def test_cluster_is_inspected_on_all_masters(key_prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Walks visit each master, and reads are sent to the master of the session; one node alone is refused."""
    with valkey_cluster(replicas=False) as cluster:
        url = f"{cluster.url}?socket_timeout={CEILING}&socket_connect_timeout={CEILING}"
        async with client_for(url) as redis:
            worker, reader = (RedisEventStore(redis, key_prefix=key_prefix, ttl=TTL) for _ in range(2))
            inspector = Inspector(redis, Keys(key_prefix))
            async with worker.coordinator.hold_lease(LEASE, lambda _: None, nothing):
                names = {f"s{number}" for number in range(12)}
                for name in names:
                    await worker.coordinator.record(NewRecord(name, "", HANDSHAKE, "srv"), ttl=TTL)
                producer = SessionProducer(worker, "s3")
                await producer.append(None)
                await producer.append_next(2)
                await producer.outcomes()
                page = await inspector.sessions(Walk(), limit=100)
                assert {each.session_id for each in page.sessions} == names
                wire_id = event_ids.join(producer.ids[0], producer.stream)
                found = await diagnose(reader, inspector, wire_id, Walk())
                assert (found.verdict, found.delivered) == (Verdict.RUNNING, 2)
                assert found.retained is not None
                assert found.retained.memory
                assert [(each.sessions, each.requests) for each in await inspector.workers(Walk())] == [(12, 1)]
                crawl = Crawl(100)
                while not crawl.rounds:
                    await inspector.crawl_sessions(crawl, max_keys=inspection.SCANNED_AT_ONCE)
                assert set(crawl.names) == names
                assert await inspector.following("s3", [producer.stream]) == {producer.stream: 0}
                await worker.flush()
        arguments = ["doctor", url, "--key-prefix", key_prefix, "--json"]
        await anyio.to_thread.run_sync(main, arguments)
        result = json.loads(capsys.readouterr().out)
        assert [each["kind"] for each in result["servers"]] == ["valkey"] * 3
        assert {each["severity"] for each in result["findings"] if each["check"] != "latency"} <= {"ok", "info"}
        one = url.replace("redis+cluster://", "redis://").replace(url[url.index(",") : url.index("?")], "")
        assert await anyio.to_thread.run_sync(main, ["doctor", one, "--json"]) == Exit.FAILED
        found_wrong = {each["check"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
        assert found_wrong["cluster"]["fix"] == "write redis+cluster:// in the URL"


# -- why --------------------------------------------------------------------------------------------------------------


async def test_diagnosis_of_running_request_counts_retained_events(rig: Rig) -> None:
    """The request runs on a live worker: what is retained would be delivered."""
    await rig.record(rig.worker)
    producer = await rig.run(rig.worker, 4)
    found = await rig.why(producer, 1)
    assert (found.verdict, found.delivered, found.missing, found.worker_alive) == (Verdict.RUNNING, 3, 0, True)
    assert (found.resumable, found.number, found.request_id) == (True, 2, 1)
    assert found.session is not None
    assert found.session.session_id == "s"
    assert found.age is not None
    assert 0 <= found.age < CEILING
    assert "3 messages would be delivered, and the request still runs" in found.sentence


async def test_diagnosis_of_running_request_mentions_an_event_that_redis_does_not_have(rig: Rig) -> None:
    """The client is ahead of Redis: the worker has not stored the event yet, or Redis has lost it."""
    await rig.record(rig.worker)
    producer = await rig.run(rig.worker, 4)
    time, _, run = producer.ids[-1].split("-")
    wire_id = event_ids.join(f"{time}-9-{run}", producer.stream)
    found = await diagnose(rig.reader, rig.inspector, wire_id, Walk())
    assert (found.verdict, found.delivered) == (Verdict.RUNNING, 0)
    assert "Redis does not have the client's last event" in found.sentence


async def test_diagnosis_of_answered_request_distinguishes_complete_from_caught_up(rig: Rig) -> None:
    """After the response the client has everything; before it, the rest would be delivered."""
    await rig.record(rig.worker)
    producer = await rig.run(rig.worker, 1, final=True)
    before, after = await rig.why(producer, 0), await rig.why(producer, 2)
    assert (before.verdict, before.delivered) == (Verdict.COMPLETE, 2)
    assert (after.verdict, after.delivered) == (Verdict.CAUGHT_UP, 0)


async def test_diagnosis_of_dead_workers_request_is_orphaned_then_answered(rig: Rig) -> None:
    """Before a client was answered, and after."""
    await rig.record(rig.worker)
    producer = await rig.run(rig.dead, 2)
    first = await rig.why(producer, 0)
    assert (first.verdict, first.delivered, first.worker_alive, first.resumable) == (Verdict.ORPHANED, 2, False, False)
    followed = await rig.worker.for_session("s").follow(producer.stream, producer.ids[0], Received(), limit=CEILING)
    assert followed.orphaned
    assert (await rig.why(producer, 0)).verdict is Verdict.ANSWERED


async def test_diagnosis_of_trimmed_stream_counts_missing_events(rig: Rig) -> None:
    """Evicted events are a gap."""
    await rig.record(rig.worker)
    producer = await rig.run(rig.worker, 6)
    await rig.redis.ltrim(producer.key, 4, -1)
    found = await rig.why(producer, 1)
    assert (found.verdict, found.missing, found.delivered) == (Verdict.TRIMMED, 2, 3)
    assert found.retained is not None
    assert (found.retained.first, found.retained.last) == (5, 7)


async def test_diagnosis_without_entry_of_request_is_unclaimed(rig: Rig) -> None:
    """Redis has lost the entry of a request whose worker is alive."""
    await rig.record(rig.worker)
    producer = await rig.run(rig.worker, 2)
    await rig.redis.hdel(f"{rig.reader.key_prefix}{{s}}:requests", run_of(producer.ids[0]))
    assert (await rig.why(producer, 0)).verdict is Verdict.UNCLAIMED


async def test_diagnosis_of_invented_event_is_unknown(rig: Rig) -> None:
    """A number that was never assigned, by a worker that has been dead for longer than a lease."""
    await rig.record(rig.worker)
    wire_id = f"{await rig.inspector.clock() - 30_000_000}-5-{'0' * 12}1.7"
    found = await diagnose(rig.reader, rig.inspector, wire_id, Walk(), session_id="s")
    assert (found.verdict, found.worker_alive) == (Verdict.UNKNOWN, False)


async def test_diagnosis_of_standalone_stream_follows(rig: Rig) -> None:
    """It has no end; its session is found by the run of the worker."""
    await rig.record(rig.worker)
    part = rig.worker.for_session("s")
    appended = [await part.append(GET_STREAM_KEY, note(number)) for number in (1, 2)]
    for each in appended:
        assert each.pending is not None
        await each.pending.acknowledged()
    wire_id = event_ids.join(appended[0].event_id, GET_STREAM_KEY)
    found = await diagnose(rig.reader, rig.inspector, wire_id, Walk())
    assert (found.verdict, found.stream, found.request_id, found.delivered) == (
        Verdict.FOLLOWING,
        "standalone",
        None,
        1,
    )


async def test_diagnosis_distinguishes_ended_expired_and_unknown_sessions(rig: Rig) -> None:
    """Without a record the session has expired; after its end it is known to have ended; otherwise nothing is known."""
    await rig.record(rig.worker)
    producer = await rig.run(rig.worker, 1, final=True)
    await rig.redis.delete(f"{rig.reader.key_prefix}{{s}}:session")
    assert (await rig.why(producer, 0)).verdict is Verdict.EXPIRED
    await rig.worker.coordinator.end("s", ttl=TTL)
    assert (await rig.why(producer, 0, session_id="s")).verdict is Verdict.SESSION_ENDED
    assert (await rig.why(producer, 0)).verdict is Verdict.UNKNOWN_SESSION
    old = f"{await rig.inspector.clock() - 2 * TTL * 1_000_000}-1-{'0' * 12}1.7"
    assert (await diagnose(rig.reader, rig.inspector, old, Walk())).verdict is Verdict.EXPIRED


async def test_diagnosis_without_record_depends_on_a_live_worker_of_the_session(rig: Rig) -> None:
    """A live worker that runs a request writes a lost record again; without one, every worker answers 404."""
    await rig.record(rig.worker)
    orphan = await rig.run(rig.dead, 1, request_id=2)
    await rig.redis.delete(f"{rig.reader.key_prefix}{{s}}:session")
    assert (await rig.why(orphan, 0)).verdict is Verdict.EXPIRED
    running = await rig.run(rig.worker, 1, request_id=3)
    assert (await rig.why(running, 0)).verdict is Verdict.RUNNING
    assert (await rig.why(orphan, 0)).verdict is Verdict.ORPHANED


async def test_diagnosis_of_expired_events_in_live_session_is_expired(rig: Rig) -> None:
    """The events of a finished request are older than the TTL, and its list has expired."""
    await rig.record(rig.worker)
    old = f"{await rig.inspector.clock() - 2 * TTL * 1_000_000}-1-{rig.worker.worker}ff.7"
    found = await diagnose(rig.reader, rig.inspector, old, Walk(), session_id="s")
    assert found.verdict is Verdict.EXPIRED


@pytest.mark.parametrize("text", ["", "hello", "1-2-3", "\x1b[31m", f"1-1-{'0' * 12}1", "1.7", "x" * 5000])
async def test_diagnosis_of_other_text_is_malformed(rig: Rig, text: str) -> None:
    """Any text is accepted, and none is repeated."""
    found = await diagnose(rig.reader, rig.inspector, text, Walk())
    assert (found.verdict, found.resumable) == (Verdict.MALFORMED, False)


async def test_diagnosis_of_root_store_names_it(rig: Rig) -> None:
    """Ids of the root store are numbers."""
    appended = await rig.worker.append("stream", note(1))
    found = await diagnose(rig.reader, rig.inspector, appended.event_id, Walk())
    assert (found.verdict, "is stored there" in found.sentence) == (Verdict.ROOT, True)
    assert "is not there" in (await diagnose(rig.reader, rig.inspector, "999", Walk())).sentence


def test_verdicts_that_resume_are_those_of_complete_streams() -> None:
    """An error, a gap or an uncertainty is not resumable."""
    assert {each.value for each in RESUMABLE} == {"complete", "caught_up", "running", "following"}
