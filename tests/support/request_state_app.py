"""The server of worker processes that ask their clients for input, without `http_app`."""

import json
import os
from typing import Annotated, Any

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Elicit, MCPServer, Resolve, Sample
from mcp.types import CreateMessageResult, SamplingMessage, TextContent
from pydantic import BaseModel
from redis import asyncio as aioredis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mcp_eventscope import InstrumentedRequestState, RedisEventStore, RedisRequestState, metrics_app
from mcp_eventscope.redis.client import connect
from mcp_eventscope.settings import URL_VARIABLE
from support.servers import HOST
from support.worker_app import CONTROL_VARIABLE, OPTIONS_VARIABLE


class Confirmation(BaseModel):
    """The answer of a user."""

    sure: bool


async def confirm(amount: int) -> Elicit[Confirmation]:
    """Ask the user."""
    return Elicit(f"Transfer {amount}?", Confirmation)


async def reason(amount: int) -> Sample:
    """Ask the client's model."""
    return Sample([SamplingMessage(role="user", content=TextContent(text=f"Why {amount}?"))], max_tokens=10)


class Tokens:
    """Each token is valid, and belongs to the subject of its name."""

    async def verify_token(self, token: str) -> AccessToken:
        """The access token of a subject."""
        return AccessToken(token=token, client_id="client", scopes=[], subject=token)


def app() -> Starlette:
    """The application of one worker."""
    options: dict[str, Any] = json.loads(os.environ[OPTIONS_VARIABLE])
    store = RedisEventStore(connect(os.environ[URL_VARIABLE]), key_prefix=options["key_prefix"], ttl=600)
    store.coordinator.lease = options["worker_lease"]
    state = InstrumentedRequestState(RedisRequestState(store.backend, **options.get("state", {})))
    control: aioredis.Redis = aioredis.Redis.from_url(
        os.environ[CONTROL_VARIABLE], decode_responses=True, socket_timeout=None
    )
    auth: dict[str, Any] = {}
    if options.get("auth"):
        url: Any = f"http://{HOST}"
        auth = {"token_verifier": Tokens(), "auth": AuthSettings(issuer_url=url, resource_server_url=url)}
    mcp: MCPServer[Any] = MCPServer("orders", log_level="WARNING", **auth)
    state.install(mcp)

    @mcp.tool()
    async def transfer(account: str, amount: int, answer: Annotated[Confirmation, Resolve(confirm)]) -> str:
        """Transfer an amount, after a question to the user."""
        if not answer.sure:
            return "not transferred"
        done = await control.incrby(f"account:{account}", amount)
        return f"{done} on {os.getpid()}"

    @mcp.tool()
    async def justify(account: str, amount: int, answer: Annotated[CreateMessageResult, Resolve(reason)]) -> str:
        """Transfer an amount, after a question to the client's model."""
        text = answer.content.text if isinstance(answer.content, TextContent) else "?"
        return f"{await control.incrby(f'account:{account}', amount)} since {text}"

    @mcp.tool()
    async def held(account: str, amount: int, answer: Annotated[Confirmation, Resolve(confirm)]) -> str:
        """Transfer an amount, and return when the test lets it."""
        assert answer.sure
        await control.incrby(f"account:{account}", amount)
        await control.set(f"runs:{account}", os.getpid())
        await control.blpop([f"go:{account}"])
        return "held"

    served = mcp.streamable_http_app()

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("")

    served.router.routes.insert(0, Route("/healthz", healthz))
    served.router.routes.insert(0, Route("/scraped", metrics_app()))
    return served
