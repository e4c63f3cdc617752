"""Clients that call the server of the stack repeatedly.

python load.py [URL] [CLIENTS] [SECONDS]
"""

import random
import sys

import anyio
from mcp.client import Client

DEFAULTS = ["http://127.0.0.1:8000/mcp", "10", "inf"]
PAGES = (5, 40)


async def call(url: str) -> None:
    """Open a session, request three reports, and close it."""
    # "legacy": revisions up to 2025-11-25; later ones have no resumption.
    async with Client(url, mode="legacy") as client:
        for _ in range(3):
            pages = random.randint(*PAGES)  # noqa: S311 - not a secret
            await client.call_tool("report", {"pages": pages}, progress_callback=read)


async def read(progress: float, total: float | None, message: str | None) -> None:
    """Ignore a page. Without a callback the server sends no progress."""


async def keep_calling(url: str) -> None:
    """Call forever; after a failure, try again."""
    while True:
        try:
            await call(url)
        except Exception as error:  # noqa: BLE001 - the load continues after any error
            print(f"a session failed: {type(error).__name__}", file=sys.stderr)
            await anyio.sleep(1)


async def main(*arguments: str) -> None:
    """Run the clients for the given time."""
    url, clients, seconds = [*arguments, *DEFAULTS[len(arguments) :]]
    with anyio.move_on_after(float(seconds)):
        async with anyio.create_task_group() as tasks:
            for _ in range(int(clients)):
                tasks.start_soon(keep_calling, url)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
