"""The console in a real browser: of two workers, of a Redis that dies, and of the command line."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from prometheus_client import CollectorRegistry

from mcp_eventscope import http_app
from mcp_eventscope.settings import URL_VARIABLE, variable
from mcp_eventscope.telemetry.tracing import session_hash
from support.browser import Browser, Page, chromium, connected
from support.controlled_server import ControlledServer
from support.http_client import NO_TLS, VERSION, Connect, HTTPClient, events
from support.serving import serving, serving_each
from support.valkeys import own_valkey
from support.waiting import CEILING

pytestmark = pytest.mark.anyio

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
REORDERED = "\u202egpj.exe"
CONTENTS = "</td><script>alert(3)</script>"
TOKEN = "the-token-of-the-console"
CREDENTIALS = {"Authorization": f"Basic {base64.b64encode(f'me:{TOKEN}'.encode()).decode()}"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A browser that all tests share."""
    with chromium() as address:
        yield address


@pytest.fixture
async def browser(address: str) -> AsyncIterator[Browser]:
    """The same, connected to the event loop of a test."""
    async with connected(address) as browser:
        yield browser


def worker(controlled: ControlledServer, redis_url: str, **options: Any) -> Any:
    """The application of one worker, in this process."""
    return http_app(
        controlled.mcp,
        redis_url=redis_url,
        registry=CollectorRegistry(),
        console=True,
        console_token=TOKEN,
        name="shop",
        **options,
    )


async def open_as(client: HTTPClient, name: str) -> str:
    """Open a session as a client that names itself so; returns the hash of its id."""
    info = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": name, "version": "1"}}
    async with client.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": info}) as response:
        client.session = response.headers["mcp-session-id"]
        await anext(each async for each in events(response) if each.data)
    await client.notify("notifications/initialized")
    return session_hash(client.session) or ""


def row(hashed: str) -> str:
    """An expression: the row of a session."""
    return f"[...document.querySelectorAll('#sessions tr.row')].find(each => each.innerText.includes('{hashed}'))"


async def shown(page: Page, text: str, *, within: str = "body") -> None:
    """Wait until a text is visible."""
    await page.until(f"document.querySelector({json.dumps(within)})?.innerText.includes({json.dumps(text)})")


async def press(page: Page, text: str) -> None:
    """Wait for a button with a text in the detail of a session, and press it."""
    found = f"[...document.querySelectorAll('.detail button')].find(each => each.innerText === {json.dumps(text)})"
    await page.until(f"Boolean({found})")
    await page.evaluate(f"{found}.click()")


async def test_page_shows_hostile_texts_as_texts_and_contents_when_asked(
    browser: Browser, valkey_url: str, key_prefix: str, connect: Connect
) -> None:
    """Two workers; a client whose name, request id and messages are markup. Ids and contents are hidden."""
    controlled = ControlledServer()
    options = {"key_prefix": key_prefix, "redis_url": valkey_url}
    apps = [worker(controlled, console_payloads=True, **options), worker(ControlledServer(), **options)]
    async with (
        serving_each(*apps) as (one, two),
        browser.page(**CREDENTIALS) as page,
        browser.page(**CREDENTIALS) as other,
    ):
        client, quiet = connect(one), connect(two)
        hashed, quiet_hash = await open_as(client, HOSTILE + REORDERED), await open_as(quiet, "quiet")
        async with client.call(f"{HOSTILE}", "steps", name="n") as response:
            controlled.step("n", CONTENTS)
            await anext(each async for each in events(response) if "progress" in each.data)
            assert await page.open(f"{one}/console") == 200
            await page.size(1500, 900)
            await page.until(f"Boolean({row(hashed)} && {row(quiet_hash)})")
            assert HOSTILE in await page.evaluate(f"{row(hashed)}.innerText")
            assert "\\u202egpj.exe" in await page.evaluate(f"{row(hashed)}.innerText")
            await shown(page, "2", within="#workers .count")
            await shown(page, "Answered by 1 of 2 workers", within="#workers")
            await page.evaluate(f"{row(hashed)}.click()")
            await shown(page, "running", within=".detail")
            await press(page, "events")
            await shown(page, "notifications/progress", within=".detail")
            assert CONTENTS not in await page.text("body")
            await press(page, "Show contents")
            await shown(page, CONTENTS, within=".detail")
            text = await page.evaluate("document.documentElement.outerHTML")
            assert client.session not in text
            assert await page.evaluate("document.querySelectorAll('script').length") == 1
            assert await page.evaluate("document.querySelectorAll('img').length") == 1

            assert await other.open(f"{two}/console/") == 200
            await other.size(390, 800, scheme="dark", mobile=True)
            await other.until(f"Boolean({row(hashed)})")
            await other.evaluate(f"{row(hashed)}.click()")
            await press(other, "events")
            await shown(other, "console_payloads is off", within=".detail")
            assert await other.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            controlled.finish("n")
        for each in (page, other):
            assert each.complaints == []
            assert each.dialogs == []


async def test_page_of_a_dead_redis_keeps_the_last_facts_until_it_recovers(browser: Browser, connect: Connect) -> None:
    """The banner has the time of the failure, and disappears by itself."""
    with own_valkey() as valkey:
        app = worker(ControlledServer(), valkey.url)
        async with serving(app) as url, browser.page(**CREDENTIALS) as page:
            hashed = await open_as(connect(url), "client")
            await page.open(f"{url}/console")
            await page.until(f"Boolean({row(hashed)})")
            valkey.kill()
            await page.until("!document.querySelector('#banner').hidden")
            await shown(page, "Redis has been unreachable since", within="#banner")
            await shown(page, "The facts below are", within="#banner")
            await shown(page, "redis unreachable", within="#problems")
            assert await page.evaluate(f"Boolean({row(hashed)})")
            valkey.start()
            await page.until("document.querySelector('#banner').hidden")
            await page.until("document.querySelector('#status').className.includes('ok')")
            assert page.complaints == []


@asynccontextmanager
async def console_command(**environment: str) -> AsyncIterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run the command `console` on a free port; yields its address."""
    process = await anyio.open_process(
        [sys.executable, "-m", "mcp_eventscope.cli.main", "console", "--port", "0", "--json"],
        env=os.environ | environment,
        stderr=None,
    )
    try:
        assert process.stdout is not None
        with anyio.fail_after(CEILING):
            line = await process.stdout.receive()
        yield json.loads(line)["url"], process  # type: ignore[misc]
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.aclose()


async def test_console_command_shows_the_sessions_of_others_to_a_viewer_with_the_token(
    browser: Browser, valkey_url: str, key_prefix: str, connect: Connect
) -> None:
    """It needs no application. The browser asks for the token, or the URL has it; an interrupt ends it."""
    environment = {
        URL_VARIABLE: valkey_url,
        variable("key_prefix"): key_prefix,
        variable("console_token"): TOKEN,
    }
    app = worker(ControlledServer(), valkey_url, key_prefix=key_prefix)
    async with (
        serving(app) as url,
        console_command(**environment) as (address, process),
        httpx2.AsyncClient(verify=NO_TLS) as http,
    ):
        hashed = await open_as(connect(url), "client")
        assert (await http.get(f"{address}facts")).status_code == 401
        async with browser.page(**CREDENTIALS) as page:
            assert await page.open(address) == 200
            await page.until(f"Boolean({row(hashed)})")
            await shown(page, "read directly from Redis")
            await shown(page, "Pending events and log events are not shown", within="#workers")
            assert page.complaints == []
        async with browser.page() as page:
            assert await page.open(address.replace("//", f"//me:{TOKEN}@")) == 200
            await page.until(f"Boolean({row(hashed)})")
            assert page.complaints == []
        process.send_signal(signal.SIGINT)
        with anyio.fail_after(CEILING):
            assert await process.wait() == 130  # type: ignore[misc]
