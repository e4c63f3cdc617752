"""Policies of the SDK as request states: without shared keys of ours, and without single use."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from mcp.server.context import ServerMiddleware
from mcp.server.request_state import RequestStateCodec, RequestStateSecurity

from mcp_eventscope.request_state import installation
from mcp_eventscope.request_state.facts import KeySource, RequestStateFact, StateSealed
from mcp_eventscope.request_state.middleware import RequestStateMiddleware


class PolicyRequestState:
    """A `RequestStateSecurity` of the SDK as a `RequestState`.

    Args:
        security: The policy. An answer to its states takes effect as often as it is sent.
    """

    def __init__(self, security: RequestStateSecurity) -> None:
        self._security = security
        self._callbacks: list[Callable[[RequestStateFact], None]] = []

    @property
    def audience(self) -> str | None:
        """The audience of the policy; None: the name of the server."""
        return self._security.audience

    def install(self, server: object) -> None:
        """Protect the request states of a server; see `RedisRequestState.install`."""
        installation.install(self, server)

    def middleware(self, audience: str) -> ServerMiddleware[Any]:
        """Create the middleware; see `RequestState.middleware`."""
        policy = self._security
        security = RequestStateSecurity(
            codec=_Codec(policy.codec, self._emit),
            ttl=policy.ttl,
            bind_principal=policy.bind_principal,
            audience=policy.audience,
        )
        return RequestStateMiddleware(security, audience, None, self._emit)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Nothing runs in the background."""
        return nullcontext()

    def observe(self, callback: Callable[[RequestStateFact], None]) -> None:
        """Register a callback for facts; see `RequestState.observe`."""
        self._callbacks.append(callback)

    def _emit(self, fact: RequestStateFact) -> None:
        for callback in self._callbacks:
            with contextlib.suppress(Exception):
                callback(fact)


class _Codec:
    def __init__(self, codec: RequestStateCodec, emit: Callable[[RequestStateFact], None]) -> None:
        self._codec = codec
        self._emit = emit

    def seal(self, payload: bytes) -> str:
        token = self._codec.seal(payload)
        self._emit(StateSealed(KeySource.OTHER, None))
        return token

    def unseal(self, token: str) -> bytes:
        return self._codec.unseal(token)
