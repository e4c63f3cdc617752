"""Changes as JSON, as they are kept in Redis."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mcp.server.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

from mcp_eventscope.errors import CorruptEventError


@dataclass(frozen=True, slots=True)
class EverythingChanged:
    """Any list and any resource may have changed."""


Change: TypeAlias = ServerEvent | EverythingChanged

_KINDS: Mapping[str, Change] = {
    "tools": ToolsListChanged(),
    "prompts": PromptsListChanged(),
    "resources": ResourcesListChanged(),
    "everything": EverythingChanged(),
}
_NAMES: Mapping[type[Change], str] = {type(change): name for name, change in _KINDS.items()}
_RESOURCE = "resource"


def is_supported(event: object) -> bool:
    """Whether an event has a form in Redis."""
    if type(event) is ResourceUpdated:
        return isinstance(event.uri, str)  # Not enforced by its class.
    return type(event) in _NAMES


def encode(changes: Mapping[Change, int]) -> bytes:
    """Encode changes.

    Args:
        changes: When each was published, in microseconds since 1970.
    """
    rows = [
        [published, _RESOURCE, change.uri] if isinstance(change, ResourceUpdated) else [published, _NAMES[type(change)]]
        for change, published in changes.items()
    ]
    # The standard library writes ASCII, so that a URI with a lone surrogate has a form, too.
    return json.dumps(rows, separators=(",", ":")).encode("ascii")


def decode(batch: bytes) -> list[tuple[Change, int]]:
    """Decode changes. A kind of a later version becomes `EverythingChanged`.

    Returns:
        The changes, with the time of each as in `encode`.

    Raises:
        CorruptEventError: The batch has an unknown form, as another program may have written it.
    """
    try:
        return [(_change_of(row), int(row[0])) for row in json.loads(batch)]
    except (ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
        msg = "unrecognized batch of changes in Redis"
        raise CorruptEventError(msg) from error


def _change_of(row: list[object]) -> Change:
    if row[1] == _RESOURCE:
        uri = row[2]
        if not isinstance(uri, str):
            raise TypeError
        return ResourceUpdated(uri)
    return _KINDS.get(str(row[1]), EverythingChanged())
