"""`verify`: cuts a stream of a running server, and resumes it."""

import json
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import anyio
import click

from mcp_eventscope.cli.output import Exit, print_json, print_lines, print_table, redacted
from mcp_eventscope.errors import EventscopeError

PROTOCOL_VERSION = "2025-11-25"
"""The last revision in which streams can be resumed."""
_REQUEST_ID = "mcp-eventscope-verify"
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A valid name of an HTTP header."""
_LEAVE_SECONDS = 5.0
"""Maximum seconds for the deletion of the session."""


class VerificationError(EventscopeError):
    """The server did not resume; the message has the reason and the fix."""


class RefusedError(ConnectionError):
    """The server is unreachable, or refuses the credentials."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the check."""

    name: str
    seconds: float
    detail: str = ""


@dataclass
class _Check:
    """One check in progress."""

    http: Any
    url: str
    headers: dict[str, str]
    tool: str | None
    arguments: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    step: str = "connect"
    session: str = ""
    before: int = 0
    """Number of messages before the cut."""
    after: int = 0
    """Number of messages after it, the response included."""

    @contextmanager
    def _timed(self, name: str) -> Iterator[list[str]]:
        """Record a step; the block appends its detail."""
        self.step = name
        began, detail = time.monotonic(), list[str]()
        yield detail
        self.steps.append(Step(name, time.monotonic() - began, "; ".join(detail)))

    def _sent(self) -> dict[str, str]:
        common = {"accept": "application/json, text/event-stream", "mcp-protocol-version": PROTOCOL_VERSION}
        return common | self.headers | ({"mcp-session-id": self.session} if self.session else {})

    async def run(self) -> None:
        """Open a session, cut a stream, resume it, and end the session."""
        with self._timed("initialize") as detail:
            await self._initialize(detail)
        try:
            with self._timed("cut") as detail:
                cursor = await self._cut(detail)
            with self._timed("resume") as detail:
                await self._resume(cursor, detail)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVE_SECONDS), suppress(Exception):
                await self.http.delete(self.url, headers=self._sent())

    async def _initialize(self, detail: list[str]) -> None:
        request = {
            "jsonrpc": "2.0",
            "id": 0,
            "method": "initialize",
            "params": {
                "protocolVersion": PROTOCOL_VERSION,
                "capabilities": {},
                "clientInfo": {"name": "mcp-eventscope verify", "version": "1"},
            },
        }
        async with self.http.stream("POST", self.url, json=request, headers=self._sent()) as response:
            await _check_status(response, {200})
            self.session = response.headers.get("mcp-session-id", "")
            message = await _first_message(response)
        if "error" in message:
            msg = (
                f"initialize must succeed, got the error {_error_of(message)}; the server must speak {PROTOCOL_VERSION}"
            )
            raise VerificationError(msg)
        if not self.session:
            msg = "the server must have sessions, got no Mcp-Session-Id; a stateless server has nothing to resume"
            raise VerificationError(msg)
        agreed = str((message.get("result") or {}).get("protocolVersion", ""))
        detail.append(f"revision {agreed}")
        if agreed < PROTOCOL_VERSION:
            msg = f"the server must speak {PROTOCOL_VERSION}, got {agreed}; earlier streams begin without an event id"
            raise VerificationError(msg)
        notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        async with self.http.stream("POST", self.url, json=notification, headers=self._sent()) as response:
            await _check_status(response, {200, 202})

    async def _cut(self, detail: list[str]) -> str:
        """Send the request, and cut its stream: after a tool's first message, otherwise before any message."""
        request: dict[str, Any] = {"jsonrpc": "2.0", "id": _REQUEST_ID, "method": "tools/list"}
        if self.tool is not None:
            meta = {"progressToken": _REQUEST_ID}
            request |= {
                "method": "tools/call",
                "params": {"name": self.tool, "arguments": self.arguments, "_meta": meta},
            }
        cursor = ""
        async with self.http.stream("POST", self.url, json=request, headers=self._sent()) as response:
            await _check_status(response, {200})
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                msg = "the server must answer with a stream, got JSON; do not set json_response"
                raise VerificationError(msg)
            async for event_id, data in _events(response):
                if data and _is_response(data):
                    break  # It counts as not received, so the resume must deliver it again.
                cursor = event_id or cursor
                self.before += bool(data)
                if cursor and (data or self.tool is None):
                    break
        if not cursor:
            msg = "the stream must begin with an event id, got none; serve with http_app(), which adds an event store"
            raise VerificationError(msg)
        detail.append(f"after {_messages(self.before)}")
        return cursor

    async def _resume(self, cursor: str, detail: list[str]) -> None:
        """Resume until the response."""
        headers = self._sent() | {"last-event-id": cursor}
        async with self.http.stream("GET", self.url, headers=headers) as response:
            await _check_status(response, {200}, resuming=True)
            async for event_id, data in _events(response):
                if not data:
                    continue
                self.after += 1
                if event_id == cursor:
                    msg = "a resumed stream must begin after the client's last event, got that event again"
                    raise VerificationError(msg)
                if _is_response(data):
                    message = json.loads(data)
                    if "error" in message and self.tool is None:
                        msg = f"the resume must deliver the response, got the error {_error_of(message)}"
                        raise VerificationError(msg)
                    if (message.get("error") or {}).get("code") in {-32010, -32011}:
                        msg = f"the resume must deliver the response, got the error {_error_of(message)}"
                        raise VerificationError(msg)
                    if "error" in message or (message.get("result") or {}).get("isError"):
                        got = f"the error {_error_of(message)}" if "error" in message else "an error"
                        msg = f"the tool must return a result, got {got}; correct --tool and --arguments"
                        raise VerificationError(msg)
                    detail.append(f"{_messages(self.after)}, the response included")
                    return
        msg = "the resumed stream must deliver the response, got its end; see mcp-eventscope why for the reason"
        raise VerificationError(msg)


async def run(  # noqa: PLR0913 - the options of the command
    url: str,
    *,
    token: str | None,
    headers: Sequence[str],
    tool: str | None,
    arguments: str,
    timeout: float,  # noqa: ASYNC109 - an option of the command
    as_json: bool,
) -> Exit:
    """Print the result of the check."""
    library: Any = _http_library()
    parsed = _arguments(arguments)
    if token is not None:
        _check_value("--token (MCP_TOKEN)", token)
    sent = dict(_header(each) for each in headers) | ({} if token is None else {"authorization": f"Bearer {token}"})
    failure = ""
    async with library.AsyncClient(timeout=timeout) as http:
        check = _Check(http, url, sent, tool, parsed)
        try:
            with anyio.fail_after(timeout):
                await check.run()
        except VerificationError as error:
            failure = str(error)
        except (TimeoutError, library.TimeoutException):
            failure = (
                f"the step {check.step!r} must end within --timeout ({timeout:g} s), got no answer; raise it, or look "
                "at the log of the server"
            )
        except library.TransportError as error:
            if check.step == "initialize":
                msg = f"the server does not answer: {type(error).__name__}; {_connection_fix(url, error)}"
                raise RefusedError(msg) from error
            failure = f"the connection failed in the step {check.step!r}: {type(error).__name__}"
    # A server may repeat the credentials in its error.
    failure = redacted(failure, ["--token", token or "", *(part for each in headers for part in ("--header", each))])
    request = "tools/list" if tool is None else "a call of the tool"
    verified = (
        ""
        if failure
        else f"the stream of {request} was cut after {_messages(check.before)}, and a GET with Last-Event-ID "
        f"delivered {_messages(check.after)}, the response included"
    )
    limits = "a client cannot know which workers served the two connections" + (
        ", nor whether the call still ran at the cut" if tool else "; no call was running at the cut: use --tool"
    )
    if as_json:
        print_json("verify", ok=not failure, verified=verified, not_verified=limits, failure=failure, steps=check.steps)
    else:
        print_table(("step", "seconds", ""), [(each.name, f"{each.seconds:.3f}", each.detail) for each in check.steps])
        if failure:
            print_lines([f"failed in the step {check.step!r}: {failure}"])
        else:
            print_lines([f"verified: {verified}", f"not verified: {limits}"])
    return Exit.FAILED if failure else Exit.OK


def _http_library() -> Any:
    """The HTTP client that the installed SDK brings: httpx2 with mcp 2, httpx with mcp 1."""
    try:
        return import_module("httpx2")
    except ImportError:
        return import_module("httpx")


def _connection_fix(url: str, error: Exception) -> str:
    """The remedy for a connection that failed."""
    if "SSL" in str(error):
        if "CERTIFICATE" in str(error):
            return "the certificate cannot be verified: set SSL_CERT_FILE to the file of its CA"
        return "if this port has no TLS, write http:// in the URL"
    if url.startswith("http:") and "Connect" not in type(error).__name__:
        return "check that this port is the server's; if it has TLS, write https:// in the URL"
    return "start the server, or correct the URL"


def _arguments(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        msg = '--arguments must be a JSON object, got another text; write \'{"name": "value"}\''
        raise click.UsageError(msg)
    return parsed


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name.strip()):
        got = "a name with other characters" if colon else "a text without a colon"
        msg = f"--header must have the form NAME:VALUE, got {got}; write -H 'X-Tenant: one', for example"
        raise click.UsageError(msg)
    _check_value("--header", value.strip())
    return name.strip().lower(), value.strip()


def _check_value(option: str, value: str) -> None:
    """Check that a header can have a value, which the error omits.

    Raises:
        UsageError: It cannot.
    """
    if not (value.isascii() and value.isprintable()) or value != value.strip():
        msg = f"{option} must have printable ASCII characters, got others; remove line breaks and spaces around it"
        raise click.UsageError(msg)


async def _check_status(response: Any, expected: set[int], *, resuming: bool = False) -> None:
    status = response.status_code
    if status in expected:
        return
    if status in {401, 403}:
        msg = f"the server refuses the credentials (HTTP {status}); give --token or --header"
        raise RefusedError(msg)
    hints = {
        301: "use the URL that it redirects to",
        307: "use the URL that it redirects to, for example with or without a slash at the end",
        308: "use the URL that it redirects to",
        404: "give the URL of the MCP endpoint, such as http://localhost:8000/mcp; or the worker knows no such session",
        405: "the server does not resume: its event store is missing"
        if resuming
        else "give the URL of the MCP endpoint, such as http://localhost:8000/mcp",
        421: "the server does not accept this Host; see allowed_hosts of its transport security",
        503: "its lifespan does not run, it is stopping, or its Redis is unavailable: see its log and /healthz",
    }
    fix = hints.get(status, "check the URL, and look at the log of the server")
    msg = f"the server must answer with {' or '.join(map(str, sorted(expected)))}, got HTTP {status}; {fix}"
    raise VerificationError(msg)


async def _events(response: Any) -> AsyncIterator[tuple[str, str]]:
    """The id and the data of each server-sent event."""
    event_id, data = "", list[str]()
    seen = False
    async for line in response.aiter_lines():
        if not line:
            if seen:
                yield event_id, "\n".join(data)
            event_id, data, seen = "", [], False
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            seen = seen or name in {"id", "data"}
            if name == "id":
                event_id = value
            elif name == "data":
                data.append(value)


async def _first_message(response: Any) -> dict[str, Any]:
    """The first message of a response, which is JSON or a stream."""
    text = ""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        async for _, data in _events(response):
            if data:
                text = data
                break
    else:
        text = (await response.aread()).decode("utf-8", "replace")
    try:
        message = json.loads(text)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        msg = "the server must answer initialize with JSON-RPC, got something else; is this the MCP endpoint?"
        raise VerificationError(msg)
    return message


def _is_response(data: str) -> bool:
    try:
        message = json.loads(data)
    except ValueError:
        return False
    return isinstance(message, dict) and message.get("id") == _REQUEST_ID and "method" not in message


def _messages(number: int) -> str:
    return f"{number} {'message' if number == 1 else 'messages'}"


def _error_of(message: dict[str, Any]) -> str:
    error = message.get("error")
    return (
        f"{error.get('code')}: {str(error.get('message', ''))[:200]}" if isinstance(error, dict) else "without a form"
    )
