"""The changes that Redis has not acknowledged."""

from collections.abc import Mapping

from mcp.server.subscriptions import ResourceUpdated

from mcp_eventscope.subscriptions.event_codec import Change, EverythingChanged

MAX_URI_LENGTH = 8192
"""Characters of a URI beyond which its change is published as a change of everything."""
_BATCH_EVENTS = 128
_BATCH_LENGTH = 16 * 1024
"""Maximum characters of the URIs in a batch, except in a batch of one."""


class PendingChanges:
    """A set of changes, oldest first: a change that is already pending takes no further room.

    Args:
        limit: Maximum number of changes. Beyond it one change of everything replaces them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changes: dict[Change, int] = {}

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, change: Change, published: int) -> int:
        """Add a change.

        Args:
            change: The change.
            published: When it was published, in microseconds since 1970.

        Returns:
            The number of changes that were replaced by one for everything, this one included; 0: none.
        """
        if EverythingChanged() in self._changes or change in self._changes:
            return 0
        too_long = isinstance(change, ResourceUpdated) and len(change.uri) > MAX_URI_LENGTH
        if too_long or len(self._changes) >= self._limit:
            return self._replace(1, published)
        self._changes[change] = published
        return 0

    def take(self) -> dict[Change, int]:
        """Remove and return the oldest changes. Send them afterwards: a change in the meantime is another one."""
        batch: dict[Change, int] = {}
        length = 0
        for change, published in self._changes.items():
            length += len(change.uri) if isinstance(change, ResourceUpdated) else 0
            if batch and (len(batch) == _BATCH_EVENTS or length > _BATCH_LENGTH):
                break
            batch[change] = published
        for change in batch:
            del self._changes[change]
        return batch

    def put_back(self, batch: Mapping[Change, int]) -> int:
        """Add changes that were taken and not acknowledged. Returns as `add` does."""
        if EverythingChanged() in self._changes:
            return 0
        self._changes = {**batch, **{change: at for change, at in self._changes.items() if change not in batch}}
        if len(self._changes) > self._limit:
            return self._replace(0, min(self._changes.values()))
        return 0

    def clear(self) -> int:
        """Remove all changes; return their number."""
        number = len(self._changes)
        self._changes.clear()
        return number

    def _replace(self, added: int, published: int) -> int:
        replaced = len(self._changes) + added
        oldest = min(self._changes.values(), default=published)
        self._changes = {EverythingChanged(): min(oldest, published)}
        return replaced
