"""The name of this process among the workers that use the same Redis."""

import uuid

from mcp_eventscope.process import PROCESS


class WorkerId:
    """A name that no other process has; a forked child takes another one.

    A server may be made before its workers are forked, as with `gunicorn --preload`. Two workers of one name would each
    take the other's repeated batch for their own, and lose its events.
    """

    __slots__ = ("__weakref__", "name")

    def __init__(self) -> None:
        self.name = ""
        """Twelve hexadecimal digits. Read it each time: it changes in a forked child."""
        self.after_fork()
        PROCESS.track(self)

    def after_fork(self) -> None:
        """Take another name."""
        self.name = uuid.uuid4().hex[:12]
