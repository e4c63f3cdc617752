"""Conformance suites for event stores, buses and request states, bare or decorated (the extra `testing`).

A suite is a class of pytest tests to inherit, which tests the fixture `store`. It requires only the SDK's `EventStore`
interface and AnyIO's pytest plugin, which comes with the SDK:

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

The tests of `SharedStoreConformance` start processes, which import the function `open_store` by its name: define it at
the top level of an importable module. Give each test an empty store.

A store that differs on purpose overrides the test, with a reason:

```python
    @pytest.mark.skip(reason="the column is 64 kB wide")
    def test_one_mebibyte_is_kept(self) -> None: ...
```

`SessionStoreConformance` is for a store with separate stores of sessions (`for_session`), which returns ids immediately
and stores in the background. It opens two stores on the same data: override its fixture `open_store`, and the hooks
`outage` and `declare_dead` if the store supports these tests.

`SubscriptionBusConformance` tests the fixture `bus`: any `SubscriptionBus`. `SharedSubscriptionBusConformance` opens
several buses with the fixture `open_bus`, each of which acts as a worker; its hook `outage` is optional.

`TaskStoreConformance` is for a task store (`mcp_eventscope.TaskStore`). Override its fixture `stores` with two stores
on the same data, or with one store twice, and its hooks `declare_dead` and `lose_data` if the store supports these
tests.

`RequestStateConformance` is for the request states of two workers of one service, also with a policy of the SDK;
`SingleUseConformance` adds that each answer takes effect once. Both open the workers with the fixture `open_workers`.

`messages()` and `json_values()` are the Hypothesis strategies of the suites, for your own tests.
"""

import pytest

from mcp_eventscope.sdk_versions import TESTING, require_sdk

require_sdk("mcp_eventscope.testing", TESTING)

# Before the imports, so that a failing assertion shows the compared values, as in a test file.
pytest.register_assert_rewrite(
    "mcp_eventscope.testing.conformance",
    "mcp_eventscope.testing.request_state",
    "mcp_eventscope.testing.session_pair",
    "mcp_eventscope.testing.session_store",
    "mcp_eventscope.testing.sessions",
    "mcp_eventscope.testing.shared",
    "mcp_eventscope.testing.subscriptions",
    "mcp_eventscope.testing.tasks",
)

from mcp_eventscope.testing.collected import Collected, on_the_wire, replay  # noqa: E402 - after the lines above
from mcp_eventscope.testing.conformance import EventStoreConformance  # noqa: E402
from mcp_eventscope.testing.request_state import (  # noqa: E402
    OpenWorkers,
    RequestStateConformance,
    SingleUseConformance,
    StateUnderTest,
)
from mcp_eventscope.testing.session_pair import OpenSessionStore, Pair, SessionRoot  # noqa: E402
from mcp_eventscope.testing.session_store import SessionStoreConformance  # noqa: E402
from mcp_eventscope.testing.shared import OpenStore, SharedStoreConformance  # noqa: E402
from mcp_eventscope.testing.strategies import json_values, messages  # noqa: E402
from mcp_eventscope.testing.subscriptions import (  # noqa: E402
    OpenBus,
    SharedSubscriptionBusConformance,
    SubscriptionBusConformance,
)
from mcp_eventscope.testing.tasks import TaskStoreConformance, TaskStores  # noqa: E402

__all__ = [
    "Collected",
    "EventStoreConformance",
    "OpenBus",
    "OpenSessionStore",
    "OpenStore",
    "OpenWorkers",
    "Pair",
    "RequestStateConformance",
    "SessionRoot",
    "SessionStoreConformance",
    "SharedStoreConformance",
    "SharedSubscriptionBusConformance",
    "SingleUseConformance",
    "StateUnderTest",
    "SubscriptionBusConformance",
    "TaskStoreConformance",
    "TaskStores",
    "json_values",
    "messages",
    "on_the_wire",
    "replay",
]
