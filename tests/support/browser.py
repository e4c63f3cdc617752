"""A real browser without a window: Chromium, driven through its DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from mcp_eventscope.cancellation import cancel_task
from support.binaries import program
from support.waiting import CEILING, eventually, until

_FLAGS = (
    *("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--no-default-browser-check"),
    *("--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--mute-audio", "--hide-scrollbars", "--no-proxy-server"),
)


class Page:
    """A tab."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []
        """Reports of the browser: exceptions, errors on the console, violations of the policy, failed loads."""
        self.dialogs: list[str] = []
        """Dialogs that scripts have opened; they are closed."""

    async def command(self, method: str, **parameters: Any) -> Any:
        """Send one command of the protocol, and return its result."""
        return await self._browser.command(method, self._session, **parameters)

    async def open(self, url: str) -> int:
        """Navigate, and wait until the page has been loaded; returns the status of the response."""
        loaded, status = asyncio.Event(), 0

        def watch(event: str, parameters: Any) -> None:
            nonlocal status
            if event == "Network.responseReceived" and parameters["type"] == "Document":
                status = parameters["response"]["status"]
            if event == "Page.loadEventFired":
                loaded.set()

        with self._browser.watching(self._session, watch):
            await self.command("Page.navigate", url=url)
            await asyncio.wait_for(loaded.wait(), CEILING)
        return status

    async def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript in the page, and return its value; promises are awaited."""
        reply = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    async def text(self, selector: str) -> str:
        """The visible text of the first element that a selector finds; "" without one."""
        found: str = await self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return found

    async def click(self, selector: str) -> None:
        """Click the first element that a selector finds."""
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true in the page."""

        async def holds() -> bool:
            return bool(await self.evaluate(expression))

        await until(holds)

    async def size(
        self, width: int, height: int, *, scheme: str = "light", scale: float = 1, mobile: bool = False
    ) -> None:
        """Set the size of the viewport, and the colour scheme."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        await self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def screenshot(self) -> bytes:
        """A picture of the viewport, as PNG."""
        return base64.b64decode((await self.command("Page.captureScreenshot", format="png"))["data"])


class Browser:
    """A running browser. Made by `connected`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._watching: list[tuple[str, Callable[[str, Any], None]]] = []
        self._number = 0

    async def command(self, method: str, session: str = "", **parameters: Any) -> Any:
        """Send one command of the protocol, to a tab or to the browser, and return its result."""
        self._number += 1
        reply = self._replies[self._number] = asyncio.get_running_loop().create_future()
        message = {"id": self._number, "method": method, "params": parameters}
        await self._connection.send(json.dumps(message | ({"sessionId": session} if session else {})))
        return await asyncio.wait_for(reply, CEILING)

    @contextmanager
    def watching(self, session: str, callback: Callable[[str, Any], None]) -> Iterator[None]:
        """Pass the events of a tab to a callback until the block ends."""
        self._watching.append((session, callback))
        try:
            yield
        finally:
            self._watching.remove((session, callback))

    async def listen(self) -> None:
        """Take replies and events until the connection ends."""
        async for text in self._connection:
            message = json.loads(text)
            if (number := message.get("id")) is None:
                for session, callback in list(self._watching):
                    if session == message.get("sessionId"):
                        callback(message["method"], message["params"])
            elif not (reply := self._replies.pop(number)).done():
                if "error" in message:
                    reply.set_exception(AssertionError(message["error"]))
                else:
                    reply.set_result(message["result"])

    @asynccontextmanager
    async def page(self, **headers: str) -> AsyncIterator[Page]:
        """A tab with cookies and cache of its own.

        Args:
            headers: Headers of each of its requests.
        """
        context = (await self.command("Target.createBrowserContext"))["browserContextId"]
        target = await self.command("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        tasks = set()

        def watch(event: str, parameters: Any) -> None:
            if event == "Runtime.exceptionThrown":
                page.complaints.append(str(parameters["exceptionDetails"]))
            elif event == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                page.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
            elif event == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning"}:
                page.complaints.append(str(parameters["args"]))
            elif event == "Page.javascriptDialogOpening":
                page.dialogs.append(parameters["message"])
                closing = asyncio.ensure_future(page.command("Page.handleJavaScriptDialog", accept=True))
                tasks.add(closing)
                closing.add_done_callback(tasks.discard)

        with self.watching(attached["sessionId"], watch):
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.command(f"{domain}.enable")
            if headers:
                await page.command("Network.setExtraHTTPHeaders", headers=headers)
            try:
                yield page
            finally:
                await self.command("Target.disposeBrowserContext", browserContextId=context)


@contextmanager
def chromium() -> Iterator[str]:
    """Run Chromium until the block ends, and yield its address. Without it the test is skipped, and fails in CI."""
    binary = program("chromium", "chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        # Its sandbox needs a user other than root, and namespaces that containers lack; it opens our own page only.
        process = subprocess.Popen(
            [binary, *_FLAGS, "--no-sandbox", f"--user-data-dir={directory}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": directory},
            start_new_session=True,
        )
        port_file = Path(directory) / "DevToolsActivePort"

        def listens() -> bool:
            return process.poll() is not None or (port_file.exists() and port_file.read_text().count("\n") > 0)

        try:
            eventually(listens)
            assert process.poll() is None, "chromium has ended"
            port, path = port_file.read_text().split("\n")[:2]
            yield f"ws://127.0.0.1:{port}{path}"
        finally:
            # It has processes of its own, in its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(CEILING)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Browser]:
    """Connect to a running Chromium until the block ends."""
    async with connect(address, max_size=None, proxy=None) as connection:
        browser = Browser(connection)
        listening = asyncio.create_task(browser.listen())
        try:
            yield browser
        finally:
            await cancel_task(listening)
