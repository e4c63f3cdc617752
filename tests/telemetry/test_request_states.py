"""Metrics, spans and log events of request states and the answers to them."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server.request_state import RequestStateSecurity
from mcp.shared.exceptions import MCPError

from mcp_eventscope import InstrumentedRequestState, RedisEventStore, RedisRequestState
from mcp_eventscope.request_state.facts import (
    AnswersLost,
    KeysChanged,
    KeySource,
    RequestStateFact,
    StateRefusal,
    StateRefused,
    WorkerLost,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.testing.request_state import NO, Tool, Worker, principal_of, refusal_of
from support.request_states import SECRET
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio


@pytest.fixture
def tool() -> Tool:
    """The tool of all workers."""
    return Tool()


@pytest.fixture
def instrument(scope: Scope, redis: FakeAsyncRedis) -> Callable[..., InstrumentedRequestState]:
    """Decorates the request state of one worker."""

    def decorate(state: Any = None, **options: Any) -> InstrumentedRequestState:
        backend = RedisEventStore(redis, store_timeout=10).backend
        return InstrumentedRequestState(
            state or RedisRequestState(backend, bind_principal=principal_of, **options),
            registry=scope.registry,
            tracer_provider=scope.provider,
            logger=scope.log,
        )

    return decorate


def counted(scope: Scope, name: str, label: str) -> dict[str, float]:
    """The values of a counter that are not 0, by a label."""
    values = next(each for each in catalog.request_state.METRICS if each.name == f"eventscope_{name}").labels[1].values
    found = {value: scope.sample(name, **{label: value}) or 0 for value in values or ()}
    return {value: number for value, number in found.items() if number}


async def test_answers_are_counted_by_outcome(
    scope: Scope, instrument: Callable[..., InstrumentedRequestState], tool: Tool
) -> None:
    """Sealing, opening, the first use, and a repetition, with their durations and the age of the key."""
    state = instrument()
    async with state.running():
        worker = Worker(state, tool)
        token = await worker.ask()
        for _ in range(3):
            await worker.answer(token)
        tool.error = MCPError(-1, "no")
        await refusal_of(worker.answer(await worker.ask()))
    assert counted(scope, "request_state_sealed_total", "source") == {"redis": 2}
    assert scope.sample("request_state_opened_total") == 4
    assert counted(scope, "request_state_answers_total", "outcome") == {"completed": 1, "failed": 1}
    assert scope.sample("request_state_answers_repeated_total") == 2
    assert scope.sample("request_state_answer_duration_seconds_count") == 2
    assert scope.sample("request_state_answer_wait_seconds_count") == 2
    age = scope.sample("request_state_key_age_seconds")
    assert age is not None
    assert 0 <= age < 60
    assert counted(scope, "request_state_key_source", "source") == {"redis": 1}


async def test_secret_has_no_age(scope: Scope, instrument: Callable[..., InstrumentedRequestState], tool: Tool) -> None:
    """The age of a secret of the operator is unknown, and it needs no warning."""
    state = instrument(keys=[SECRET])
    async with state.running():
        await Worker(state, tool).ask()
    assert scope.sample("request_state_key_age_seconds") is None
    assert counted(scope, "request_state_key_source", "source") == {"secret": 1}
    assert not [entry for entry in scope.log.entries if entry["event"].startswith("request_state.")]


async def test_refusals_are_counted_by_their_hidden_reason(
    scope: Scope, instrument: Callable[..., InstrumentedRequestState], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wire hides the reason; the metric and the log show it."""
    state = instrument(keys=[SECRET])
    other_keys = instrument(keys=[SECRET[::-1]])
    async with state.running():
        worker = Worker(state, tool)
        token = await worker.ask(principal="alice")
        refused = {
            "malformed": worker.answer("v1.!", principal="alice"),
            "binding": worker.answer(token, principal="alice", name="delete"),
            "principal": worker.answer(token, principal="bob"),
            "audience": Worker(state, tool, "billing").answer(token, principal="alice"),
        }
        for request in refused.values():
            await refusal_of(request)
        other = await refusal_of(Worker(other_keys, tool).answer(token))
        assert other.data == {"reason": "not_running", "retryable": True}
        async with other_keys.running():
            await refusal_of(Worker(other_keys, tool).answer(token, principal="alice"))
        await worker.answer(token, principal="alice")
        await refusal_of(worker.answer(token, NO, principal="alice"))
        now = time.time
        late = await worker.ask(principal="alice")
        monkeypatch.setattr(RequestStateClock, "shift", 601)
        monkeypatch.setattr(time, "time", lambda: now() + RequestStateClock.shift)
        monkeypatch.setattr(state._state._ring, "_offset", lambda: 0)  # type: ignore[attr-defined]
        await refusal_of(worker.answer(late, principal="alice"))
    reasons = {"malformed", "binding", "principal", "audience", "unknown_key", "not_running", "other_answer", "expired"}
    found = counted(scope, "request_state_refused_total", "reason")
    assert found == dict.fromkeys(reasons, 1)
    logged = scope.log.named("request_state.refused")
    assert {entry["reason"] for entry in logged} == reasons
    assert all(entry["fix"] for entry in logged)
    assert token not in str(scope.log.entries)


class RequestStateClock:
    """The error of the wall clock."""

    shift = 0


async def test_policy_of_the_sdk_is_counted_by_reason(
    scope: Scope, instrument: Callable[..., InstrumentedRequestState], tool: Tool
) -> None:
    """The default of the SDK, too: an answer on another worker has an unknown key."""
    states = [instrument(RequestStateSecurity.ephemeral()) for _ in range(2)]
    one, other = (Worker(state, tool) for state in states)
    token = await one.ask()
    await refusal_of(other.answer(token))
    await one.answer(token)
    async with states[0].running():
        await one.answer(token)
    assert counted(scope, "request_state_refused_total", "reason") == {"unknown_key": 1}
    assert counted(scope, "request_state_sealed_total", "source") == {"other": 1}
    assert scope.sample("request_state_opened_total") == 2
    assert len(tool.effects) == 2


async def test_request_with_an_answer_has_a_span(
    scope: Scope, instrument: Callable[..., InstrumentedRequestState], tool: Tool
) -> None:
    """The span shows the outcome, and is the parent of the tool's. A question has none."""
    state = instrument(keys=[SECRET])
    async with state.running():
        worker = Worker(state, tool)
        token = await worker.ask()
        assert scope.spans() == []
        await worker.answer(token)
        await worker.answer(token)
        await refusal_of(worker.answer(token, NO))
        await refusal_of(worker.answer("v1.!"))
        tool.error = ValueError("4711")
        with pytest.raises(ValueError, match="4711"):
            await worker.answer(await worker.ask())
    spans = [span for span in scope.spans() if span.name == "request_state.answer"]
    shown = [
        (dict(span.attributes or {})["eventscope.outcome"], dict(span.attributes or {}).get("eventscope.reason"))
        for span in spans
    ]
    assert shown == [
        ("completed", None),
        ("repeated", None),
        ("refused", "other_answer"),
        ("refused", "malformed"),
        ("failed", None),
    ]
    assert all(set(span.attributes or {}) <= set(catalog.request_state.ANSWER_SPAN.attributes) for span in spans)
    assert "4711" not in str([span.to_json() for span in spans])


@pytest.mark.parametrize(
    ("fact", "event", "level"),
    [
        (KeysChanged(KeySource.REDIS, rotated=False), "request_state.keys_in_redis", "warning"),
        (KeysChanged(KeySource.REDIS, rotated=True), "request_state.key_rotated", "info"),
        (KeysChanged(KeySource.PROCESS, rotated=False), "request_state.keys_not_shared", "warning"),
        (StateRefused(StateRefusal.UNAVAILABLE), "request_state.refused", "warning"),
        (WorkerLost("a"), "request_state.worker_lost", "error"),
        (AnswersLost(3), "request_state.answers_lost", "error"),
    ],
)
async def test_fact_that_needs_action_is_logged_with_the_fix(
    scope: Scope, instrument: Callable[..., InstrumentedRequestState], fact: RequestStateFact, event: str, level: str
) -> None:
    """Each fact that an operator can act on names the fix; repetitions are limited."""
    state = instrument()
    for _ in range(3):
        state._on_fact(fact)
    (entry,) = scope.log.entries
    assert (entry["event"], entry["level"]) == (event, level)
    declared = next(each for each in catalog.request_state.LOG_EVENTS if each.name == event)
    assert set(entry) - {"event", "level"} <= set(declared.fields)
    assert level == "info" or entry["fix"]


async def test_sinks_that_fail_do_not_affect_answers(
    scope: Scope, instrument: Callable[..., InstrumentedRequestState], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures of telemetry are counted."""
    monkeypatch.setattr(scope.log, "warning", _raise)
    state = instrument()
    state.observe(_raise)
    async with state.running():
        worker = Worker(state, tool)
        token = await worker.ask()
        assert (await worker.answer(token)) == (await worker.answer(token))
    assert (scope.sample("telemetry_failures_total", sink="logs") or 0) >= 1


def _raise(*_: object, **__: object) -> None:
    msg = "no"
    raise RuntimeError(msg)
