"""Redis or a service refuses a large event: an error or a gap replaces it."""

import pytest

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.events import EventsLost, LossReason
from mcp_eventscope.store.messages import JSONRPCError, JSONRPCResponse
from mcp_eventscope.store.results import Gap
from support.messages import answer, note
from support.proxy import Proxy
from support.session_producers import SessionProducer, observed
from support.stores import until_settled
from support.valkeys import own_valkey

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

TTL = 600
TWO_MEBIBYTES = 2 << 20


@pytest.mark.parametrize("response", [True, False], ids=["response", "notification"])
@pytest.mark.parametrize("limit", ["proto-max-bulk-len", "service"])
async def test_session_event_above_a_limit_is_replaced(limit: str, *, response: bool) -> None:
    """An error or a gap takes its place; earlier and later events and other requests are stored."""
    with own_valkey() as server:
        proxy = Proxy(server.socket)
        if limit == "service":
            proxy.largest = 1 << 20
        else:
            server.set(proto_max_bulk_len=1 << 20)
        async with proxy.running(), connect(proxy.url) as client, connect(server.url) as direct:
            store, reader = RedisEventStore(client, ttl=TTL), RedisEventStore(direct, ttl=TTL)
            facts = observed(store)
            producer, other = SessionProducer(store), SessionProducer(store, request_id=2)
            for each in (producer, other):
                await each.append(None)
            await producer.append_next(2)
            if response:
                await producer.append(JSONRPCResponse(jsonrpc="2.0", id=1, result={"text": "x" * TWO_MEBIBYTES}))
            else:
                await producer.append(note(3, "x" * TWO_MEBIBYTES))
                await producer.append_next(2)
                await producer.append(answer())
            await other.append_next()
            await other.append(answer(2))
            await until_settled(store)
            (lost,) = facts.of(EventsLost)
            assert (lost.reason, lost.events) == (LossReason.REJECTED, 1)
            replayed, received = await producer.replayed(reader)
            assert (replayed.miss, replayed.completed, replayed.missing) == (None, True, 0 if response else 1)
            assert replayed.gaps == ({} if response else {Gap.REJECTED: 1})
            assert received.ids == [each for each in producer.ids[1:] if response or each != producer.ids[3]]
            assert isinstance(received.messages[-1], JSONRPCError) is response
            assert (await other.replayed(reader))[0].completed
            await other.check(reader)
            await store.flush()
