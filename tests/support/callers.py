"""Clients that are cut again and again, and keep the events of each call."""

from dataclasses import dataclass, field

import anyio
import httpx2

from support.chaos import content_of, on_worker
from support.http_client import HTTPClient, events
from support.processes import WorkerProcess

_EVENTS = 10
"""Events of a connection."""
NAME = "progress"


def expected(numbers: int) -> list[str]:
    """The contents of a call that lost nothing and received nothing twice."""
    return [*(f"{NAME} {number}" for number in range(1, numbers + 1)), f"ended: {NAME} {numbers}"]


@dataclass
class CutCall:
    """One call of the tool `count`, and its events with content, in order."""

    request_id: int
    contents: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    first: str = ""
    """The id of the priming event."""

    @property
    def ended(self) -> bool:
        """Whether the response was received."""
        return bool(self.contents) and self.contents[-1].startswith("ended")


@dataclass
class Caller:
    """A client of one session whose connections are cut after ten events, each time resuming on another worker."""

    client: HTTPClient
    workers: tuple[WorkerProcess, WorkerProcess]
    calls: list[CutCall] = field(default_factory=list)

    async def call(self, request_id: int, numbers: int, *, pause: float, padding: int = 0) -> None:
        """Call, and resume until the response."""
        self.calls.append(call := CutCall(request_id))
        arguments = {"name": NAME, "times": numbers, "pause": pause, "padding": padding}
        last, at = "", 0
        while not call.ended:
            at += 1
            client = on_worker(self.client, self.workers[at % 2])
            opening = client.get(last) if last else client.call(request_id, "count", **arguments)
            try:
                async with opening as response:
                    last = await _read(response, call) or last
            except httpx2.TransportError:
                pass  # Cut, as mobile clients are.


async def _read(response: httpx2.Response, call: CutCall) -> str:
    """Read some events; returns the id of the last one."""
    last, number = "", 0
    if "retry-after" in response.headers:
        await anyio.sleep(0.1)
        return last
    assert response.status_code == 200, await response.aread()
    async for event in events(response):
        last = event.id or last
        call.first = call.first or event.id
        if event.data:
            number += 1
            content = content_of(event).rstrip("x").strip()
            call.contents.append(content if "method" in event.message else f"ended: {content}")
            call.ids.append(event.id)
        if number == _EVENTS:
            break
    return last
