"""The exceptions of the package.

```
EventscopeError
├── StoreError                 an operation on the store failed
│   ├── StoreUnavailableError  … because Redis could not be reached, or did not answer in time
│   └── StoreRejectedError     … because Redis answered with an error
│       └── WrongTypeError     … because a key has another type
├── CorruptEventError          a stored event could not be read; it is skipped and counted
├── IncompatibleSDKError       the installed MCP SDK is not supported, or has changed internals that are relied on
└── EmbeddedUnavailableError   the embedded Valkey could not be started


SessionsNotIsolatedWarning         a root store is shared by all sessions
```

Invalid arguments raise `TypeError` and `ValueError`. No message contains a password or a payload.
"""


class EventscopeError(Exception):
    """The base of every exception that this package defines."""


class StoreError(EventscopeError):
    """An operation on the event store failed; the message names the operation and the cause."""


class StoreUnavailableError(StoreError):
    """Redis could not be reached, or did not answer in time."""


class StoreRejectedError(StoreError):
    """Redis answered with an error (READONLY, OOM, CROSSSLOT, NOAUTH, …)."""


class WrongTypeError(StoreRejectedError):
    """A key has another type, because another program uses the prefix. A retry would fail again."""


class CorruptEventError(EventscopeError):
    """A stored event could not be read. A replay skips and counts it."""


class IncompatibleSDKError(EventscopeError):
    """The installed MCP SDK is not supported, or lacks internals on which `ResumableSessionManager` relies."""


class EmbeddedUnavailableError(EventscopeError):
    """The embedded Valkey is not installed, or could not be started."""


class SessionsNotIsolatedWarning(UserWarning):
    """`event_store.sessions_not_isolated`: the SDK uses a bare root store, so its sessions share streams."""
