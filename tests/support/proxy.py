"""A proxy between clients and Redis that injects faults at exact commands and replies."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from mcp_eventscope.demo.switch import Listener
from support import resp
from support.fault_plan import FaultPlan, Step

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
_THREAD_SECONDS = 10.0
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with zero seconds: closing sends a RST."""
_SUBSCRIPTIONS = {"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"}


class Mode(Enum):
    """How the proxy treats traffic without a fault of its own."""

    PASS = auto()
    HOLD = auto()
    """Nothing passes, and nothing is lost: it passes later, as after a partition."""
    MUTE = auto()
    """Requests pass; replies are lost."""
    BLACK_HOLE = auto()
    """Connections are accepted; requests are lost."""


class End(Enum):
    """How a client's connection ends."""

    RESET = auto()
    """Immediately: the client may lose unread replies."""
    CLOSE = auto()
    """After all earlier data."""


@dataclass
class Fault:
    """A fault of the next commands that contain a text."""

    token: bytes
    times: int
    skip: int
    command: str = ""
    """The name of the only command that it concerns; "": any."""
    cut_after: int | None = None
    """Bytes of the command that pass before the cut."""
    answer: bytes | None = None
    """The reply in place of Redis, which does not receive the command."""
    delayed: bool = False
    """Whether it is held back after the client has lost its connection."""
    happened: int = 0
    held: list[bytes] = field(default_factory=list)
    """The commands held back."""

    def concerns(self, arguments: list[bytes]) -> bool:
        """Whether it happens to this command. Called once for each."""
        if self.happened >= self.times or self.token not in b" ".join(arguments):
            return False
        if self.command and self.command != arguments[0].decode("ascii", "replace").upper():
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.happened += 1
        return True


class Proxy:
    """A TCP proxy before one Redis.

    Args:
        target: The Unix socket of the Redis.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.port = 0
        self.delay = 0.0
        """Seconds that each reply takes longer."""
        self.mode = Mode.PASS
        self.accepted = 0
        """Connections so far."""
        self.commands: Counter[str] = Counter()
        """Commands that came, by name."""
        self.free = asyncio.Event()
        self.free.set()
        self.plan: FaultPlan | None = None
        self.largest: int | None = None
        """Bytes above which a command is refused, as hosted services do; None: no limit."""
        self._faults: list[Fault] = []
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        """Whether the block of `running` is over."""
        self._listener = Listener(self._accept)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._links)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Listen until the block ends, on a port that is kept."""
        self._ended = False
        await self.listen()
        try:
            yield self
        finally:
            self.refuse()
            self._ended = True
            for task in tuple(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._listener.drain()

    async def listen(self) -> None:
        """Accept connections (again)."""
        self._loop = asyncio.get_running_loop()
        self.port = await self._listener.listen(self.port)

    def refuse(self) -> None:
        """Refuse connections from now on; those that are open stay."""
        self._listener.close()

    def hold(self) -> None:
        """Pause all traffic until `clear`, without losing any."""
        self.mode = Mode.HOLD
        self.free.clear()

    def mute(self) -> None:
        """Drop all replies until `clear`."""
        self.mode = Mode.MUTE

    def black_hole(self) -> None:
        """Drop all requests until `clear`."""
        self.mode = Mode.BLACK_HOLE

    def clear(self) -> None:
        """Pass all traffic. Connections that lost data break, since TCP never loses data in the middle."""
        self.mode, self.delay = Mode.PASS, 0.0
        self._faults.clear()
        for link in [link for link in self._links if link.lossy]:
            link.reset()
        self.free.set()

    def reset(self) -> int:
        """Reset all connections. Returns how many there were."""
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    def reset_from_thread(self) -> None:
        """Reset all connections soon, of a proxy that runs in another thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.reset)

    def drop_reply(self, token: str, *, times: int = 1, skip: int = 0) -> Fault:
        """Execute the next commands that contain a text, drop the reply, and reset the connection.

        Args:
            token: Looked for in all arguments.
            times: How many commands it happens to.
            skip: How many earlier ones are spared.
        """
        return self._arm(Fault(token.encode(), times, skip))

    def cut_request(self, token: str, *, after: int, times: int = 1, skip: int = 0) -> Fault:
        """Reset the connection after so many bytes of the next commands that contain a text."""
        return self._arm(Fault(token.encode(), times, skip, cut_after=after))

    def answer(self, token: str, error: str, *, times: int = 1, skip: int = 0) -> Fault:
        """Answer the next commands that contain a text with an error; Redis does not receive them."""
        return self._arm(Fault(token.encode(), times, skip, answer=f"-{error}\r\n".encode()))

    def answer_text(self, token: str, text: str, *, times: int = 1) -> Fault:
        """Answer the next commands that contain a text with another text."""
        return self._arm(Fault(token.encode(), times, 0, answer=f"${len(text.encode())}\r\n{text}\r\n".encode()))

    def answer_bytes(self, command: str, reply: bytes, *, times: int = 1) -> Fault:
        """Answer the next commands of a name with a reply, as it is on the wire."""
        return self._arm(Fault(b"", times, 0, command, answer=reply))

    def delay_request(self, token: str, *, times: int = 1, skip: int = 0) -> Fault:
        """Hold back the next commands that contain a text, and reset the connection; `deliver` sends them."""
        return self._arm(Fault(token.encode(), times, skip, delayed=True))

    def follow(self, plan: FaultPlan) -> None:
        """Apply a plan to the commands that it counts, from now on."""
        self.plan = plan

    def release(self) -> None:
        """Pass the replies that the plan has held back."""
        if self.plan is not None:
            self.plan.released = True
        for link in tuple(self._links):
            link.release()

    async def deliver(self, fault: Fault) -> None:
        """Send the held commands on a new connection, and return when they are executed."""
        reader, writer = await asyncio.open_unix_connection(str(self.target))
        held, fault.held = fault.held, []
        buffer, answered = bytearray(), 0
        try:
            writer.writelines(held)
            while answered < len(held) and (data := await reader.read(_CHUNK)):
                buffer += data
                answered += len(resp.frames(buffer))
        finally:
            writer.close()

    def _arm(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def forget(self, link: "_Link") -> None:
        """Remove a connection that has ended."""
        self._links.discard(link)

    def fault_for(self, arguments: list[bytes]) -> Fault | None:
        """The fault of a command."""
        return next((fault for fault in self._faults if fault.concerns(arguments)), None)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._ended:  # The event loop accepted it before, and reports it after the end of the server.
            writer.close()
            return
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # Also if it is cancelled before it has begun.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self.forget(link)


@contextmanager
def proxy_in_thread(target: Path) -> Iterator[Proxy]:
    """Run a proxy in a thread with an event loop of its own; other threads may set its `delay`.

    Args:
        target: The Unix socket of the Redis.
    """
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    proxy = Proxy(target)

    async def run() -> None:
        stop = asyncio.Event()
        async with proxy.running():
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

    def serve() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - reported to the thread that waits for the start
            if not started.done():
                started.set_exception(error)

    thread = threading.Thread(target=serve, name="proxy", daemon=True)
    thread.start()
    loop, stop = started.result(_THREAD_SECONDS)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(_THREAD_SECONDS)


@dataclass
class _Awaited:
    """One command, until its reply is passed on."""

    fault: Fault | None
    step: Step | None
    reply: bytes = b""
    known: bool = False
    """Whether the reply has come, or none will come, because Redis does not receive the command."""


class _Link:
    """One client's connection, and the one to Redis that belongs to it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lossy = False
        """Whether something was lost on it."""
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._awaited: deque[_Awaited] = deque()
        """The commands whose replies are not passed on yet."""
        self._severed = False
        """Whether Redis receives nothing more."""
        self._closed = False
        """Whether the client has been sent the end of the connection."""
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._subscribed = False
        self._due: asyncio.Queue[tuple[float, bytes | float | End]] = asyncio.Queue()
        """The actions for the client, with their times: bytes are sent, a number is a pause in seconds."""
        self._over = asyncio.Event()
        """Set when the client has disconnected, or was reset."""

    def reset(self) -> None:
        """Reset the client's connection."""
        with contextlib.suppress(OSError):
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()
        self._over.set()

    async def run(self) -> None:
        """Forward data until either side ends or the connection is broken."""
        try:
            from_redis, to_redis = await asyncio.open_unix_connection(str(self._proxy.target))
        except OSError:
            self.reset()
            return
        requests = asyncio.create_task(self._requests(to_redis))
        replies = asyncio.create_task(self._replies(from_redis))
        deliver = asyncio.create_task(self._deliver())
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({requests, replies, over}, return_when=asyncio.FIRST_COMPLETED)
            requests.cancel()
            self._proxy.forget(self)
            if replies.done():
                await self._due.join()
            else:
                # After a clean end with all replies read, Redis executes every command.
                to_redis.write_eof()
                await replies
        finally:
            to_redis.close()
            self._writer.close()
            for task in (requests, replies, deliver, over):
                task.cancel()
            await asyncio.wait({requests, replies, deliver, over})

    async def _requests(self, to_redis: asyncio.StreamWriter) -> None:
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while data := await self._reader.read(_CHUNK):
                await self._proxy.free.wait()
                await self._thawed.wait()
                if self._closed:  # As a closed server does.
                    self.reset()
                    return
                if self._proxy.mode is Mode.BLACK_HOLE:
                    self.lossy = True
                    continue
                buffer += data
                for command in resp.frames(buffer):
                    if not self._pass_on(command, to_redis):
                        return
                await to_redis.drain()

    def _pass_on(self, command: bytes, to_redis: asyncio.StreamWriter) -> bool:
        """Forward one command; False when the connection was cut."""
        arguments = resp.arguments(command)
        name = arguments[0].decode("ascii", "replace").upper()
        self._proxy.commands[name] += 1
        self._subscribed |= name in _SUBSCRIPTIONS
        fault = self._proxy.fault_for(arguments)
        if self._proxy.largest is not None and len(command) > self._proxy.largest:
            fault = Fault(b"", 1, 0, answer=b"-ERR max request size exceeded\r\n")
        if fault is not None and (fault.delayed or fault.cut_after is not None):
            if fault.delayed:
                fault.held.append(command)
            else:
                to_redis.write(command[: fault.cut_after])
            self.reset()
            return False
        step = None if self._proxy.plan is None else self._proxy.plan.step(arguments)
        awaited = _Awaited(fault, step)
        self._awaited.append(awaited)
        answered = fault is not None and fault.answer is not None
        if not (answered or self._severed) and (step is None or step.forwarded):
            to_redis.write(command)
        else:
            self._known(awaited, b"")
        self._severed |= step is not None and step.last
        return True

    async def _replies(self, from_redis: asyncio.StreamReader) -> None:
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while data := await from_redis.read(_CHUNK):
                await self._proxy.free.wait()
                if self._subscribed:  # A pushed message answers no command.
                    self._enqueue(data)
                    continue
                buffer += data
                for reply in resp.frames(buffer):
                    # A RESP3 push answers no command, and the reply to a cut command is not awaited.
                    awaited = next((one for one in self._awaited if not one.known), None)
                    if reply[:1] == b">" or awaited is None:
                        self._enqueue(reply)
                    else:
                        self._known(awaited, reply)

    def _known(self, awaited: _Awaited, reply: bytes) -> None:
        awaited.reply, awaited.known = reply, True
        if awaited.step is not None and self._proxy.plan is not None:
            self._proxy.plan.ready += 1
        self.release()

    def release(self) -> None:
        """Pass on the replies that are known, in order, up to the first that is not, or that the plan keeps back."""
        plan = self._proxy.plan
        while self._awaited and (first := self._awaited[0]).known:
            if first.step is not None and plan is not None and not plan.released:
                return
            self._awaited.popleft()
            if first.fault is not None:
                self._enqueue(End.RESET if first.fault.answer is None else first.fault.answer)
            elif first.step is None:
                self._enqueue(first.reply)
            else:
                for action in first.step.actions(first.reply):
                    self._enqueue(End.CLOSE if action is None else action)

    def _enqueue(self, data: bytes | float | End) -> None:
        if self._proxy.mode is Mode.MUTE or self.lossy:
            self.lossy = True
            return
        self._due.put_nowait((time.monotonic() + self._proxy.delay, data))

    async def _deliver(self) -> None:
        while True:
            due, data = await self._due.get()
            if (seconds := due - time.monotonic()) > 0:
                await asyncio.sleep(seconds)
            if data is End.RESET:
                self.reset()
            elif isinstance(data, float):
                self._thawed.clear()
                await asyncio.sleep(data)
                self._thawed.set()
            elif not (self._closed or self._over.is_set()):
                with contextlib.suppress(OSError):
                    await self._send(data)
            self._due.task_done()

    async def _send(self, data: bytes | End) -> None:
        if isinstance(data, bytes):
            self._writer.write(data)
            await self._writer.drain()
        else:
            self._closed = True
            self._writer.write_eof()
