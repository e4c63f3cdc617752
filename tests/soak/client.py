"""A strict client of revision 2025-11-25 that cuts, reconnects to any worker, and records each event."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any, cast

import httpx2

from soak.history import INITIALIZE, PUBLISH, STANDALONE, Kind, Operation, Outcome, What
from soak.network import Surroundings
from soak.schedule import CallPlan, ClientPlan, LinkPlan
from support.http_client import JSON, VERSION, Event, HTTPClient, events
from support.waiting import until

PATIENCE = 30.0
"""Seconds after which a call counts as a hang: several times the longest fault. A late event loop does not count."""
CATCH_UP_SECONDS = 15.0
"""Seconds that the standalone stream has at the end of a session to deliver the rest."""
DEFAULT_RETRY = 1.0
"""Seconds after which a client reconnects when the server has not sent `retry`: the default of the SDK's client."""
_LONGEST_RETRY_AFTER = 2.0
_CLOSE_SECONDS = 2.0
"""Seconds for which the client reads on after a response, to see whether the server sends more."""
UNANSWERED = "unanswered"
FINAL = (Kind.RESULT, Kind.ERROR)
_REPLIES = {"initialize": "protocolVersion", "tools/list": "tools"}
"""A key in the result of a method, where it is not that of a tool."""


@dataclass
class _Stream:
    """A stream as its client knows it."""

    session: str
    """The client's name for the session."""
    client: HTTPClient
    """Names the session to the server, also when the client has lost it since."""
    name: str
    retry: float
    """Seconds after which to reconnect."""
    cursor: str = ""
    connection: int = -1
    events: int = 0
    """Events on this connection."""
    outcome: Outcome | None = None


class SoakClient:
    """One client, with one session at a time.

    Args:
        number: Its number.
        around: The workers, and the history.
        plan: The schedule of the client.
        listens: Whether it has a standalone stream.
    """

    def __init__(self, number: int, around: Surroundings, plan: ClientPlan, *, listens: bool) -> None:
        self.number = number
        self._urls = around.urls
        self._plan = plan
        self._network = around.network
        self._recorder = around.recorder
        http = httpx2.AsyncClient(transport=around.connections, timeout=None, trust_env=False)
        self._listens = listens
        self._raw = HTTPClient(http, "")
        self._sessions = 0
        self._calls = 0
        self._published: set[int] = set()
        self._on_message: set[int] = set()
        self._retry = DEFAULT_RETRY
        self._listener: asyncio.Task[None] | None = None
        self._listening_since: float | None = None
        """Since when the standalone stream has its present connection, by the loop's clock."""
        self._uncut = False
        """Whether the standalone stream is cut no more."""
        self._judged = False
        """Whether the standalone stream had the time to deliver everything."""
        self._leaving = False
        """Whether the client is ending its session."""

    async def run(self, seconds: float) -> None:
        """Call until so many seconds of the run have passed, then once on every worker, and end the session."""
        await asyncio.sleep(self._plan.start())
        try:
            while self._recorder.now < seconds:
                plan = self._plan.call(self._calls, listens=self._listens)
                await asyncio.sleep(plan.rest)
                if plan.new_session:
                    await self._end_session()
                await self._call(plan)
            for worker in range(len(self._urls)):
                await self._call(LAST_CALL, worker=worker)
            await self._end_session()
        finally:
            if self._listener is not None:
                self._listener.cancel()

    @property
    def _session(self) -> str:
        return f"{self.number}.{self._sessions}"

    async def _open_session(self) -> bool:
        """Open a session; False when the server did not let it."""
        self._sessions += 1
        self._raw.session = ""
        self._published.clear()
        self._on_message.clear()
        self._listening_since = None
        params = {
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": {"name": f"soak-{self.number}", "version": "0"},
        }
        request = {"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params}
        outcome = await self._exchange(f"initialize {self._calls}", request, kind=INITIALIZE)
        if outcome is not Outcome.RESULT or not self._raw.session or not await self._notify_initialized():
            self._raw.session = ""
            return False
        if self._listens:
            self._listener = asyncio.create_task(self._listen())
        return True

    async def _notify_initialized(self) -> bool:
        for attempt in range(100):
            worker = self._plan.link(self._session, "initialized", attempt).worker
            where = {"operation": Operation.NOTIFY, "worker": worker, "connection": attempt}
            stream = self._stream("initialized")
            message = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            try:
                async with self._network.patience(PATIENCE), self._at(worker, stream).post(message) as response:
                    if response.status_code == 202:
                        return True
                    await self._refused(stream, where, response)
                    if response.status_code < 500:
                        return False
            except httpx2.TransportError as error:
                self._unreached(stream, where, error)
            except TimeoutError:
                self._note(What.DONE, stream, kind=Outcome.GAVE_UP, **where)
                return False
            await asyncio.sleep(self._retry)
        return False

    async def _end_session(self) -> None:
        if not self._raw.session:
            return
        if self._listener is not None:
            await self._received_all()
            self._leaving = True
            self._listener.cancel()
            await asyncio.wait({self._listener})
            self._listener, self._leaving = None, False
            if not self._raw.session:  # It was lost while the client waited.
                return
        stream = self._stream("delete")
        worker = self._plan.link(self._session, stream.name, 0).worker
        where = {"operation": Operation.DELETE, "worker": worker}
        self._note(What.ENDED, stream, **where)
        self._raw.session = ""
        try:
            async with self._network.patience(PATIENCE):
                status = await self._at(worker, stream).delete()
            if status >= 300:
                self._note(What.REFUSED, stream, kind="status", code=status, **where)
        except httpx2.TransportError as error:
            self._unreached(stream, where, error)
        except TimeoutError:
            self._note(What.DONE, stream, kind=Outcome.GAVE_UP, **where)

    async def _received_all(self) -> None:
        """Wait until the standalone stream, which is cut no more, has delivered all that was published, or is late."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        def over() -> bool:
            opened = self._listening_since
            since = inf if opened is None else max(began, opened, self._network.redis_well_since)
            return self._published <= self._on_message or loop.time() - since > CATCH_UP_SECONDS

        self._uncut = True
        with suppress(TimeoutError):
            async with self._network.patience(PATIENCE):
                await until(over, within=inf, every=0.05)
        self._judged = over()
        self._uncut = False

    async def _call(self, plan: CallPlan, *, worker: int | None = None) -> None:
        """Call a tool, and see it through."""
        if not self._raw.session and not await self._open_session():
            await asyncio.sleep(self._retry)
            return
        self._calls += 1
        number = self._calls
        name = f"call-{number}"
        arguments: JSON = {"name": f"{self.number}-{number}"}
        if plan.publishes:
            arguments |= {"number": number}
        else:
            arguments |= {"times": plan.times, "pause": plan.pause, "padding": plan.padding}
        request_id: int | str = str(number) if plan.text_id else number
        params = {
            "name": "publish" if plan.publishes else "count",
            "arguments": arguments,
            "_meta": {"progressToken": request_id},
        }
        request = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}
        kind = PUBLISH if plan.publishes else "count"
        published = number if plan.publishes else 0
        outcome = await self._exchange(name, request, kind=kind, times=plan.times, published=published, worker=worker)
        if plan.publishes and outcome is Outcome.RESULT:
            self._published.add(number)
        if not self._raw.session and self._listener is not None:
            self._listener.cancel()
            self._listener = None

    async def _exchange(  # noqa: PLR0913 - the parts of a call
        self,
        name: str,
        request: JSON,
        *,
        kind: str,
        times: int = 0,
        published: int = 0,
        worker: int | None = None,
    ) -> Outcome:
        """Send a request, and read its stream over as many connections as it takes."""
        stream = self._stream(name)
        self._note(What.CALL, stream, kind=kind, number=times, request=json.dumps(request["id"]), published=published)
        where: dict[str, Any] = {}
        try:
            async with self._network.patience(PATIENCE), AsyncExitStack() as half_open:
                outcome = await self._through(stream, request, where, half_open, worker)
        except TimeoutError:
            outcome = Outcome.GAVE_UP
        self._note(What.DONE, stream, kind=outcome, **where)
        return outcome

    async def _through(
        self, stream: _Stream, request: JSON, where: dict[str, Any], half_open: AsyncExitStack, worker: int | None
    ) -> Outcome:
        began = False
        while True:
            stream.connection += 1
            link = self._plan.link(self._session, stream.name, stream.connection)
            if worker is not None and not began:
                link = LinkPlan(worker)
            client = self._at(link.worker, stream)
            opening = client.get(stream.cursor) if began else client.post(request)
            where |= {
                "operation": Operation.RESUME if began else Operation.POST,
                "worker": link.worker,
                "connection": stream.connection,
            }
            async with AsyncExitStack() as connection:
                response = await self._open(stream, where, opening, connection)
                if response is not None:
                    began = True
                    if request["method"] == "initialize":
                        self._opened(response.headers.get("mcp-session-id", ""), stream, where)
                    kept = await self._read(stream, where, response, link, request)
                    if kept is not None:
                        half_open.push_async_callback(_close, kept, connection.pop_all())
                    if stream.outcome is None and not stream.cursor:
                        stream.outcome = Outcome.NO_CURSOR
                if stream.outcome is not None:
                    return stream.outcome
            await asyncio.sleep(stream.retry)

    def _opened(self, session: str, stream: _Stream, where: dict[str, Any]) -> None:
        if session and not self._raw.session:
            self._raw.session = stream.client.session = session
            self._recorder.note(
                What.OPENED, client=self.number, session=self._session, worker=where["worker"], id=session
            )

    async def _open(
        self,
        stream: _Stream,
        where: dict[str, Any],
        opening: AbstractAsyncContextManager[httpx2.Response],
        connection: AsyncExitStack,
    ) -> httpx2.Response | None:
        """Open a connection; None when the request was refused, which may be the end of the stream."""
        try:
            response = await connection.enter_async_context(opening)
        except httpx2.TransportError as error:
            if self._unreached(stream, where, error) == UNANSWERED and where["operation"] == Operation.POST:
                stream.outcome = Outcome.UNANSWERED
            return None
        if response.status_code == 200:
            self._note(What.BEGAN, stream, id=stream.cursor, **where)
            stream.events = 0
            return response
        await self._refused(stream, where, response)
        if response.status_code != 503:
            stream.outcome = Outcome.REFUSED
        if response.status_code == 404 and stream.session == self._session:
            self._raw.session = ""
        return None

    async def _read(
        self, stream: _Stream, where: dict[str, Any], response: httpx2.Response, link: LinkPlan, request: JSON | None
    ) -> AsyncGenerator[Event] | None:
        """Read a connection to its end, or to the cut; returns a stream to be kept open without reading it."""
        source = cast("AsyncGenerator[Event]", events(response))
        loop = asyncio.get_running_loop()
        until: float | None = None
        try:
            while True:
                cuttable = stream.events > 0 and stream.outcome is None and not (self._uncut and request is None)
                async with self._network.reading(until, cuttable=cuttable):
                    event = await anext(source, None)
                if event is None:
                    self._note(What.CLOSED, stream, **where)
                    return None
                if self._received(stream, where, event, request) and request is not None:
                    until = loop.time() + _CLOSE_SECONDS
                elif stream.outcome is None and link.after_events is not None and stream.events >= link.after_events:
                    self._note(What.CUT, stream, kind="half-open" if link.half_open else "closed", **where)
                    return source if link.half_open else None
                elif until is None and link.after_seconds is not None:
                    until = loop.time() + link.after_seconds
        except TimeoutError:
            self._note(What.CUT, stream, kind="after response" if stream.outcome else "closed", **where)
        except httpx2.TransportError as error:
            self._note(What.BROKEN, stream, note=_text(error), **where)
        return None

    def _received(self, stream: _Stream, where: dict[str, Any], event: Event, request: JSON | None) -> bool:
        """Record an event; True when it is the response."""
        stream.cursor = event.id or stream.cursor
        stream.events += 1
        if event.retry is not None:
            self._retry = stream.retry = event.retry / 1000
        described = describe(event, f"{self.number}-{stream.name.removeprefix('call-')}", request)
        self._note(What.EVENT, stream, id=event.id, **described, **where)
        if described["kind"] not in FINAL or stream.outcome is not None:
            return False
        stream.outcome = Outcome(described["kind"])
        return True

    async def _listen(self) -> None:
        """Read the standalone stream of the session, over as many connections as it takes."""
        stream = self._stream(STANDALONE)
        where: dict[str, Any] = {}
        try:
            while self._raw.session:
                stream.connection += 1
                link = self._plan.link(self._session, stream.name, stream.connection, standalone=True)
                if self._uncut:
                    link = LinkPlan(link.worker)
                where |= {"operation": Operation.LISTEN, "worker": link.worker, "connection": stream.connection}
                opening = self._at(link.worker, stream).get(stream.cursor or None)
                async with AsyncExitStack() as connection:
                    if (response := await self._open(stream, where, opening, connection)) is not None:
                        self._listening_since = asyncio.get_running_loop().time()
                        try:
                            await self._read(stream, where, response, link, None)
                        finally:
                            if not self._leaving:
                                self._listening_since = None
                    elif stream.outcome is not None:
                        self._note(What.DONE, stream, kind=stream.outcome, **where)
                        return
                await asyncio.sleep(stream.retry)
        except asyncio.CancelledError:
            # A session that was lost owes nothing any more: that is a violation of its own.
            listened = self._leaving and self._judged and self._listening_since is not None
            self._note(What.DONE, stream, kind=Outcome.STOPPED if listened else Outcome.REFUSED, **where)
            raise

    def _stream(self, name: str) -> _Stream:
        return _Stream(self._session, replace(self._raw), name, self._retry)

    def _at(self, worker: int, stream: _Stream) -> HTTPClient:
        return replace(stream.client, url=f"{self._urls[worker]}/mcp")

    async def _refused(self, stream: _Stream, where: dict[str, Any], response: httpx2.Response) -> None:
        body = await response.aread()
        note = body[:200].decode(errors="replace")
        self._note(What.REFUSED, stream, kind="status", code=response.status_code, note=note, **where)
        after = response.headers.get("retry-after", "")
        if response.status_code == 503 and after.isdigit():
            await asyncio.sleep(min(float(after), _LONGEST_RETRY_AFTER))

    def _unreached(self, stream: _Stream, where: dict[str, Any], error: httpx2.TransportError) -> str:
        kind = "connection" if isinstance(error, httpx2.ConnectError) else UNANSWERED
        self._note(What.REFUSED, stream, kind=kind, note=_text(error), **where)
        return kind

    def _note(self, what: What, stream: _Stream, **values: Any) -> None:
        self._recorder.note(what, client=self.number, session=stream.session, stream=stream.name, **values)
        if what is What.EVENT and stream.name == STANDALONE:
            self._on_message.add(values["number"])


LAST_CALL = CallPlan(publishes=False, times=1, pause=0.0, padding=0, text_id=False, new_session=False, rest=0.0)


async def _close(source: AsyncGenerator[Event], connection: AsyncExitStack) -> None:
    """Close a half-open connection, and then the reader of its events."""
    await connection.aclose()
    await source.aclose()


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def describe(event: Event, name: str, request: JSON | None) -> dict[str, Any]:
    """Describe an event of a stream that belongs to a request, or to none."""
    if not event.data:
        return {"kind": Kind.PRIMING, "number": 0}
    message = event.message
    described: dict[str, Any] | None = None
    if "error" in message and request is not None:
        error = message["error"]
        return {
            "kind": Kind.ERROR,
            "number": 0,
            "code": error["code"],
            "note": error["message"][:200],
            "request": json.dumps(message.get("id")),
        }
    if "result" in message and request is not None:
        answers = {"kind": Kind.RESULT, "request": json.dumps(message.get("id"))}
        if _REPLIES.get(request["method"]) in message["result"]:
            described = {**answers, "number": 0}
        else:
            text = str((message["result"].get("structuredContent") or {}).get("result"))
            described = _numbered(text, name, answers)
    elif message.get("method") == "notifications/progress" and request is not None:
        params = message["params"]
        if params["progressToken"] == request["params"]["_meta"]["progressToken"]:
            described = _numbered(params.get("message", ""), name, {"kind": Kind.NOTIFICATION})
    elif message.get("method") == "notifications/resources/updated" and request is None:
        called, _, number = message["params"]["uri"].removeprefix("soak://").partition("/")
        if called == f"{name.partition('-')[0]}-{number}":
            described = {"kind": Kind.NOTIFICATION, "number": int(number)}
    return described or {"kind": Kind.FOREIGN, "number": 0, "note": event.data[:200]}


def _numbered(text: str, name: str, rest: dict[str, Any]) -> dict[str, Any] | None:
    called, _, number = text.strip().partition(" ")
    number = number.partition(" ")[0]
    return {**rest, "number": int(number)} if called == name and number.isdigit() else None
