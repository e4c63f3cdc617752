"""The backlog of the root store, without Redis."""

import pytest

from mcp_eventscope.redis.root.backlog import BATCH_EVENTS, LARGE_BATCH_EVENTS, Backlog, PendingEvent
from mcp_eventscope.redis.root.batch_codec import Reply, parse_reply
from mcp_eventscope.store import codec
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE
from mcp_eventscope.store.messages import JSONRPCError
from support.messages import answer

PARENT = f"00-{1:032x}-{2:016x}-01"


def event(stream: str = "1", payload: bytes = b"x", *, final: bool = False) -> PendingEvent:
    """A pending event with a producer."""
    return PendingEvent(stream, payload, PARENT, final=final)


def filled(count: int, backlog: Backlog | None = None) -> tuple[Backlog, list[PendingEvent]]:
    """A backlog with so many events."""
    backlog = backlog or Backlog(1 << 20, 1000)
    events = [event() for _ in range(count)]
    for each in events:
        backlog.put(each)
    return backlog, events


def drained(backlog: Backlog) -> list[PendingEvent]:
    """The events of all batches, each of which is settled."""
    found: list[PendingEvent] = []
    while backlog.ready:
        _, events = backlog.drain(distant=False)
        backlog.settle(events)
        found += events
    return found


@pytest.mark.parametrize("final", [False, True])
def test_backlog_that_drops_a_stream_leaves_a_placeholder(*, final: bool) -> None:
    """The placeholder has the exact id of a dropped response and carries an error without a producer."""
    backlog = Backlog(1 << 20, 1)
    events = [event(), event(payload=codec.encode(answer(7)), final=final)]
    for each in events:
        backlog.put(each)
        backlog.defer(each)
    dropped = backlog.overflow()
    assert len(dropped) == 2
    assert not any(each.placeholder for each in dropped)
    (placeholder,) = drained(backlog)
    assert (placeholder.placeholder, placeholder.final, placeholder.traceparent) == (True, final, b"")
    if final:
        message = codec.decode(placeholder.payload)
        assert isinstance(message, JSONRPCError)
        assert (message.id, message.error.code) == (7, EVENTS_GONE)
    else:
        assert placeholder.payload == b""
    assert (backlog.events, backlog.bytes) == (0, 0)


def test_backlog_ready_is_false_without_events_to_send() -> None:
    """It is false while a batch is in flight, and for dropped events."""
    backlog = Backlog(0, 0)
    assert not backlog.ready
    for _ in range(3):
        each = event()
        backlog.put(each)
        backlog.defer(each)
        backlog.overflow()
        assert not backlog.ready
    backlog, _ = filled(2)
    first, events = backlog.drain(distant=False)
    assert (first, len(events), backlog.ready) == (1, 2, False)
    backlog.settle(events)
    assert not backlog.ready


def test_backlog_for_a_distant_redis_has_larger_batches() -> None:
    """Small batches for a near Redis let this process and Redis work at the same time."""
    backlog, _ = filled(1000)
    assert len(backlog.drain(distant=False)[1]) == BATCH_EVENTS
    backlog, _ = filled(1000)
    assert len(backlog.drain(distant=True)[1]) == LARGE_BATCH_EVENTS


def test_backlog_that_splits_batches_keeps_the_order() -> None:
    """Whichever events are refused, the others are drained in order, before later ones."""
    backlog, events = filled(20)
    later = event()
    backlog.put(later)
    found: list[tuple[int, PendingEvent]] = []
    while backlog.ready:
        first, batch = backlog.drain(distant=True)
        if len(batch) > 1:
            backlog.split(first, batch)
        else:
            found.append((first, batch[0]))
            backlog.settle(batch)
    assert found == list(enumerate([*events, later], 1))


def test_backlog_clear_returns_all_pending_events() -> None:
    """It includes those of a split batch, and of one that was put back."""
    backlog, events = filled(200)
    first, batch = backlog.drain(distant=False)
    backlog.split(first, batch)
    _, part = backlog.drain(distant=False)
    backlog.put_back(part)
    assert set(backlog.clear()) == set(events)
    assert not backlog.ready
    assert backlog.clear() == []


def test_backlog_with_deferred_events_put_back_drains_them_again() -> None:
    """A deferred event counts until it is settled."""
    backlog, events = filled(3)
    for each in events:
        backlog.defer(each)
    _, batch = backlog.drain(distant=False)
    backlog.put_back(batch)
    assert drained(backlog) == events
    assert (backlog.events, backlog.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("first", "count", "reply", "parsed"),
    [
        (5, 3, b"100", Reply(100)),
        (5, 3, b"100;1=WRONGTYPE no;2+", Reply(100, {1: "WRONGTYPE no"}, [2])),
        (5, 3, b"5:100;1=WRONGTYPE: a=b", Reply(100, {1: "WRONGTYPE: a=b"}, [])),
        (7, 1, b"5:100;1=WRONGTYPE no;2=no", Reply(102, {0: "no"}, [])),
        (6, 1, b"5:100", Reply(101, {}, [])),
        (5, 2, b"!late", Reply(0, {0: "late", 1: "late"})),
    ],
)
def test_parse_reply_returns_ids_and_outcomes(first: int, count: int, reply: bytes, parsed: Reply) -> None:
    """A part of a batch that was committed as a whole is parsed alike."""
    assert parse_reply(first, count, reply) == parsed


@pytest.mark.parametrize("reply", [b"", b"OK", b"x;1=a", b"100;x=a", b"\xff"])
def test_parse_reply_of_other_text_is_an_error(reply: bytes) -> None:
    """A proxy's answer is not read as ids."""
    with pytest.raises(ValueError, match="invalid literal"):
        parse_reply(1, 1, reply)
