"""The conformance suites of request states: confidentiality, binding, and single use across workers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast

import anyio
import pytest
from mcp.server.context import HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

Handler = Callable[[ServerRequestContext[Any, Any]], Awaitable[HandlerResult]]

AUDIENCE = "conformance"
"""The name of the server."""
PRINCIPAL: ContextVar[str | None] = ContextVar("principal", default=None)
"""The principal of a request."""
SECRET_STATE = "a secret of the server: 4711"  # noqa: S105 - it is not one
ARGUMENTS: Mapping[str, object] = {"amount": 5, "to": "bob"}
YES: Mapping[str, Mapping[str, object]] = {"confirm": {"action": "accept", "content": {"ok": True}}}
NO: Mapping[str, Mapping[str, object]] = {"confirm": {"action": "decline"}}
PATIENCE = 30.0
"""Seconds after which a wait is a failure."""


def principal_of(ctx: ServerRequestContext[Any, Any]) -> str | None:  # noqa: ARG001 - the SDK's interface
    """The principal of the current request, for `bind_principal=` of the request states under test."""
    return PRINCIPAL.get()


class StateUnderTest(Protocol):
    """The part of a `RequestState` that the suites use."""

    def middleware(self, audience: str) -> ServerMiddleware[Any]:
        """Create the middleware of a server."""
        ...


OpenWorkers = Callable[[], AbstractAsyncContextManager[tuple[StateUnderTest, StateUnderTest]]]
"""Opens the request states of two workers of one service, which bind states with `principal_of`."""


@dataclass
class Tool:
    """A tool that asks for a confirmation before its effect."""

    effects: list[object] = field(default_factory=list)
    """The answers that took effect."""
    question: Mapping[str, Any] = field(default_factory=lambda: {"requestState": SECRET_STATE})
    """The part of the question that the handler chooses."""
    gate: asyncio.Event | None = None
    """Delays the effect until it is set."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer has arrived."""
    error: Exception | None = None
    """Raised after the effect."""
    states: list[object] = field(default_factory=list)
    """The states that the handler received with an answer."""
    rounds: int = 1
    """The number of questions."""

    async def __call__(self, ctx: ServerRequestContext[Any, Any]) -> HandlerResult:
        """Ask, or take effect."""
        params = ctx.params or {}
        answers = params.get("inputResponses")
        if answers is None:
            return self._ask()
        self.states.append(params.get("requestState"))
        self.started.set()
        if self.gate is not None:
            await self.gate.wait()
        self.effects.append(answers)
        if self.error is not None:
            raise self.error
        if len(self.effects) < self.rounds:
            return self._ask()
        return {"content": [{"type": "text", "text": f"effect {len(self.effects)}"}]}

    def _ask(self) -> dict[str, Any]:
        return {"resultType": "input_required", "inputRequests": {"confirm": {}}, **self.question}


class Worker:
    """One worker that serves a tool behind the middleware of its request state."""

    def __init__(self, state: StateUnderTest, tool: Handler, audience: str = AUDIENCE) -> None:
        self._middleware = state.middleware(audience)
        self._tool = tool

    async def send(self, *, method: str = "tools/call", principal: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a request.

        Args:
            method: Its method.
            principal: The authenticated principal; None: there is none.
            params: Members of the request that replace the usual ones.

        Returns:
            The result on the wire.

        Raises:
            MCPError: It was answered with an error.
        """
        reset = PRINCIPAL.set(principal)
        try:
            ctx: ServerRequestContext[Any, Any] = ServerRequestContext(
                session=cast("ServerSession", None),
                lifespan_context={},
                protocol_version="2026-07-28",
                method=method,
                params={"name": "transfer", "arguments": ARGUMENTS, **params},
                request_id=1,
            )
            with anyio.fail_after(PATIENCE):
                return cast("dict[str, Any]", await self._middleware(ctx, self._tool))
        finally:
            PRINCIPAL.reset(reset)

    async def ask(self, *, principal: str | None = None) -> str:
        """Send a request that asks a question. Returns its state."""
        result = await self.send(principal=principal)
        assert result["resultType"] == "input_required"
        return str(result["requestState"])

    async def answer(self, state: str, answer: object = YES, **others: Any) -> dict[str, Any]:
        """Answer a question; arguments as in `send`."""
        return await self.send(requestState=state, inputResponses=answer, **others)


async def refusal_of(request: Awaitable[object]) -> MCPError:
    """The error of a request that must be refused."""
    with pytest.raises(MCPError) as raised:
        await request
    return raised.value


class RequestStateConformance:
    """Any worker opens a state, but only with the request that it belongs to.

    Override the fixture `open_workers`.
    """

    pytestmark: ClassVar[pytest.MarkDecorator] = pytest.mark.anyio

    @pytest.fixture
    def open_workers(self) -> OpenWorkers:
        """Open two workers; see `OpenWorkers`."""
        raise NotImplementedError

    @pytest.fixture
    async def states(self, open_workers: OpenWorkers) -> AsyncIterator[tuple[StateUnderTest, StateUnderTest]]:
        """The request states of two workers."""
        async with open_workers() as pair:
            yield pair

    @pytest.fixture
    def tool(self) -> Tool:
        """The tool of both workers."""
        return Tool()

    @pytest.fixture
    def workers(self, states: tuple[StateUnderTest, StateUnderTest], tool: Tool) -> tuple[Worker, Worker]:
        """Two workers."""
        first, second = states
        return Worker(first, tool), Worker(second, tool)

    async def test_answer_on_the_same_worker_takes_effect(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """The handler receives its own state in clear."""
        result = await workers[0].answer(await workers[0].ask())
        assert result["content"][0]["text"] == "effect 1"
        assert tool.states == [SECRET_STATE]

    async def test_answer_on_another_worker_takes_effect(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """A question of one worker can be answered on the other, in both directions."""
        await workers[1].answer(await workers[0].ask())
        await workers[0].answer(await workers[1].ask())
        assert tool.states == [SECRET_STATE, SECRET_STATE]

    async def test_state_on_the_wire_is_not_readable(self, workers: tuple[Worker, Worker]) -> None:
        """A client cannot read the state, and two states differ."""
        first, second = [await workers[0].ask() for _ in range(2)]
        assert "secret" not in first
        assert first != second

    async def test_changed_state_is_refused(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """No state with a changed, missing or additional character is opened."""
        state = await workers[0].ask()
        changed = [
            state[:place] + ("A" if state[place] != "A" else "B") + state[place + 1 :] for place in range(len(state))
        ]
        for each in (*changed, state[:-1], f"{state}A", "", "v1.", SECRET_STATE):
            assert (await refusal_of(workers[1].answer(each))).code == INVALID_PARAMS
        assert tool.effects == []

    @pytest.mark.parametrize(
        "other",
        [{"arguments": {"amount": 5000, "to": "bob"}}, {"name": "delete"}, {"method": "prompts/get"}],
        ids=["arguments", "tool", "method"],
    )
    async def test_state_of_another_request_is_refused(
        self, workers: tuple[Worker, Worker], tool: Tool, other: dict[str, Any]
    ) -> None:
        """A state belongs to its method, target and arguments."""
        state = await workers[0].ask()
        assert (await refusal_of(workers[1].answer(state, **other))).code == INVALID_PARAMS
        assert tool.effects == []

    @pytest.mark.parametrize(("owner", "other"), [("alice", "bob"), ("alice", None), (None, "bob")])
    async def test_state_of_another_principal_is_refused(
        self, workers: tuple[Worker, Worker], tool: Tool, owner: str | None, other: str | None
    ) -> None:
        """A state belongs to its principal, also where one of the two has none."""
        state = await workers[0].ask(principal=owner)
        assert (await refusal_of(workers[1].answer(state, principal=other))).code == INVALID_PARAMS
        assert tool.effects == []

    async def test_state_of_another_service_is_refused(
        self, states: tuple[StateUnderTest, StateUnderTest], workers: tuple[Worker, Worker], tool: Tool
    ) -> None:
        """A state belongs to the service of its name."""
        other = Worker(states[1], tool, "another service")
        assert (await refusal_of(other.answer(await workers[0].ask()))).code == INVALID_PARAMS
        assert tool.effects == []

    async def test_refusals_on_the_wire_are_alike(self, workers: tuple[Worker, Worker]) -> None:
        """A client does not learn why its state was refused."""
        state = await workers[0].ask(principal="alice")
        errors = [
            await refusal_of(workers[1].answer("v1.AAAA", principal="alice")),
            await refusal_of(workers[1].answer(state, principal="bob")),
            await refusal_of(workers[1].answer(state, principal="alice", name="delete")),
        ]
        assert len({(error.code, error.message, str(error.data)) for error in errors}) == 1

    async def test_requests_without_state_pass(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """Other methods are not touched."""
        result = await workers[0].send(method="tools/list", inputResponses=YES)
        assert result["content"]
        assert tool.effects == [YES]


class SingleUseConformance(RequestStateConformance):
    """Each answer takes effect once, on whichever workers it arrives, and each repetition gets its outcome."""

    async def test_repeated_answer_takes_effect_once(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """Repetitions on both workers get the recorded result."""
        state = await workers[0].ask()
        results = [await worker.answer(state) for worker in (workers[1], workers[0], workers[1])]
        assert [result["content"][0]["text"] for result in results] == ["effect 1"] * 3
        assert len(tool.effects) == 1

    async def test_concurrent_answers_take_effect_once(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """Repetitions during the first use wait for its result."""
        tool.gate = asyncio.Event()
        state = await workers[0].ask()
        async with anyio.create_task_group() as tasks:
            results: list[str] = []

            async def answer(worker: Worker) -> None:
                results.append((await worker.answer(state))["content"][0]["text"])

            for worker in (*workers, *workers):
                tasks.start_soon(answer, worker)
            await tool.started.wait()
            await anyio.sleep(0.1)  # The others arrive meanwhile.
            tool.gate.set()
        assert results == ["effect 1"] * 4
        assert len(tool.effects) == 1

    async def test_members_in_another_order_are_the_same_answer(
        self, workers: tuple[Worker, Worker], tool: Tool
    ) -> None:
        """The order of members has no meaning in JSON."""
        state = await workers[0].ask()
        await workers[0].answer(state, {"a": 1, "b": 2})
        await workers[1].answer(state, {"b": 2, "a": 1})
        assert len(tool.effects) == 1

    async def test_other_answer_is_refused(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """The first answer stands, on both workers."""
        state = await workers[0].ask()
        await workers[0].answer(state, YES)
        for worker in workers:
            assert (await refusal_of(worker.answer(state, NO))).code == INVALID_PARAMS
        assert tool.effects == [YES]

    async def test_other_answer_during_the_first_use_is_refused(
        self, workers: tuple[Worker, Worker], tool: Tool
    ) -> None:
        """Another answer does not wait."""
        tool.gate = asyncio.Event()
        state = await workers[0].ask()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(workers[0].answer, state)
            await tool.started.wait()
            for worker in workers:
                assert (await refusal_of(worker.answer(state, NO))).code == INVALID_PARAMS
            tool.gate.set()
        assert tool.effects == [YES]

    async def test_two_questions_have_answers_of_their_own(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """Two equal requests are two questions, and each may be answered."""
        for state in [await workers[0].ask(), await workers[0].ask()]:
            await workers[1].answer(state)
        assert len(tool.effects) == 2

    async def test_repeated_answer_gets_the_recorded_error(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """An error is an outcome, too: the effect may have happened."""
        tool.error = MCPError(-32055, "the bank is closed", {"until": "monday"})
        state = await workers[0].ask()
        errors = [await refusal_of(worker.answer(state)) for worker in (*workers, *workers)]
        assert {(error.code, error.message, str(error.data)) for error in errors} == {
            (-32055, "the bank is closed", "{'until': 'monday'}")
        }
        assert len(tool.effects) == 1

    async def test_repeated_answer_gets_an_error_after_an_exception(
        self, workers: tuple[Worker, Worker], tool: Tool
    ) -> None:
        """An exception of the handler is recorded without its text."""
        tool.error = ValueError("the password is 4711")
        state = await workers[0].ask()
        with pytest.raises(ValueError, match="4711"):
            await workers[0].answer(state)
        assert "4711" not in str((await refusal_of(workers[1].answer(state))).error)
        assert len(tool.effects) == 1

    async def test_answer_whose_first_use_was_cancelled_is_not_run_again(
        self, workers: tuple[Worker, Worker], tool: Tool
    ) -> None:
        """It may have taken effect before the client disconnected."""
        tool.gate = asyncio.Event()
        state = await workers[0].ask()
        task = asyncio.ensure_future(workers[0].answer(state))
        await tool.started.wait()
        task.cancel()
        await asyncio.wait({task})
        for worker in workers:
            error = await refusal_of(worker.answer(state))
            assert error.code != INVALID_PARAMS
            assert "may have taken effect" in error.message
        assert tool.effects == []

    async def test_repeated_answer_gets_the_same_next_question(
        self, workers: tuple[Worker, Worker], tool: Tool
    ) -> None:
        """The result of an answer may be another question, whose state is single, too."""
        tool.rounds = 2
        first = await workers[0].ask()
        second = [str((await worker.answer(first))["requestState"]) for worker in workers]
        assert second[0] == second[1]
        for worker in workers:
            assert (await worker.answer(second[0]))["content"][0]["text"] == "effect 2"
        assert len(tool.effects) == 2

    async def test_recorded_result_is_for_its_principal_only(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """Another principal with the same state and answer does not get the result."""
        state = await workers[0].ask(principal="alice")
        await workers[0].answer(state, principal="alice")
        assert (await refusal_of(workers[1].answer(state, principal="bob"))).code == INVALID_PARAMS
        assert len(tool.effects) == 1

    async def test_question_without_state_is_answered_once(self, workers: tuple[Worker, Worker], tool: Tool) -> None:
        """A question without a state of the handler is single, too. The handler receives none."""
        tool.question = {}
        state = await workers[0].ask()
        results = [await worker.answer(state) for worker in (*workers, *workers)]
        assert {result["content"][0]["text"] for result in results} == {"effect 1"}
        assert tool.states == [None]
