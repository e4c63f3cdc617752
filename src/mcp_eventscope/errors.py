"""The exceptions of the package.

```
EventscopeError
├── StoreError                 an operation on the store failed
│   ├── StoreUnavailableError  … because Redis could not be reached, or did not answer in time
│   └── StoreRejectedError     … because Redis answered with an error
│       └── WrongTypeError     … because a key has another type
├── CorruptEventError          a stored event could not be read; it is skipped and counted
├── IncompatibleSDKError       the installed MCP SDK does not have the parts that sessions are scoped by
└── EmbeddedUnavailableError   no embedded Valkey could be started


UnscopedStoreWarning         a root store is used as if all sessions were one
```

Bad arguments are `TypeError` and `ValueError`, as everywhere. No message holds a password or a payload.
"""


class EventscopeError(Exception):
    """The base of every exception that this package defines."""


class StoreError(EventscopeError):
    """An operation on the event store failed; the message says which, where, and what to look at."""


class StoreUnavailableError(StoreError):
    """Redis could not be reached, or did not answer in time."""


class StoreRejectedError(StoreError):
    """Redis answered, with an error (READONLY, OOM, CROSSSLOT, NOAUTH, …)."""


class WrongTypeError(StoreRejectedError):
    """A key has another type: another program writes under the prefix. The same operation would fail again."""


class CorruptEventError(EventscopeError):
    """A stored event could not be read. Replay skips it, goes on, and counts it."""


class IncompatibleSDKError(EventscopeError):
    """The installed MCP SDK lacks, or has changed, what `ResumableSessionManager` scopes sessions by."""


class EmbeddedUnavailableError(EventscopeError):
    """The embedded Valkey is not installed, or could not be started."""


class UnscopedStoreWarning(UserWarning):
    """`event_store.sessions_not_isolated`: the SDK uses a bare root store, so its sessions share streams."""
