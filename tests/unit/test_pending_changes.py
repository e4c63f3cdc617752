"""The bounded set of changes that wait for Redis."""

import pytest
from mcp.server.subscriptions import ResourceUpdated, ToolsListChanged

from mcp_eventscope.subscriptions.event_codec import EverythingChanged
from mcp_eventscope.subscriptions.pending import MAX_URI_LENGTH, PendingChanges

A, B, C = (ResourceUpdated(uri) for uri in "abc")
EVERYTHING = EverythingChanged()


def pending(limit: int = 10, **changes: int) -> PendingChanges:
    """Pending changes of resources, with the time of each."""
    made = PendingChanges(limit)
    for uri, published in changes.items():
        made.add(ResourceUpdated(uri), published)
    return made


def test_equal_changes_are_one_with_the_time_of_the_first() -> None:
    """However often a resource changes during an outage, it takes the room of one."""
    changes = pending(a=1, b=2)
    assert changes.add(A, 3) == 0
    assert len(changes) == 2
    assert changes.take() == {A: 1, B: 2}


def test_change_that_was_taken_is_pending_again_when_it_is_added() -> None:
    """Removed before it is sent: a change in the meantime is not absorbed."""
    changes = pending(a=1)
    batch = changes.take()
    changes.add(A, 2)
    assert len(changes) == 1
    assert changes.put_back(batch) == 0
    assert changes.take() == {A: 1}


def test_changes_that_are_put_back_come_first() -> None:
    """The oldest change is sent first, also after a failure."""
    changes = pending(a=1)
    batch = changes.take()
    changes.add(B, 2)
    changes.put_back(batch)
    assert list(changes.take()) == [A, B]


def test_changes_beyond_the_limit_become_one_of_everything() -> None:
    """The number that it replaces is returned once; later changes are covered."""
    changes = pending(2, a=5, b=6)
    assert changes.add(C, 7) == 3
    assert changes.add(ToolsListChanged(), 8) == 0
    assert changes.take() == {EVERYTHING: 5}
    assert changes.add(A, 9) == 0
    assert changes.take() == {A: 9}


def test_changes_put_back_beyond_the_limit_become_one_of_everything() -> None:
    """Changes that were taken count again."""
    changes = pending(2, a=5, b=6)
    batch = changes.take()
    changes.add(C, 7)
    assert changes.put_back(batch) == 3
    assert changes.take() == {EVERYTHING: 5}


@pytest.mark.parametrize("everything_first", [True, False])
def test_everything_covers_what_is_put_back(*, everything_first: bool) -> None:
    """Either may be the older one."""
    changes = pending(1, a=1)
    batch = changes.take()
    changes.add(B, 2)
    if everything_first:
        changes.add(C, 3)
        assert changes.put_back(batch) == 0
        assert changes.take() == {EVERYTHING: 2}
    else:
        assert changes.put_back(batch) == 2
        assert changes.add(C, 3) == 0
        assert changes.take() == {EVERYTHING: 1}


def test_change_of_a_huge_uri_becomes_one_of_everything() -> None:
    """A batch is bounded in bytes."""
    changes = pending()
    assert changes.add(ResourceUpdated("x" * (MAX_URI_LENGTH + 1)), 1) == 1
    assert changes.take() == {EVERYTHING: 1}
    assert changes.add(ResourceUpdated("x" * MAX_URI_LENGTH), 1) == 0


def test_batch_is_bounded() -> None:
    """By number and by size; the remainder stays, in order."""
    changes = PendingChanges(1000)
    for number in range(300):
        changes.add(ResourceUpdated(f"{number}"), number)
    assert [len(changes.take()) for _ in range(3)] == [128, 128, 44]
    for number in range(3):
        changes.add(ResourceUpdated(f"{number}" + "x" * 8000), number)
    assert [len(changes.take()) for _ in range(2)] == [2, 1]
    assert changes.take() == {}


def test_cleared_changes_are_counted() -> None:
    """For the report at shutdown."""
    changes = pending(a=1, b=2)
    assert changes.clear() == 2
    assert len(changes) == 0
