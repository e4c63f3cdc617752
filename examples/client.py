"""A client for the quickstart; if its connection breaks, the call continues."""

import asyncio
import sys

from mcp import Client


async def main(url: str) -> None:
    """Call the tool and print its progress."""

    async def show(progress: float, total: float | None, message: str | None) -> None:
        print(progress, "of", total, message or "")

    # mode="legacy": the default revision, 2026-07-28, has no resumption.
    async with Client(url, mode="legacy") as client:
        result = await client.call_tool("count", {"to": 10}, progress_callback=show)
        print(result.structured_content)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/mcp"))
