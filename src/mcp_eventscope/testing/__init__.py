"""A conformance suite for event stores of the MCP SDK: any of them, bare or decorated. Needs the extra `testing`.

The suite is a class of pytest tests that is inherited; what is tested is the fixture `store`. It asks for nothing but
the SDK's `EventStore`, and for no plugin but AnyIO's, which comes with the SDK:

```python
import contextlib
from collections.abc import AsyncIterator

import pytest
from mcp.server.streamable_http import EventStore

from mcp_eventscope.testing import EventStoreConformance, SharedStoreConformance


class TestMyStore(EventStoreConformance):
    ids_increase = False  # this store's ids are random

    @pytest.fixture
    async def store(self) -> AsyncIterator[EventStore]:
        async with MyStore() as store:
            yield store


@contextlib.asynccontextmanager
async def open_my_store(url: str) -> AsyncIterator[EventStore]:
    async with MyDatabaseStore(url) as store:
        yield store


class TestMyStoreOfSeveralProcesses(SharedStoreConformance):
    open_store = staticmethod(open_my_store)

    @pytest.fixture
    def url(self) -> str:
        return "postgresql:///test"
```

The tests of `SharedStoreConformance` start processes, which import the function given as `open_store` by its name: it
stands in a module that can be imported, at its top. Each test is to be given a store that holds nothing.

A store that differs on purpose overrides the test in question, and says why:

```python
    @pytest.mark.skip(reason="the column is 64 kB wide")
    def test_one_mebibyte_is_kept(self) -> None: ...
```

A store that hands out parts of sessions (`for_session`), returns ids immediately and stores in the background is held
to `SessionStoreConformance`, which opens two stores on the same data: override its fixture `open_store`, and the hooks
`outage` and `declare_dead` where the store can be tested for them.

`messages()` and `json_values()` are the Hypothesis strategies behind it, for tests of one's own.
"""

import pytest

# Before they are imported: a failing assertion then shows what it compared, as in a test file.
pytest.register_assert_rewrite(
    "mcp_eventscope.testing.conformance",
    "mcp_eventscope.testing.session_pair",
    "mcp_eventscope.testing.session_store",
    "mcp_eventscope.testing.sessions",
    "mcp_eventscope.testing.shared",
)

from mcp_eventscope.testing.collected import Collected, on_the_wire, replay  # noqa: E402 - after the line above
from mcp_eventscope.testing.conformance import EventStoreConformance  # noqa: E402
from mcp_eventscope.testing.session_pair import OpenSessionStore, Pair, SessionRoot  # noqa: E402
from mcp_eventscope.testing.session_store import SessionStoreConformance  # noqa: E402
from mcp_eventscope.testing.shared import OpenStore, SharedStoreConformance  # noqa: E402
from mcp_eventscope.testing.strategies import json_values, messages  # noqa: E402

__all__ = [
    "Collected",
    "EventStoreConformance",
    "OpenSessionStore",
    "OpenStore",
    "Pair",
    "SessionRoot",
    "SessionStoreConformance",
    "SharedStoreConformance",
    "json_values",
    "messages",
    "on_the_wire",
    "replay",
]
