"""The bound of concurrent replays of one principal."""

import asyncio
import time
from contextlib import suppress

import pytest

from mcp_eventscope.sessions import resume_limit
from mcp_eventscope.sessions.resume_limit import MAX_REPLAYS, MAX_WAITING, ResumeLimiter, ResumeTurn
from mcp_eventscope.store.messages import EventMessage
from support.messages import note
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio
EVENT = EventMessage(note(1))


WAITED: list[float] = []
"""The reported waits of the limiter under test, in seconds."""


@pytest.fixture(autouse=True)
def no_waits() -> None:
    """Begin without reported waits."""
    WAITED.clear()


def admitted(limiter: ResumeLimiter, principal: str = "alice", session: str = "") -> ResumeTurn:
    """A resume that is not refused, of a principal with one session if none is named."""
    turn = limiter.admit(principal, session or principal)
    assert turn is not None
    return turn


class Replays:
    """Replays of a limiter, each of which lasts until the test ends it."""

    def __init__(self, limiter: ResumeLimiter) -> None:
        self._limiter = limiter
        self.running: list[int] = []
        """The numbers of those that hold a slot, in the order in which they got it."""

    def start(self, number: int, principal: str = "alice") -> "Replay":
        """Start one."""
        return Replay(self, admitted(self._limiter, principal), number)


class Replay:
    """A replay with a number."""

    def __init__(self, replays: Replays, turn: ResumeTurn, number: int) -> None:
        self._replays = replays
        self._number = number
        self._end = asyncio.Event()
        self.turn = turn
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with self.turn:
            async with self.turn.replaying():
                self._replays.running.append(self._number)
                await self._end.wait()
                self._replays.running.remove(self._number)

    async def end(self) -> None:
        """End it."""
        self._end.set()
        await self.task

    async def cut(self) -> None:
        """Cancel it, as when its client disconnects."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
def limiter(monkeypatch: pytest.MonkeyPatch) -> ResumeLimiter:
    """A limiter whose replays do not stall."""
    monkeypatch.setattr(resume_limit, "SLICE_SECONDS", 3600)
    return ResumeLimiter(WAITED.append)


async def test_replays_beyond_the_limit_wait_in_order(limiter: ResumeLimiter) -> None:
    """Each replay that ends lets the one run that has waited for longest."""
    replays = Replays(limiter)
    started = [replays.start(number) for number in range(MAX_REPLAYS + 2)]
    await until(lambda: len(replays.running) == MAX_REPLAYS)
    await started[3].end()
    await until(lambda: replays.running[-1] == MAX_REPLAYS)
    await started[0].end()
    await until(lambda: replays.running[-1] == MAX_REPLAYS + 1)
    for replay in started:
        await replay.end()
    assert not len(limiter)


async def test_replays_of_another_principal_do_not_wait(limiter: ResumeLimiter) -> None:
    """A principal whose slots are taken delays itself only."""
    replays = Replays(limiter)
    started = [replays.start(number) for number in range(MAX_REPLAYS * 3)]
    started.append(replays.start(1000, "bob"))
    await until(lambda: 1000 in replays.running)
    assert len(replays.running) == MAX_REPLAYS + 1
    for replay in started:
        await replay.end()
    assert not len(limiter)


async def test_cut_replay_frees_its_place(limiter: ResumeLimiter) -> None:
    """Waiting or running, a client that disconnects leaves nothing behind, and the next replay runs."""
    replays = Replays(limiter)
    started = [replays.start(number) for number in range(MAX_REPLAYS + 3)]
    await until(lambda: len(replays.running) == MAX_REPLAYS)
    await started[MAX_REPLAYS].cut()
    await started[0].cut()
    await until(lambda: replays.running[-1] == MAX_REPLAYS + 1)
    for replay in started:
        await replay.cut()
    assert not len(limiter)


async def test_replay_that_is_cut_as_its_turn_comes_passes_it_on(limiter: ResumeLimiter) -> None:
    """The slot that was given to a cancelled replay goes to the next one."""
    replays = Replays(limiter)
    started = [replays.start(number) for number in range(MAX_REPLAYS + 2)]
    await until(lambda: len(replays.running) == MAX_REPLAYS)
    started[0]._end.set()
    started[MAX_REPLAYS].task.cancel()  # Both happen before the waiting replay runs again.
    await until(lambda: replays.running[-1] == MAX_REPLAYS + 1)
    for replay in started:
        await replay.cut()
    assert not len(limiter)


async def test_resumes_beyond_the_queue_are_refused_until_one_leaves(limiter: ResumeLimiter) -> None:
    """Each session has a queue of its own, in which a resume counts until its first slot."""
    waiting = [admitted(limiter) for _ in range(MAX_WAITING)]
    assert limiter.admit("alice", "alice") is None
    admitted(limiter, "bob").__exit__()
    admitted(limiter, "alice", "another session").__exit__()
    async with waiting[0].replaying():
        waiting.append(admitted(limiter))
        assert limiter.admit("alice", "alice") is None
    async with waiting[0].replaying():
        assert limiter.admit("alice", "alice") is None, "a second replay of one resume frees no further place"
    waiting.pop().__exit__()
    waiting.append(admitted(limiter))
    for turn in waiting:
        turn.__exit__()
    assert not len(limiter)


async def test_resumes_that_wait_for_redis_leave_the_queue(limiter: ResumeLimiter) -> None:
    """In an outage resumes wait for as long as it lasts, and are not refused."""
    waiting = [admitted(limiter) for _ in range(MAX_WAITING)]
    assert limiter.admit("alice", "alice") is None
    for turn in waiting:
        turn.step_aside()
    admitted(limiter).__exit__()
    for turn in waiting:
        async with turn.replaying():
            pass
        turn.__exit__()
    assert not len(limiter)


async def test_sessions_that_share_a_credential_resume_together(limiter: ResumeLimiter) -> None:
    """A gateway restarts: each of its sessions waits for its turn, and none is refused."""
    sessions = [admitted(limiter, session=str(number)) for number in range(2 * MAX_WAITING)]
    assert len(limiter) == 1
    for turn in sessions:
        turn.__exit__()
    assert not len(limiter)
    assert not limiter._waiting


async def test_wait_of_each_resume_is_reported_once(limiter: ResumeLimiter) -> None:
    """At its first slot or when it is cut before, whichever comes first; a resume that never replays has no wait."""
    replays = Replays(limiter)
    running = [replays.start(number) for number in range(MAX_REPLAYS)]
    await until(lambda: len(WAITED) == MAX_REPLAYS)
    assert max(WAITED) < 1
    began = time.monotonic()
    cut, served = replays.start(100), replays.start(101)
    await asyncio.sleep(0.05)
    await cut.cut()
    await running[0].end()
    await until(lambda: 101 in replays.running)
    assert len(WAITED) == MAX_REPLAYS + 2
    assert all(0.04 < each <= time.monotonic() - began for each in WAITED[-2:])
    for replay in (*running[1:], served):
        await replay.end()
    with admitted(limiter) as turn:
        for _ in range(2):
            async with turn.replaying():
                await turn.paced(nothing)(EVENT)
    admitted(limiter).__exit__()
    assert len(WAITED) == MAX_REPLAYS + 3
    assert not len(limiter)


async def nothing(_: EventMessage) -> None:
    """Receive an event."""


async def test_stalled_replay_lends_its_slot_until_it_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read delays no other; when it reads again, its replay waits for a slot."""
    monkeypatch.setattr(resume_limit, "SLICE_SECONDS", 0.01)
    monkeypatch.setattr(resume_limit, "MAX_REPLAYS", 1)
    limiter = ResumeLimiter(WAITED.append)
    reads = asyncio.Event()
    received = 0

    async def client(_: EventMessage) -> None:
        nonlocal received
        await reads.wait()
        received += 1

    async def stalled() -> None:
        with admitted(limiter) as turn:
            async with turn.replaying():
                send = turn.paced(client)
                await send(EVENT)
                await send(EVENT)

    task = asyncio.create_task(stalled())
    await until(lambda: len(limiter))
    with admitted(limiter) as other:
        async with other.replaying():
            monkeypatch.setattr(resume_limit, "SLICE_SECONDS", 3600)
            await until(lambda: not other._holds)  # It stalls, too, and takes the slot again for good.
            await other.paced(nothing)(EVENT)
            reads.set()
            await until(lambda: received)
            await asyncio.sleep(0)
            assert received == 1, "the next event waits for a slot"
    await task
    assert received == 2
    assert not len(limiter)


async def test_replay_that_makes_progress_keeps_its_slot_while_there_are_others(limiter: ResumeLimiter) -> None:
    """No other replay waits for it."""
    with admitted(limiter) as turn:
        async with turn.replaying():
            await turn.paced(nothing)(EVENT)
            turn._check()
            assert turn._holds
            turn._check()
            assert not turn._holds
    assert not len(limiter)


async def test_replay_that_makes_progress_takes_turns_with_waiting_ones(limiter: ResumeLimiter) -> None:
    """Slow clients, which read all the time, do not hold all slots."""
    replays = Replays(limiter)
    with admitted(limiter) as turn:
        async with turn.replaying():
            send = turn.paced(nothing)
            started = [replays.start(number) for number in range(MAX_REPLAYS)]
            await until(lambda: len(replays.running) == MAX_REPLAYS - 1)
            await send(EVENT)
            turn._check()
            await until(lambda: len(replays.running) == MAX_REPLAYS)
            sending = asyncio.ensure_future(send(EVENT))
            await asyncio.wait({sending}, timeout=0.05)
            assert not sending.done()
            await started[0].end()
            await sending
    for replay in started[1:]:
        await replay.end()
    assert not len(limiter)


@pytest.mark.parametrize("cut", range(3))
async def test_cancellation_at_any_step_leaves_no_slot_taken(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    """Three replays take turns for one slot; one of them is cancelled after each possible number of steps."""
    monkeypatch.setattr(resume_limit, "MAX_REPLAYS", 1)
    monkeypatch.setattr(resume_limit, "SLICE_SECONDS", 0)  # Each replay loses its slot between two events.
    cancelled = finished = 0

    async def slow(_: EventMessage) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def replay(turn: ResumeTurn) -> int:
        with turn:
            for _ in range(2):
                async with turn.replaying():
                    send = turn.paced(slow)
                    for _ in range(3):
                        await send(EVENT)
        return 6

    for steps in range(1, 1000):  # A task that has not begun has no resume yet.
        limiter = ResumeLimiter(WAITED.append)
        WAITED.clear()
        turns = [admitted(limiter) for _ in range(3)]
        principal = turns[0]._principal
        tasks = [asyncio.create_task(replay(turn)) for turn in turns]
        for _ in range(steps):
            await asyncio.sleep(0)
        tasks[cut].cancel()
        async with asyncio.timeout(CEILING):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        others = outcomes[:cut] + outcomes[cut + 1 :]
        assert others == [6, 6], f"after {steps} steps"
        assert principal.slots._value == 1, f"after {steps} steps"
        assert (len(limiter), limiter._waiting) == (0, {}), f"after {steps} steps"
        assert len(WAITED) in {2, 3}
        assert all(turn._timer is None for turn in turns)
        cancelled += outcomes[cut] != 6
        if outcomes[cut] == 6:
            finished += 1
            break
    assert cancelled > 10
    assert finished == 1
