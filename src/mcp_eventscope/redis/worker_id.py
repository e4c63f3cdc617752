"""What this process is called among those that use the same Redis."""

import os
import uuid
from weakref import WeakSet

_all: WeakSet["WorkerId"] = WeakSet()


class WorkerId:
    """A name that no other process has, and that is not the parent's in a process that is forked.

    A server may be made before its workers are forked, as with `gunicorn --preload`. Two of one name would take each
    other's batches for their own, sent again, and lose what is in them.
    """

    __slots__ = ("__weakref__", "name")

    def __init__(self) -> None:
        self.name = ""
        """Twelve hexadecimal digits. To be read each time it is needed."""
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Take another name."""
        self.name = uuid.uuid4().hex[:12]


def _forked() -> None:
    for identity in tuple(_all):
        identity.renew()


if hasattr(os, "register_at_fork"):  # Not on Windows, where nothing forks.
    os.register_at_fork(after_in_child=_forked)
