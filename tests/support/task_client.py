"""Clients of tasks: raw requests of the modern revision, and steps that tests share."""

from collections.abc import Callable
from typing import Any

import httpx2
from mcp.client import Client, ClientRequestContext
from mcp.types import CallToolResult, ElicitRequestParams, ElicitResult, TextContent

from mcp_eventscope.tasks.wire import IDENTIFIER, CreateTaskResult
from support.waiting import until

MODERN = "2026-07-28"


class RawTasks:
    """Sends requests of the tasks extension as they are on the wire.

    Args:
        http: The client of all requests.
        url: The endpoint.
        capabilities: The client's; by default the extension and elicitation.
        headers: Further headers, for example of authentication.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        url: str,
        *,
        capabilities: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._http = http
        self._url = url
        self._capabilities = (
            {"extensions": {IDENTIFIER: {}}, "elicitation": {}} if capabilities is None else capabilities
        )
        self._headers = headers or {}

    def at(self, url: str) -> "RawTasks":
        """The same client at another worker."""
        return RawTasks(self._http, url, capabilities=self._capabilities, headers=self._headers)

    async def request(self, method: str, params: dict[str, Any], name: str) -> dict[str, Any]:
        """Send a request, and return the JSON-RPC response."""
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": self._capabilities,
        }
        response = await self._http.post(
            self._url,
            json={"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}},
            headers={
                "accept": "application/json, text/event-stream",
                "mcp-protocol-version": MODERN,
                "mcp-method": method,
                "mcp-name": name,
                **self._headers,
            },
        )
        body: dict[str, Any] = response.json()
        return body

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool; returns the response."""
        return await self.request("tools/call", {"name": tool, "arguments": arguments}, tool)

    async def start(self, tool: str, **arguments: Any) -> str:
        """Call a tool that runs as a task; returns the task's id."""
        response = await self.call(tool, **arguments)
        assert response.get("result", {}).get("resultType") == "task", response
        task_id: str = response["result"]["taskId"]
        return task_id

    async def get(self, task_id: str) -> dict[str, Any]:
        """`tasks/get`; returns the response."""
        return await self.request("tasks/get", {"taskId": task_id}, task_id)

    async def cancel(self, task_id: str) -> dict[str, Any]:
        """`tasks/cancel`; returns the response."""
        return await self.request("tasks/cancel", {"taskId": task_id}, task_id)

    async def update(self, task_id: str, **answers: dict[str, Any]) -> dict[str, Any]:
        """`tasks/update`; returns the response."""
        return await self.request("tasks/update", {"taskId": task_id, "inputResponses": answers}, task_id)

    async def until(self, task_id: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Poll until the task fulfils a condition; responses with an error are repeated if they ask for that."""
        task: dict[str, Any] = {}

        async def holds() -> bool:
            nonlocal task
            response = await self.get(task_id)
            if "error" in response:
                assert response["error"].get("data") == {"retryable": True}, response
                return False
            task = response["result"]
            return bool(condition(task))

        await until(holds, every=0.02)
        return task

    async def final(self, task_id: str) -> dict[str, Any]:
        """Poll until the task has a final status; returns it."""
        return await self.until(task_id, lambda task: task["status"] not in {"working", "input_required"})


async def accept(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    """Answer each elicitation with a name."""
    del context, params
    return ElicitResult(action="accept", content={"name": "Ada"})


async def start(client: Client, tool: str, **arguments: Any) -> str:
    """Call a tool that runs as a task with the SDK's client; returns the task's id."""
    created = await client.session.call_tool(tool, arguments, allow_claimed=True)
    assert isinstance(created, CreateTaskResult)
    return created.task_id


def text_of(result: CallToolResult) -> str:
    """The text of a result."""
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text
