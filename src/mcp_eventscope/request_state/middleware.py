"""The middleware that opens and seals request states, and lets each answer take effect once."""

import contextlib
import json
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import anyio
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.request_state import (
    InvalidRequestState,
    RequestStateBoundary,
    RequestStateCodec,
    RequestStateSecurity,
)
from mcp_types import InputRequiredResult
from mcp_types.methods import INPUT_REQUIRED_METHODS, is_input_required

from mcp_eventscope.request_state import outcomes
from mcp_eventscope.request_state.facts import (
    AnswerEnd,
    AnswerEnded,
    RequestStateFact,
    StateOpened,
    StateRefusal,
    StateRefused,
)
from mcp_eventscope.request_state.protocol import Answer, Answers
from mcp_eventscope.request_state.ring import UNKNOWN_KEY

MAX_RESULT_BYTES = 8 * 1024 * 1024
"""Maximum size of a recorded result."""
_STATELESS = "\0eventscope:no-state"
"""The state of a question whose handler gave it none: each answer belongs to one state."""


@dataclass(slots=True)
class _Trail:
    """How far the SDK's boundary has come with a request. It hides the reason of a refusal."""

    payload: bytes | None = None
    """The opened state; None: it was not opened."""
    unknown_key: bool = False
    bound: bool = False
    """Whether the principal was asked for, which is the boundary's last check."""
    opened: bool = False
    """Whether the boundary let the request pass."""
    answer: Answer | None = None
    repeated: bytes | None = None
    began: float = field(default_factory=perf_counter)


_trail: ContextVar[_Trail | None] = ContextVar("eventscope_request_state", default=None)


class _ObservedCodec:
    """Notes in the trail how a token was opened."""

    def __init__(self, codec: RequestStateCodec) -> None:
        self._codec = codec

    def seal(self, payload: bytes) -> str:
        return self._codec.seal(payload)

    def unseal(self, token: str) -> bytes:
        trail = _trail.get()
        try:
            payload = self._codec.unseal(token)
        except InvalidRequestState as error:
            if trail is not None:
                trail.unknown_key = str(error) == UNKNOWN_KEY
            raise
        if trail is not None:
            trail.payload = payload
        return payload


class RequestStateMiddleware:
    """A `ServerMiddleware` around the SDK's `RequestStateBoundary`, whose place it takes.

    The boundary verifies each state before its answer is claimed, hence a recorded result goes only to the principal,
    the method and the arguments of its state. The result is recorded as sealed: a repeated answer whose result is
    another question gets the same state again.

    Args:
        security: The policy.
        audience: The name of the server.
        answers: Lets each answer take effect once; None: an answer takes effect as often as it is sent.
        emit: Called with each fact. It does not raise.
    """

    protects_request_state = True
    """For `installation.install`, which installs one."""

    def __init__(
        self,
        security: RequestStateSecurity,
        audience: str,
        answers: Answers | None,
        emit: Callable[[RequestStateFact], None],
    ) -> None:
        self._answers = answers
        self._emit = emit
        self._audience = audience
        self._bind = security.bind_principal
        observed = RequestStateSecurity(
            codec=_ObservedCodec(security.codec), ttl=security.ttl, bind_principal=self._principal, audience=audience
        )
        self._boundary = RequestStateBoundary(observed, default_audience=audience)

    def _principal(self, ctx: ServerRequestContext[Any, Any]) -> str | None:
        trail = _trail.get()
        if trail is not None:
            trail.bound = True
        return None if self._bind is None else self._bind(ctx)

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Handle one request; see `ServerMiddleware`.

        Raises:
            MCPError: The state or the answer was refused, or the handler raised it.
        """
        if ctx.method not in INPUT_REQUIRED_METHODS:
            return await call_next(ctx)
        state = None if ctx.params is None else ctx.params.get("requestState")
        if self._answers is not None and isinstance(state, str):
            await self._answers.prepare(state)
        trail = _Trail()
        reset = _trail.set(trail)
        try:
            if state is None:
                return await self._boundary(ctx, lambda ctx: self._asked(ctx, call_next))
            return await self._answered(ctx, call_next, trail, str(state))
        finally:
            _trail.reset(reset)

    async def _asked(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Run the handler. A question without a state gets one."""
        result = await call_next(ctx)
        if self._answers is None or not is_input_required(result):
            return result
        self._answers.require_running()
        if isinstance(result, InputRequiredResult):
            return (
                result if result.request_state is not None else result.model_copy(update={"request_state": _STATELESS})
            )
        return result if result.get("requestState") is not None else {**result, "requestState": _STATELESS}

    async def _answered(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext, trail: _Trail, token: str
    ) -> HandlerResult:
        """Open the state, and run the handler or serve the recorded outcome."""
        try:
            result = await self._boundary(ctx, lambda ctx: self._opened(ctx, call_next, trail, token))
        except Exception as error:
            if not trail.opened:
                self._emit(StateRefused(self._reason(trail)))
            if await self._settled(trail, outcomes.encode_error(error), AnswerEnd.FAILED):
                raise
        except BaseException:  # Cancelled.
            await self._settled(trail, outcomes.cancelled(), AnswerEnd.CANCELLED)
            raise
        else:
            if trail.repeated is None and await self._settled(trail, *_outcome_of(result)):
                return result
        return outcomes.serve(trail.repeated or outcomes.not_recorded())

    async def _opened(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext, trail: _Trail, token: str
    ) -> HandlerResult:
        """Claim the answer to an opened state, and run the handler."""
        params = dict(ctx.params or {})
        trail.opened = True
        self._emit(StateOpened())
        if self._answers is not None:
            claim = await self._answers.claim(outcomes.digest_of(token), outcomes.digest_of_answer(params))
            if isinstance(claim, bytes):
                trail.repeated = claim
                return {}
            trail.answer, trail.began = claim, perf_counter()
        if params.get("requestState") == _STATELESS:
            del params["requestState"]
        return await self._asked(replace(ctx, params=params), call_next)

    async def _settled(self, trail: _Trail, outcome: bytes, end: AnswerEnd) -> bool:
        """Record the outcome of a first use, before the response is sent. Without one there is nothing to record.

        Returns:
            Whether it stands. Otherwise this worker was declared dead, and `trail.repeated` is the outcome.
        """
        if trail.answer is None:
            return True
        with anyio.CancelScope(shield=True):
            stands = await trail.answer.settle(outcome)
        if stands != outcome:
            trail.repeated, end = stands, AnswerEnd.WORKER_LOST
        self._emit(AnswerEnded(end, perf_counter() - trail.began))
        return stands == outcome

    def _reason(self, trail: _Trail) -> StateRefusal:
        """The reason for which the boundary refused a state: it checks in the order of this function."""
        if trail.payload is None:
            return StateRefusal.UNKNOWN_KEY if trail.unknown_key else StateRefusal.MALFORMED
        if trail.bound:
            return StateRefusal.PRINCIPAL
        try:
            claims = json.loads(trail.payload)
            expires, issued, audience = float(claims["exp"]), float(claims["iat"]), claims.get("aud")
        except (ValueError, KeyError, TypeError, AttributeError):
            return StateRefusal.MALFORMED
        now = time.time()
        if not (issued <= now + _FUTURE_SECONDS and now < expires):
            return StateRefusal.EXPIRED
        return StateRefusal.AUDIENCE if audience != self._audience else StateRefusal.BINDING


_FUTURE_SECONDS = 60.0
"""Seconds by which the SDK lets a state come from the future."""


def _outcome_of(result: HandlerResult) -> tuple[bytes, AnswerEnd]:
    """The outcome that is recorded for a result."""
    with contextlib.suppress(ValueError):
        outcome = outcomes.encode_result(result)
        if len(outcome) <= MAX_RESULT_BYTES:
            return outcome, AnswerEnd.COMPLETED
    return outcomes.not_recorded(), AnswerEnd.TOO_LARGE
