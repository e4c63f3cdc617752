"""Request states with one fault each, under the suites. `test_conformance_suite.py` runs this, to fail."""

import base64
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.request_state import InvalidRequestState, RequestStateBoundary, RequestStateSecurity
from mcp.shared.exceptions import MCPError
from redis import asyncio as aioredis

from mcp_eventscope.request_state import answers, outcomes
from mcp_eventscope.request_state.adapter import PolicyRequestState
from mcp_eventscope.request_state.answers import RedisAnswers
from mcp_eventscope.request_state.facts import AnswerEnd, StateRefusal
from mcp_eventscope.request_state.middleware import RequestStateMiddleware
from mcp_eventscope.request_state.ring import MALFORMED, KeyRing
from mcp_eventscope.request_state.store import RedisRequestState
from mcp_eventscope.testing import SingleUseConformance, request_state
from mcp_eventscope.testing.request_state import OpenWorkers, StateUnderTest, Tool, principal_of
from support.request_states import SECRET, state_workers


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait in vain for a short time."""
    monkeypatch.setattr(request_state, "PATIENCE", 2.0)


class OnFake(SingleUseConformance):
    """The suites on a fake server, with a fault that `inject` gives all workers."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""

    @pytest.fixture
    def open_workers(
        self, fake_client: aioredis.Redis, key_prefix: str, tool: Tool, monkeypatch: pytest.MonkeyPatch
    ) -> OpenWorkers:
        """Two workers with the fault."""

        @asynccontextmanager
        async def open_pair() -> AsyncIterator[tuple[StateUnderTest, StateUnderTest]]:
            type(self).inject(monkeypatch)
            async with state_workers(fake_client, key_prefix, tool, keys=[SECRET], wait_timeout=5) as (one, other):
                yield one.state, other.state

        return open_pair


class TestSharedKeysOfTheSDK(SingleUseConformance):
    """The SDK's policy with shared keys: an answer takes effect as often as it is sent."""

    @pytest.fixture
    def open_workers(self) -> OpenWorkers:
        """Two workers with the same keys."""

        @asynccontextmanager
        async def open_pair() -> AsyncIterator[tuple[StateUnderTest, StateUnderTest]]:
            policies = [RequestStateSecurity(keys=[SECRET], bind_principal=principal_of) for _ in range(2)]
            yield PolicyRequestState(policies[0]), PolicyRequestState(policies[1])

        return open_pair


class TestEphemeralKeysOfTheSDK(SingleUseConformance):
    """The SDK's default: each worker has a key of its own."""

    @pytest.fixture
    def open_workers(self) -> OpenWorkers:
        """Two workers with their own keys."""

        @asynccontextmanager
        async def open_pair() -> AsyncIterator[tuple[StateUnderTest, StateUnderTest]]:
            yield tuple(PolicyRequestState(RequestStateSecurity.ephemeral()) for _ in range(2))  # type: ignore[misc]

        return open_pair


class TestReadable(OnFake):
    """States are encoded, and not sealed."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        numbers = itertools.count()

        def unseal(_: KeyRing, token: str) -> bytes:
            try:
                return base64.b64decode(token.partition(".")[2])
            except ValueError:
                raise InvalidRequestState(MALFORMED) from None

        def seal(_: KeyRing, payload: bytes) -> str:
            claims = {**json.loads(payload), "n": next(numbers)}
            return f"secret.{base64.b64encode(json.dumps(claims).encode()).decode()}"

        patch.setattr(KeyRing, "seal", seal)
        patch.setattr(KeyRing, "unseal", unseal)


class TestSealedInside(OnFake):
    """The handler receives the token."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        opened = RequestStateMiddleware._opened

        async def sealed(self: Any, ctx: Any, call_next: CallNext, trail: Any, token: str) -> HandlerResult:
            return await opened(
                self, replace(ctx, params={**ctx.params, "requestState": token}), call_next, trail, token
            )

        patch.setattr(RequestStateMiddleware, "_opened", sealed)


class TestUnbound(OnFake):
    """States are not bound to their request."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        verify = RequestStateBoundary.__call__

        async def unbound(
            self: RequestStateBoundary, ctx: ServerRequestContext[Any, Any], call_next: CallNext
        ) -> HandlerResult:
            params: Mapping[str, Any] = ctx.params or {}
            own = {name: params[name] for name in ("name", "arguments")}
            fixed = replace(ctx, method="tools/call", params={**params, "name": "x", "arguments": {}})
            return await verify(
                self, fixed, lambda opened: call_next(replace(ctx, params={**(opened.params or {}), **own}))
            )

        patch.setattr(RequestStateBoundary, "__call__", unbound)


class TestImpersonal(OnFake):
    """States are not bound to their principal."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        patch.setattr(RequestStateMiddleware, "_principal", lambda _, __: None)


class TestCommon(OnFake):
    """States are not bound to their service."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        create = RedisRequestState.middleware
        patch.setattr(RedisRequestState, "middleware", lambda self, _: create(self, "any"))


class TestTalkative(OnFake):
    """A client learns why its state was refused."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        answered = RequestStateMiddleware._answered

        async def talkative(self: Any, ctx: Any, call_next: CallNext, trail: Any, token: str) -> HandlerResult:
            try:
                return await answered(self, ctx, call_next, trail, token)
            except MCPError as error:
                if trail.opened:
                    raise
                raise MCPError(error.code, self._reason(trail)) from None

        patch.setattr(RequestStateMiddleware, "_answered", talkative)


class TestIntrusive(OnFake):
    """Requests of other methods need a state."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        run = RequestStateMiddleware.__call__

        async def intrusive(self: Any, ctx: Any, call_next: CallNext) -> HandlerResult:
            if "inputResponses" in ctx.params and "requestState" not in ctx.params:
                raise outcomes.other_answer()
            return await run(self, ctx, call_next)

        patch.setattr(RequestStateMiddleware, "__call__", intrusive)


class TestLocal(OnFake):
    """Answers are recorded in the process only."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""

        async def ours(_: RedisAnswers, run: Any, __: float) -> tuple[str, str, str, bytes]:
            return run.name, "", run.answer, b""

        patch.setattr(RedisAnswers, "_entry", ours)


class TestImpatient(OnFake):
    """A repetition does not wait for the first use."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        attempt = RedisAnswers._attempt

        async def impatient(self: RedisAnswers, run: Any, until: float) -> Any:
            found = await attempt(self, run, 0.0 if run.state in self._runs else until)
            return answers._Claim(self, run) if found is StateRefusal.IN_PROGRESS else found

        patch.setattr(RedisAnswers, "_attempt", impatient)


class TestLiteral(OnFake):
    """Answers with members in another order differ."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        patch.setattr(outcomes, "digest_of_answer", lambda params: json.dumps(params.get("inputResponses")))


class TestIndifferent(OnFake):
    """Any answer is a repetition of the first one."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        patch.setattr(outcomes, "digest_of_answer", lambda _: "")


class TestOneForAll(OnFake):
    """Equal requests share their answer."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        patch.setattr(outcomes, "digest_of", lambda _: "state")


class TestForgivingErrors(OnFake):
    """An error is not recorded."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        _release_instead(patch, AnswerEnd.FAILED)


class TestForgivingCancellation(OnFake):
    """A cancelled answer may be sent again, as if it had no effect."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        _release_instead(patch, AnswerEnd.CANCELLED)


def _release_instead(patch: pytest.MonkeyPatch, forgiven: AnswerEnd) -> None:
    settled = RequestStateMiddleware._settled

    async def forgiving(self: Any, trail: Any, outcome: bytes, end: AnswerEnd) -> bool:
        if end is not forgiven or trail.answer is None:
            return await settled(self, trail, outcome, end)
        run, held = trail.answer._run, trail.answer._answers
        del held._runs[run.state]
        await held._backend.redis.delete(held._backend.keys.answer(run.state))
        return True

    patch.setattr(RequestStateMiddleware, "_settled", forgiving)


class TestLeaking(OnFake):
    """The text of an exception is recorded, and sent."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        encode = outcomes.encode_error

        def leaking(error: Exception) -> bytes:
            return encode(error if isinstance(error, MCPError) else MCPError(-32603, str(error)))

        patch.setattr(outcomes, "encode_error", leaking)


class TestResealing(OnFake):
    """A recorded question gets another state each time."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        serve = outcomes.serve
        numbers = itertools.count()

        def resealed(outcome: bytes) -> dict[str, Any]:
            result = serve(outcome)
            if "requestState" in result:
                result["requestState"] += f"{next(numbers)}"
            return result

        patch.setattr(outcomes, "serve", resealed)


class TestServingAnyone(OnFake):
    """A recorded result is served before the state is verified."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        results: dict[str, HandlerResult] = {}
        answered = RequestStateMiddleware._answered

        async def serving(self: Any, ctx: Any, call_next: CallNext, trail: Any, token: str) -> HandlerResult:
            if token not in results:
                results[token] = await answered(self, ctx, call_next, trail, token)
            return results[token]

        patch.setattr(RequestStateMiddleware, "_answered", serving)


class TestStateless(OnFake):
    """A question without a state has none on the wire."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""

        async def asked(_: Any, ctx: Any, call_next: CallNext) -> HandlerResult:
            return await call_next(ctx)

        patch.setattr(RequestStateMiddleware, "_asked", asked)
