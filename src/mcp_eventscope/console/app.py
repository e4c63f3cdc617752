"""The ASGI application of the console: the page, its files, and the facts as JSON."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_eventscope.console.access import REALM, Access
from mcp_eventscope.console.observer import LocalWorker, Observer
from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.inspection import Inspector
from mcp_eventscope.redis.write.runs import is_run

PATH = "/console"
_FILES: Mapping[str, tuple[str, str]] = {
    "": ("console.html", "text/html; charset=utf-8"),
    "console.css": ("console.css", "text/css; charset=utf-8"),
    "console.js": ("console.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The files of the page by path, each with its type."""
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""The headers of each response. No header admits requests of other origins (CORS)."""
_MAX_STREAM = 1000
"""Characters of the longest name of a stream; a request id is hashed above 128 bytes."""


class Console:
    """The console of one key prefix. It changes nothing in Redis.

    Args:
        inspector: Reads Redis.
        address: The address of Redis, without credentials.
        max_session_bytes: The bound of a session, in bytes.
        token: The token that each request must carry; None: as in `Access`.
        payloads: Whether a viewer may read the contents of events.
        worker: The worker of this process; None: there is none.
    """

    def __init__(  # noqa: PLR0913 - its content and its access
        self,
        inspector: Inspector,
        *,
        address: str,
        max_session_bytes: int,
        token: str | None = None,
        payloads: bool = False,
        worker: LocalWorker | None = None,
    ) -> None:
        self._observer = Observer(inspector, address=address, max_session_bytes=max_session_bytes, worker=worker)
        self._payloads = payloads
        access = Middleware(_Guard, access=Access(token))
        routes = [
            *(Route(f"/{path}", self._file, methods=["GET"]) for path in _FILES),
            Route("/facts", self._facts, methods=["GET"]),
            Route("/session/{hash}", self._session, methods=["GET"]),
            Route("/session/{hash}/events", self._events, methods=["GET"]),
        ]
        self.app: ASGIApp = Starlette(routes=routes, middleware=[access])
        """The application, to be mounted at `PATH`."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep problems until the block ends, which cancels unfinished reads."""
        async with self._observer.running():
            yield

    async def _file(self, request: Request) -> Response:
        name, media_type = _FILES[request.url.path.rpartition("/")[2]]
        content = files("mcp_eventscope.console").joinpath("static", name).read_bytes()
        return Response(content, media_type=media_type)

    async def _facts(self, request: Request) -> Response:
        # On a connection that is kept, one of several workers that share a port would answer always.
        headers = {"Connection": "close"} if request.scope["http_version"].startswith("1.") else None
        return JSONResponse({**await self._observer.overview(), "payloads": self._payloads}, headers=headers)

    async def _session(self, request: Request) -> Response:
        try:
            found = await self._observer.session(request.path_params["hash"])
        except StoreError as error:
            return _error(503, str(error))
        return _error(404, "no known session has this hash") if found is None else JSONResponse(found)

    async def _events(self, request: Request) -> Response:
        query = request.query_params
        stream, run, after = query.get("stream", ""), query.get("run", ""), query.get("after", "0")
        if not (0 < len(stream) <= _MAX_STREAM and is_run(run) and after.isascii() and after.isdecimal()):
            return _error(400, "stream, run and after must be those of a stream of the session")
        payloads = "payloads" in query
        if payloads and not self._payloads:
            return _error(403, "the contents of events are not shown; set console_payloads")
        hashed = request.path_params["hash"]
        try:
            found = await self._observer.events(hashed, stream, run, int(after[:18]), payloads=payloads)
        except StoreError as error:
            return _error(503, str(error))
        return _error(404, "no known session has this hash") if found is None else JSONResponse({"events": found})


async def redirect(_: Request) -> Response:
    """Redirect from `PATH` to the page, whose links are relative to the slash at its end."""
    return RedirectResponse(f"{PATH.removeprefix('/')}/", headers=dict(_HEADERS))


class _Guard:
    """Refuses requests without access, and adds headers to all responses."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # It has no route for a WebSocket, and closes it.
            return
        refused = self._access.refusal(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        if refused is None:
            await self._app(scope, receive, send_with_headers)
            return
        response = _error(refused.status, refused.error)
        if refused.status == 401:
            response.headers["WWW-Authenticate"] = f'Basic realm="{REALM}", charset="UTF-8"'
        await response(scope, receive, send_with_headers)


def _error(status: int, error: str) -> Response:
    return JSONResponse({"error": error}, status)
