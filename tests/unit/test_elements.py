"""Reading the elements of a run's list, foreign elements included."""

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.inspection import Inspector
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.read.elements import read_run
from mcp_eventscope.store.codec import encode
from mcp_eventscope.testing import Collected
from support.messages import answer, note
from support.waiting import in_time

pytestmark = pytest.mark.anyio

RUN = "0123456789ab1"
KEYS = Keys("mcp:").for_session("s")
FOREIGN = [
    b"",
    b"\n",
    b"\nx",
    b" f\nx",
    b"x",
    b"3",
    b"3 ",
    b"3 x\n{}",
    b"3 1 f l\n{}",
    b"3 1 labc\n{}",
    b"3 1 gabc\n{}",
    b"3 1 g1 f\n{}",
    b"3 -1\n{}",
    b"3 1 z\n{}",
    b"3 " + b"9" * 5000 + b"\n{}",
    b"9" * 5000 + b" 1\n{}",
    b"\xff 1\n{}",
    b"3 1\n{}\n{}\n",
    b"03 1\n{}",
    b"3 01\n{}",
    b"3,4 1\n{}",
    b"3 1,4 1\n{}",
    b"3 1 f f\n{}",
    b"3 1e1\n{}",
]


async def write(client: aioredis.Redis, *elements: bytes) -> None:
    """Make the list of the run."""
    await client.rpush(KEYS.run("1", RUN), *elements)


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda element: repr(element[:12]))
async def test_replay_past_a_foreign_element_delivers_the_rest(fake_client: aioredis.Redis, foreign: bytes) -> None:
    """The foreign element is counted, and the replay completes."""
    first, second, last = encode(note(1)), encode(note(2)), encode(answer())
    await write(fake_client, b"1 1\n" + first, b"2 2\n" + second, foreign, b"4 4 f\n" + last)
    collected = Collected()
    part = RedisEventStore(fake_client).for_session("s")
    facts = await part.replay(f"1-1-{RUN}", collected, stream_id="1")
    assert [data.encode() for data in collected.data] == [second, last]
    assert facts.completed
    assert (facts.gap, facts.missing) == (True, 1) or facts.corrupt


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda element: repr(element[:12]))
async def test_replay_with_a_foreign_last_element_ends(fake_client: aioredis.Redis, foreign: bytes) -> None:
    """The replay ends, whatever number the element seems to have."""
    second = encode(note(2))
    await write(fake_client, b"1 1\n", b"2 2\n" + second, foreign)
    collected = Collected()
    part = RedisEventStore(fake_client).for_session("s")
    await part.replay(f"1-1-{RUN}", collected, stream_id="1")
    assert set(collected.data) <= {second.decode()}


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda element: repr(element[:12]))
async def test_read_that_ends_with_a_foreign_element_returns_the_others(
    fake_client: aioredis.Redis, foreign: bytes
) -> None:
    """The last element of a chunk may be foreign, also while the list goes on."""
    await write(fake_client, b"1 1\n{}", b"2 2\n{}", foreign, b"4 4\n{}")
    chunk = await read_run(fake_client, KEYS, "1", RUN, 0, max_events=3, max_bytes=100)
    assert [*chunk.rows()][:2] == [(1, 1, 1, "", b"{}"), (2, 2, 2, "", b"{}")]
    assert chunk.numbers[2:] in ([], [3])
    assert chunk.last == 4


async def test_read_of_marked_elements_returns_their_marks(fake_client: aioredis.Redis) -> None:
    """A range, a large payload and a producer are read back; a large payload comes from its own key."""
    await write(fake_client, b"1 10\n", b"4 40 l2\n", b"5 50 g5 t00-a-b-01\n", b"6 60 f\n{}")
    await fake_client.set(KEYS.large("1", RUN, 5), b"large")
    chunk = await read_run(fake_client, KEYS, "1", RUN, 0, max_events=10, max_bytes=100)
    assert (chunk.first, chunk.last, chunk.ended, chunk.entry) == (1, 6, True, None)
    assert [*chunk.rows()] == [
        (1, 10, 1, "", b""),
        (4, 40, 2, "", None),
        (5, 50, 5, "00-a-b-01", b"large"),
        (6, 60, 6, "", b"{}"),
    ]


@pytest.mark.parametrize("after", range(9))
async def test_read_of_a_list_with_a_range_finds_its_place(fake_client: aioredis.Redis, after: int) -> None:
    """A range makes a list shorter than its numbers, so the place is found by bisection."""
    await write(fake_client, *(b"%d 1\n" % number if number != 5 else b"5 1 l3\n" for number in (1, 2, 5, 6, 7, 8)))
    chunk = await read_run(fake_client, KEYS, "1", RUN, after, max_events=10, max_bytes=100)
    assert [row[0] for row in chunk.rows()] == [number for number in (1, 2, 5, 6, 7, 8) if number > after]


async def test_read_of_large_payloads_is_bounded(fake_client: aioredis.Redis) -> None:
    """The first large payload is read whole; the next is left for the next chunk."""
    await write(fake_client, *(b"%d 1 g80\n" % number for number in (1, 2, 3)))
    for number in (1, 2):
        await fake_client.set(KEYS.large("1", RUN, number), b"x" * 80)
    chunk = await read_run(fake_client, KEYS, "1", RUN, 0, max_events=10, max_bytes=100)
    assert [row[0] for row in chunk.rows()] == [1]
    chunk = await read_run(fake_client, KEYS, "1", RUN, 1, max_events=1, max_bytes=10)
    assert [row[4] for row in chunk.rows()] == [b"x" * 80]
    chunk = await read_run(fake_client, KEYS, "1", RUN, 2, max_events=10, max_bytes=100)
    assert [row[4] for row in chunk.rows()] == [None]


@pytest.mark.parametrize(("size", "most"), [(100, 1024), (1000, 384), (4000, 128)])
async def test_read_of_a_long_list_is_bounded_in_elements_and_bytes(
    fake_client: aioredis.Redis, size: int, most: int
) -> None:
    """Redis returns fewer large elements than small ones at once, and the next read continues there."""
    payloads = [b"%d" % number + b"x" * size for number in range(1, 1501)]
    await write(fake_client, *(b"%d 1\n%b" % (number, payload) for number, payload in enumerate(payloads, 1)))
    read: list[bytes | None] = []
    while len(read) < len(payloads):
        chunk = await read_run(fake_client, KEYS, "1", RUN, len(read), max_events=1024, max_bytes=100)
        assert len(chunk.numbers) == min(most, len(payloads) - len(read))
        assert [*chunk.numbers] == [*range(len(read) + 1, len(read) + 1 + len(chunk.numbers))]
        read += chunk.payloads
    assert read == payloads


@pytest.mark.parametrize("size", [10, 3000])
@pytest.mark.parametrize("place", [127, 130, 322, 1026])
async def test_replay_past_a_number_that_was_read_before_ends(
    fake_client: aioredis.Redis, place: int, size: int
) -> None:
    """Another program's element has the number of the client's position, at the end of a chunk."""
    payload = encode(note(1, "x" * size))
    numbers = [number if number != place + 1 else 3 for number in range(1, 1501)]
    await write(fake_client, *(b"%d 1\n%b" % (number, payload) for number in numbers))
    collected = Collected()
    with in_time(30):
        facts = await RedisEventStore(fake_client).for_session("s").replay(f"1-3-{RUN}", collected, stream_id="1")
    assert (len(collected.data), facts.missing) == (1500 - 3 - 1, 1)


async def test_inspected_events_have_ascending_numbers(fake_client: aioredis.Redis) -> None:
    """A console or a tail that asks for the events after the last one gets on."""
    await write(fake_client, *(b"%d 1\n{}" % number for number in (1, 2, 3, 4, 2, 6)))
    inspector = Inspector(fake_client, Keys("mcp:"))
    assert [row[0] for row in await inspector.events("s", "1", RUN, 1)] == [2, 3, 4, 6]


@pytest.mark.parametrize("length", [1, 127, 128, 129, 256])
async def test_read_of_a_list_returns_all_elements_whatever_its_length(
    fake_client: aioredis.Redis, length: int
) -> None:
    """A list may end where a text of the reply does."""
    await write(fake_client, *(b"%d %d\n{}" % (number, number) for number in range(1, length + 1)))
    chunk = await read_run(fake_client, KEYS, "1", RUN, 0, max_events=1024, max_bytes=100)
    assert [*chunk.rows()] == [(number, number, number, "", b"{}") for number in range(1, length + 1)]
    assert chunk.last == length
