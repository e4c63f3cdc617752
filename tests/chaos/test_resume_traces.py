"""The traces of a cut call over two worker processes."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.chaos import NewToolControl, Pair, content_of, on_worker, open_session
from support.http_client import Connect, Event, HTTPClient, events
from support.processes import WorkerProcess, revive
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

Span = dict[str, Any]
SERVER = "SpanKind.SERVER"
CALL, RESUME = "00-" + "c" * 32 + "-" + "1" * 16 + "-01", "00-" + "d" * 32 + "-" + "2" * 16 + "-01"


def trace_of(span: Span) -> str:
    """Its trace, in hexadecimal."""
    return str(span["context"]["trace_id"]).removeprefix("0x")


def id_of(context: Span) -> str:
    """A span, in hexadecimal."""
    return str(context["span_id"]).removeprefix("0x")


@pytest.fixture
def span_files(tmp_path: Path) -> tuple[Path, Path]:
    """The files of the two workers."""
    return tmp_path / "a.jsonl", tmp_path / "b.jsonl"


@pytest.fixture
def pair(valkey_url: str, span_files: tuple[Path, Path]) -> Iterator[Pair]:
    """Two workers that trace, on one Valkey."""
    a, b = (WorkerProcess(valkey_url, valkey_url, spans=file) for file in span_files)
    with ExitStack() as stack:
        for worker in (a, b):
            stack.callback(worker.close)
        revive((a, b))
        yield a, b


def spans_in(file: Path) -> list[Span]:
    """The spans of a worker."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def named(spans: list[Span], name: str) -> list[Span]:
    """The spans with a name."""
    return [span for span in spans if span["name"] == name]


async def cut_and_resumed(
    pair: Pair, client: HTTPClient, new_tool: NewToolControl, request: dict[str, Any]
) -> list[Event]:
    """Cut a call on the first worker, and return the events of its resume on the second."""
    a, b = pair
    tool = new_tool()
    request["params"]["arguments"] = {"name": tool.name}
    async with on_worker(client, a).post(request) as response:
        stream = events(response)
        cursor = (await anext(stream)).id
        await tool.step("seen")
        cursor = (await anext(stream)).id
    await tool.step("missed", "missed too")
    await tool.finish()
    await tool.ended()
    client.headers["traceparent"] = RESUME
    return await on_worker(client, b).resume(cursor)


@pytest.mark.parametrize("sent_in", ["_meta", "header"])
async def test_cut_call_and_its_replay_are_in_the_trace_of_the_client(
    pair: Pair, span_files: tuple[Path, Path], connect: Connect, new_tool: NewToolControl, sent_in: str
) -> None:
    """The replay is in the trace of the call, as its stores are, and links to them and to the request that resumed.

    The Redis client of the workers is instrumented, too, and reports its own commands.
    """
    client = await open_session(connect, pair[0].url)
    meta: dict[str, Any] = {"progressToken": 1}
    if sent_in == "_meta":
        meta["traceparent"] = CALL
    else:
        client.headers["traceparent"] = CALL
    params = {"name": "steps", "_meta": meta}
    received = await cut_and_resumed(
        pair, client, new_tool, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    )
    assert [content_of(event) for event in received] == ["missed", "missed too", "3 steps"]

    first, second = span_files
    await until(lambda: [span for span in spans_in(second) if trace_of(span) == "d" * 32 and span["kind"] == SERVER])
    stores = [
        span
        for span in named(spans_in(first), "event_store.store")
        if span["attributes"]["eventscope.stream_id"] == "1"
    ]
    assert [span["attributes"]["eventscope.message_type"] for span in stores] == [
        "priming",
        *["notification"] * 3,
        "response",
    ]
    assert {trace_of(span) for span in stores} == {"c" * 32}
    (call,) = [span for span in spans_in(first) if span["name"] == "tools/call steps"]
    assert trace_of(call) == "c" * 32
    by_id = {id_of(span["context"]): span for span in stores}
    notes = [span for span in stores if span["attributes"]["eventscope.message_type"] == "notification"]
    assert {span["parent_id"].removeprefix("0x") for span in notes} == {id_of(call["context"])}, "within the tool"

    replays = named(spans_in(second), "event_store.replay")
    assert len(replays) == 1
    assert trace_of(replays[0]) == "c" * 32
    resumed, *linked = [link["context"] for link in replays[0]["links"]]
    (request,) = [span for span in spans_in(second) if id_of(span["context"]) == id_of(resumed)]
    assert (trace_of(request), request["kind"]) == ("d" * 32, SERVER)
    assert {str(context["trace_id"]).removeprefix("0x") for context in linked} == {"c" * 32}
    delivered = [by_id[id_of(context)]["attributes"]["eventscope.event_id"] for context in linked]
    assert delivered == [event.id.partition(".")[0] for event in received][: len(delivered)]
    assert len(delivered) == replays[0]["attributes"]["eventscope.events"] > 0

    # The writer's commands serve many callers and are in no trace; a replay's reads are within the request.
    reads = [span for span in spans_in(second) if span["parent_id"] == request["context"]["span_id"]]
    assert "SpanKind.CLIENT" in {span["kind"] for span in reads}
    ours = {id_of(span["context"]) for span in spans_in(first) if span["name"].startswith("event_store.")}
    assert [span for span in spans_in(first) if (span["parent_id"] or "").removeprefix("0x") in ours] == []
