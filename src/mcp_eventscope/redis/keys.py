"""Redis key names, and the rules that a prefix keeps."""

import re
from urllib.parse import quote

_UNSAFE = re.compile(r"[\x00-\x20\x7f]")
_HASH_TAG = re.compile(r"[^{}]*(\{[^{}]+\}[^{}]*)*")

EVENT_ID = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
"""An event id of this layout: decimal, without sign or leading zeros, at most 18 digits, so that it fits 64 bits."""


class Keys:
    """The keys under one prefix (DESIGN: the layout of mcp-persist 0.1.1, with `trimmed` and `commit` added).

    ```
    {prefix}counter              STRING  in the root: the last event id given out
    {prefix}event:{event_id}     HASH    in the root: stream_id, payload; final on a response; traceparent, if known
    {prefix}stream:{stream_id}   ZSET    in the root: event ids, scored by id; in a session a channel
    {prefix}trimmed:{stream_id}  STRING  in the root: the highest id removed from that index, once any was
    {prefix}stream:{stream}:{run}       LIST    in a session: the events of a run
    {prefix}large:{stream}:{run}:{n}    STRING  in a session: a payload above 4 KiB
    {prefix}requests             HASH    in a session: the runs that are open, or were answered elsewhere
    {prefix}sizes                HASH    in a session: the bytes of its runs (`SessionLimit`)
    {prefix}commit:{worker}      STRING  in the root: the worker's last commit, so that a batch is committed once
    {prefix}stored               channel in the root: the worker and the streams of each batch
    {prefix}session              HASH    in a session: what another worker needs to take it over
    {prefix}worker:{worker}      STRING  in the root: the worker lives, until this expires
    {prefix}sampler              STRING  in the root: which worker samples Redis, until this expires
    {prefix}workers              channel in the root: what workers tell each other
    ```

    Args:
        prefix: What every key begins with. Not empty, without spaces or control characters; braces only as a
            whole Redis hash tag, `{…}`, since half a pair would put the keys of a session on different slots.

    Raises:
        TypeError: `prefix` is not a string.
        ValueError: `prefix` breaks a rule above.
    """

    __slots__ = ("counter", "prefix", "requests", "sampler", "session", "sizes", "stored", "workers")

    def __init__(self, prefix: str) -> None:
        if not isinstance(prefix, str):
            msg = f'key_prefix must be a string such as "mcp:", not {type(prefix).__name__}'
            raise TypeError(msg)
        if not prefix:
            msg = 'key_prefix must not be empty: keys without a prefix mix with those of others. Use "mcp:", say'
            raise ValueError(msg)
        if _UNSAFE.search(prefix):
            msg = f"key_prefix must not have spaces or control characters: {prefix!r}"
            raise ValueError(msg)
        if not _HASH_TAG.fullmatch(prefix):
            msg = (
                f"key_prefix has braces that are no whole hash tag: {prefix!r}. Redis Cluster takes the text between "
                "the first '{' and the next '}' as the slot; write a pair with text inside, or no brace at all"
            )
            raise ValueError(msg)
        self.prefix = prefix
        self.counter = f"{prefix}counter"
        self.requests = f"{prefix}requests"
        self.session = f"{prefix}session"
        self.sizes = f"{prefix}sizes"
        self.workers = f"{prefix}workers"
        self.sampler = f"{prefix}sampler"
        self.stored = f"{prefix}stored"

    def event(self, event_id: str) -> str:
        """The key of an event."""
        return f"{self.prefix}event:{event_id}"

    def stream(self, stream_id: str) -> str:
        """The key of a stream's index."""
        return f"{self.prefix}stream:{stream_id}"

    def run(self, stream_id: str, run: str) -> str:
        """The key of a run's list. `Keys.stream` of the same stream is the channel that wakes its followers."""
        return f"{self.prefix}stream:{stream_id}:{run}"

    def large(self, stream_id: str, run: str, number: int) -> str:
        """The key of a large payload."""
        return f"{self.prefix}large:{stream_id}:{run}:{number}"

    def commit(self, worker: str) -> str:
        """The key of a worker's last commit to the root store."""
        return f"{self.prefix}commit:{worker}"

    def worker(self, worker: str) -> str:
        """The key of a worker's lease."""
        return f"{self.prefix}worker:{worker}"

    def for_session(self, session_id: str) -> "Keys":
        """The keys of one session: under `{prefix}{session}:`, the braces literal, so that they share one slot.

        Raises:
            ValueError: `session_id` is empty: Redis takes no slot from empty braces, and sessions have names.
        """
        if not session_id:
            msg = "a session's part of the store needs the session's id, and this one is empty"
            raise ValueError(msg)
        return Keys(f"{self.prefix}{{{quote(session_id, safe='')}}}:")
