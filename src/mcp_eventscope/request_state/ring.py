"""The keys that seal and open request states, as a codec of the SDK."""

import base64
import binascii
import json
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mcp.server.request_state import AESGCMRequestStateCodec, InvalidRequestState

from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.request_state.facts import KeySource, StateSealed

_KEY_ID_TEXT = slice(3, 11)
"""The part of a token of the SDK, behind `v1.`, whose first bytes are the id of its key."""
_KEY_ID = slice(4)
_OFFSET = struct.Struct(">q")
_SAME_CLOCK = 1_000_000
"""Microseconds by which two clocks may differ without a correction."""
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True, repr=False)
class StateKey:
    """A key that seals request states. Its representation does not show the secret."""

    secret: bytes
    created: int | None
    """Microseconds since 1970 on Redis's clock; None: unknown."""
    source: KeySource


class KeyRing:
    """Seals with one key, and opens with all: a `RequestStateCodec` of the SDK.

    The SDK stamps each state with the time of the sealing process, and verifies it with the time of the opening one.
    The token therefore contains the difference between that clock and Redis's. If the clocks of both processes differ
    by more than a second, the times are converted to the clock of the opening process.

    Args:
        clock: Redis's clock.
        sealed: Called with each sealing.
    """

    def __init__(self, clock: EventClock, sealed: Callable[[StateSealed], None]) -> None:
        self._clock = clock
        self._sealed = sealed
        self._codecs: dict[bytes, AESGCMRequestStateCodec] = {}
        """The codecs of the keys, by the id that tokens name."""
        self._known: dict[bytes, tuple[bytes, AESGCMRequestStateCodec]] = {}
        """The ids and codecs by secret: to derive a key is slow."""
        self._sealing: tuple[StateKey, AESGCMRequestStateCodec] | None = None
        self.used_at: int | None = None
        """The last use of the sealing key by this process, in microseconds on Redis's clock; None: not used."""

    @property
    def sealing(self) -> StateKey | None:
        """The key that seals; None: there is no key yet."""
        return None if self._sealing is None else self._sealing[0]

    @property
    def age(self) -> float | None:
        """Seconds since the sealing key was generated; None: unknown."""
        key = self.sealing
        if key is None or key.created is None:
            return None
        return max(0.0, (self._clock.now() - key.created) / _MICROSECONDS)

    def replace(self, sealing: StateKey, others: Iterable[bytes]) -> None:
        """Replace all keys.

        Args:
            sealing: The key that seals from now on.
            others: The secrets of the other keys, which only open.
        """
        known = {secret: self._known.get(secret) or _codec(secret) for secret in (sealing.secret, *others)}
        if self._sealing is None or self._sealing[0].secret != sealing.secret:
            self.used_at = None
        self._known = known
        self._codecs = dict(known.values())
        self._sealing = (sealing, known[sealing.secret][1])

    def knows(self, token: str) -> bool:
        """Whether a token's key is known. A malformed token counts as known: no other key would open it."""
        key = _key_id(token)
        return key is None or key in self._codecs

    def seal(self, payload: bytes) -> str:
        """Seal a payload; see `RequestStateCodec.seal`.

        Raises:
            RuntimeError: There is no key, since the request state was not started.
        """
        if self._sealing is None:
            msg = "the request state must be running, got a state to seal before; enter running() in the lifespan"
            raise RuntimeError(msg)
        key, codec = self._sealing
        self.used_at = self._clock.now()
        token = codec.seal(_OFFSET.pack(self._offset()) + payload)
        self._sealed(StateSealed(key.source, self.age))
        return token

    def unseal(self, token: str) -> bytes:
        """Open a token; see `RequestStateCodec.unseal`.

        Raises:
            InvalidRequestState: It is malformed, was changed, or its key is unknown.
        """
        key = _key_id(token)
        if key is None:
            raise InvalidRequestState(MALFORMED)
        codec = self._codecs.get(key)
        if codec is None:
            raise InvalidRequestState(UNKNOWN_KEY)
        opened = codec.unseal(token)
        if len(opened) < _OFFSET.size:
            raise InvalidRequestState(MALFORMED)
        (offset,) = _OFFSET.unpack_from(opened)
        return _shifted(opened[_OFFSET.size :], offset - self._offset())

    def _offset(self) -> int:
        """Microseconds by which Redis's clock is ahead of the clock with which the SDK stamps states."""
        return self._clock.now() - time.time_ns() // 1_000


MALFORMED = "malformed"
UNKNOWN_KEY = "unknown key"
"""The texts of `InvalidRequestState`, as in the SDK's codec."""


def _codec(secret: bytes) -> tuple[bytes, AESGCMRequestStateCodec]:
    codec = AESGCMRequestStateCodec([secret])
    key = _key_id(codec.seal(b""))
    if key is None:  # pragma: no cover - the token that the SDK has just made
        msg = "the token format of the installed mcp must be known, got another one; see the supported versions"
        raise RuntimeError(msg)
    return key, codec


def _key_id(token: str) -> bytes | None:
    """The id of the key that a token names; None: it is malformed."""
    text = token[_KEY_ID_TEXT]
    if not token.startswith("v1.") or len(text) < _KEY_ID_TEXT.stop - _KEY_ID_TEXT.start:
        return None
    try:
        return base64.b64decode(text.encode("ascii"), b"-_", validate=True)[_KEY_ID]
    except (binascii.Error, UnicodeEncodeError):
        return None


def _shifted(payload: bytes, microseconds: int) -> bytes:
    """Move the times in the SDK's envelope, unless the clocks agree or it has another form."""
    if abs(microseconds) < _SAME_CLOCK:
        return payload
    try:
        claims = json.loads(payload)
        moved = {name: claims[name] + microseconds / _MICROSECONDS for name in ("iat", "exp")}
    except (ValueError, KeyError, TypeError):
        return payload
    return json.dumps({**claims, **moved}, separators=(",", ":")).encode()
