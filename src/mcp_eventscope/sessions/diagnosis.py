"""Explains why a `Last-Event-ID` can or cannot be resumed."""

from dataclasses import dataclass
from enum import StrEnum

from mcp_eventscope.redis.inspection import Inspector, RunFacts, SessionFacts, Walk
from mcp_eventscope.redis.keys import EVENT_ID
from mcp_eventscope.redis.read import cursor as cursors
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.redis.write.runs import worker_of
from mcp_eventscope.sessions import event_ids
from mcp_eventscope.store.messages import GET_STREAM_KEY, EventMessage, RequestId
from mcp_eventscope.store.results import Miss, ReplayResult

_MICROSECONDS = 1_000_000


class Verdict(StrEnum):
    """The outcome of a resume, were a client to attempt it now on a worker other than the request's own."""

    MALFORMED = "malformed"
    """The text is not an event id."""
    ROOT = "root"
    """It is an event of the root store, which code that calls the SDK's interface itself uses."""
    UNKNOWN_SESSION = "unknown_session"
    """No session has the request or any event of it."""
    EXPIRED = "expired"
    """The events are older than the TTL, or the session's record has expired."""
    SESSION_ENDED = "session_ended"
    """The session was ended."""
    UNKNOWN = "unknown"
    """The session has no such event: it was never assigned, or Redis has lost it."""
    TRIMMED = "trimmed"
    """Later events are delivered, but some between the client's last event and those are missing."""
    COMPLETE = "complete"
    """All events up to the response are delivered."""
    CAUGHT_UP = "caught_up"
    """The client has everything, the response included."""
    ANSWERED = "answered"
    """An error was stored in place of the response, because the worker died."""
    RUNNING = "running"
    """The request runs on a live worker: the resume delivers the retained events and follows."""
    ORPHANED = "orphaned"
    """The worker of the request is dead: the resume is answered with an error."""
    UNCLAIMED = "unclaimed"
    """Redis names no such running request although its worker is alive. It is restored or answered within a lease."""
    FOLLOWING = "following"
    """A standalone stream, which has no end: the resume delivers the retained events and follows."""


RESUMABLE = frozenset({Verdict.COMPLETE, Verdict.CAUGHT_UP, Verdict.RUNNING, Verdict.FOLLOWING})
"""The verdicts after which the client misses nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why an event id can or cannot be resumed. Counts and times are those of Redis; no payload is included."""

    verdict: Verdict
    sentence: str
    """The verdict in one sentence, with the numbers of this case. It contains no text of a client."""
    resumable: bool
    """Whether the client misses nothing."""
    session: SessionFacts | None = None
    """The session; None if it is unknown, or the id names none."""
    stream: str | None = None
    request_id: RequestId | None = None
    """The request's id, with its JSON type: untrusted. None on a standalone stream, and for a very long id."""
    run: str | None = None
    worker: str | None = None
    worker_alive: bool | None = None
    number: int | None = None
    """The number of the client's last event within its run."""
    age: float | None = None
    """Seconds since the client's last event was accepted."""
    delivered: int = 0
    """Messages that the resume would deliver now."""
    missing: int = 0
    """Events that it would miss."""
    corrupt: int = 0
    """Events that cannot be read."""
    retained: RunFacts | None = None
    """The retained events of the run; None without any."""


async def _discard(_: EventMessage) -> None:
    """Take an event: the replay counts it."""


async def diagnose(
    store: RedisEventStore, inspector: Inspector, last_event_id: str, walk: Walk, *, session_id: str | None = None
) -> Diagnosis:
    """Replay to no client, as a worker would, and explain the result. Nothing is written.

    The replay is that of a worker which does not run the request. The request's own worker may also have events in its
    memory.

    Args:
        store: The root store, whose process holds no lease and serves no session.
        inspector: Reads the same Redis and prefix.
        last_event_id: The event id as the client sends it (untrusted).
        walk: The bounds of the search.
        session_id: The session; None: it is searched for.

    Raises:
        StoreError: Redis could not be read.
    """
    store.backend.clock.synchronize(await inspector.clock())
    split = event_ids.split(last_event_id)
    if split is None:
        return await _diagnose_root(store, last_event_id) if EVENT_ID.fullmatch(last_event_id) else _malformed()
    event_id, stream = split
    cursor = cursors.parse(event_id)
    if cursor is None:
        return _malformed()
    run, number, worker = cursor.run, cursor.number, worker_of(cursor.run)
    age = max(0, store.backend.clock.now() - cursor.time) / _MICROSECONDS
    expired = store.ttl is not None and age >= store.ttl
    standalone = stream == GET_STREAM_KEY
    if session_id is None:
        session_id = await inspector.find_run(stream, run, walk)
    session = None if session_id is None else await inspector.session(session_id)
    runs = [] if session_id is None else await inspector.runs(session_id)
    running = {each.worker for each in runs if each.state == "running"}
    leases = await inspector.alive({worker, *running})
    alive = leases[worker]
    # A live worker that runs a request of the session writes a lost record again, and others wait for that.
    served = session is not None and (session.state == "live" or any(leases[each] for each in running))
    retained = next((each for each in runs if each.run == run and each.stream == stream), None)
    result = None
    if session_id is not None:
        result = await store.for_session(session_id).replay(event_id, _discard, stream_id=stream)
    if session is not None and result is not None:
        verdict, sentence = _judge(session, retained, result, alive=alive, served=served)
        if verdict is Verdict.RUNNING and retained is not None and number > retained.last:
            sentence += _NOT_STORED
    elif walk.truncated:
        searched = f"the first {walk.max_keys} keys of the database"
        verdict, sentence = Verdict.UNKNOWN_SESSION, f"Undecided: no session was found among {searched}; name it."
    else:
        verdict, sentence = (Verdict.EXPIRED, _NOTHING_LEFT) if expired else (Verdict.UNKNOWN_SESSION, _NO_SESSION)
    return Diagnosis(
        verdict=verdict,
        sentence=sentence,
        resumable=verdict in RESUMABLE,
        session=session,
        stream="standalone" if standalone else stream,
        request_id=None if standalone else event_ids.request_id_of(stream),
        run=run,
        worker=worker,
        worker_alive=alive,
        number=number,
        age=age,
        delivered=result.delivered if result else 0,
        missing=result.missing if result else 0,
        corrupt=len(result.corrupt) if result else 0,
        retained=retained,
    )


def _malformed() -> Diagnosis:
    return Diagnosis(
        verdict=Verdict.MALFORMED,
        sentence="Cannot be resumed: the text is no event id of this store; the client has changed it, or has it from "
        "another store.",
        resumable=False,
    )


async def _diagnose_root(store: RedisEventStore, event_id: str) -> Diagnosis:
    result = await store.replay(event_id, _discard)
    found = "is stored there" if result.miss is None else f"is not there ({result.miss.value})"
    return Diagnosis(
        verdict=Verdict.ROOT,
        sentence=f"Cannot be resumed in a session: it is an id of the root store, and {found}; sessions served by "
        "http_app() have other ids.",
        resumable=False,
        age=result.age,
        delivered=result.delivered,
        missing=result.missing,
        corrupt=len(result.corrupt),
    )


def _judge(  # noqa: PLR0911 - a verdict each
    session: SessionFacts,
    retained: RunFacts | None,
    result: ReplayResult,
    *,
    alive: bool,
    served: bool,
) -> tuple[Verdict, str]:
    """The verdict, and a sentence with the numbers of the case."""
    if session.state == "ended":
        return Verdict.SESSION_ENDED, "Cannot be resumed: the session was ended, and its events were deleted."
    if not served:
        return Verdict.EXPIRED, _NO_RECORD
    if result.miss is Miss.EXPIRED:
        return Verdict.EXPIRED, "Cannot be resumed: the events have expired, so the client is answered with an error."
    if result.miss is not None:
        return Verdict.UNKNOWN, _NO_EVENT
    due = f"{result.delivered} {'message' if result.delivered == 1 else 'messages'} would be delivered"
    if result.gap:
        missing = f"{result.missing} are missing, because they were trimmed, evicted or lost"
        return Verdict.TRIMMED, f"Resumes with a gap: {due}, and {missing}."
    if retained is not None and retained.state == "standalone":
        return Verdict.FOLLOWING, f"Can be resumed: {due}, then new ones as they arrive."
    return _judge_request(retained, result, due, alive=alive)


def _judge_request(retained: RunFacts | None, result: ReplayResult, due: str, *, alive: bool) -> tuple[Verdict, str]:
    """The verdict on a request of which no event is missing."""
    if retained is not None and retained.state == "answered":
        return Verdict.ANSWERED, _ANSWERED
    if result.completed and not result.delivered:
        return Verdict.CAUGHT_UP, "Nothing to resume: the client has received the response."
    if result.completed:
        return Verdict.COMPLETE, f"Can be resumed: {due}, the response included."
    if not alive:
        end = "then an error, because the worker of the request is dead"
        return Verdict.ORPHANED, f"Resumes with an error: {due}, {end}."
    if retained is None or retained.state != "running":
        return Verdict.UNCLAIMED, f"Uncertain: {due}, {_UNCLAIMED}"
    return Verdict.RUNNING, f"Can be resumed: {due}, and the request still runs on a live worker."


_NOTHING_LEFT = "Cannot be resumed: the event is older than the TTL, and nothing of its request is left."
_NO_SESSION = (
    "Cannot be resumed: no session under this prefix has the request or an event of it, so its session was ended or "
    "lost, or belongs to another prefix or Redis; name the session to find out."
)
_NO_RECORD = (
    "Cannot be resumed: the session has no record, which expires when no request renews it, so every worker answers "
    "404."
)
_NO_EVENT = (
    "Cannot be resumed: the session has no such event (never assigned, or lost by Redis), so a request is answered "
    "with an error, and a standalone stream continues with the other messages that the client has not received."
)
_NOT_STORED = (
    " Redis does not have the client's last event yet, or has lost it: the worker stores it from its memory, and the "
    "events after it follow."
)
_ANSWERED = (
    "Resumes with an error: the worker died during the request, and an error was stored in place of the response."
)
_UNCLAIMED = (
    "and Redis does not name the request as running, although its worker is alive; within a lease the worker restores "
    "it, or the client is answered with an error."
)
