"""Redis key names and the rules for a key prefix."""

import re
from urllib.parse import quote

from mcp_eventscope.options import check_unicode

_UNSAFE = re.compile(r"[\x00-\x20\x7f]")
_HASH_TAG = re.compile(r"[^{}]*(\{[^{}]+\}[^{}]*)*")

_GLOB = re.compile(r"([*?\[\]^\\])")

EVENT_ID = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
"""An event id of this layout: decimal, no sign, no leading zeros, at most 18 digits, so that it fits 64 bits."""


def pattern_of(text: str) -> str:
    """A text as a pattern of SCAN that matches the text itself."""
    return _GLOB.sub(r"\\\1", text)


def check_prefix(option: str, prefix: object) -> None:
    """Validate a key prefix.

    Args:
        option: The name of the option in the error.
        prefix: The prefix; see `Keys`.

    Raises:
        TypeError: It is not a string.
        ValueError: It breaks a rule of `Keys`.
    """
    if not isinstance(prefix, str):
        msg = f'{option} must be a string such as "mcp:", got {type(prefix).__name__}; leave it out for "mcp:"'
        raise TypeError(msg)
    if not prefix:
        msg = f"{option} must not be empty, got '', or keys mix with those of other programs; use for example 'mcp:'"
        raise ValueError(msg)
    if _UNSAFE.search(prefix):
        msg = f"{option} must not contain spaces or control characters, got one; use for example 'mcp:'"
        raise ValueError(msg)
    check_unicode(option, prefix)
    if not _HASH_TAG.fullmatch(prefix):
        msg = (
            f"{option} must contain braces only as a complete hash tag, got others; write a pair of braces "
            "with text between them (Redis Cluster hashes that text), or no braces"
        )
        raise ValueError(msg)


class Keys:
    """The keys under one prefix. The root layout is that of mcp-persist 0.1.1, plus `trimmed` and `commit`.

    ```
    {prefix}counter              STRING  in the root: the last assigned event id
    {prefix}event:{event_id}     HASH    in the root: stream_id, payload; final on a response; traceparent, if known
    {prefix}stream:{stream_id}   ZSET    in the root: event ids, scored by id; in a session a channel
    {prefix}trimmed:{stream_id}  STRING  in the root: the highest id removed from that index, once any was
    {prefix}stream:{stream}:{run}       LIST    in a session: the events of a run
    {prefix}large:{stream}:{run}:{n}    STRING  in a session: a payload above 4 KiB
    {prefix}requests             HASH    in a session: open runs, and answers in place of dead workers
    {prefix}index                LIST    in a session: its runs and large payloads, with the time of their last renewal
    {prefix}deleting             LIST    in a session that has ended: its index, until the keys of its rows are deleted
    {prefix}sizes                HASH    in a session: the bytes of its runs (`SessionLimit`)
    {prefix}commit:{worker}      STRING  in the root: the worker's last commit, so that a batch is committed once
    {prefix}stored               channel in the root: the worker and the streams of each batch
    {prefix}session              HASH    in a session: the record with which another worker can adopt it
    {prefix}server               STRING  in the root: the name of the server that uses the prefix
    {prefix}{workers}:worker:{worker}   STRING  in the root: the worker's lease, with literal braces
    {prefix}probe:{worker}       STRING  the worker's last probe of Redis, until the key expires
    {prefix}poller               STRING  in the root: the worker that polls statistics, until the key expires
    {prefix}{workers}:inbox:{worker}    STREAM  in the root: messages of other workers, with literal braces
    {prefix}{workers}:announcements     STREAM  in the root: what concerns all workers: sessions that begin and end
    {prefix}changes              STREAM  in the root: batches of changes for subscriptions, numbered densely
    {prefix}{tasks:worker}:task:{name}    HASH    in the root: a task that the worker runs, with literal braces
    {prefix}{tasks:worker}:result:{name}  STRING  in the root: the result of a completed task
    {prefix}{tasks:worker}:signals    channel in the root: wakes the worker when a task is cancelled or answered
    {prefix}{state}:keys         HASH    in the root: generated keys that seal request states, with literal braces
    {prefix}{state}:epoch        HASH    in the root: the same without keys, where these come from a secret
    {prefix}{state}:answer:{state}      HASH    in the root: the answer to a request state, by digest, and its outcome
    ```

    Args:
        prefix: The prefix of every key. Not empty, without spaces and control characters. Braces only as a complete
            Redis hash tag, `{…}`: an unpaired brace would put the keys of a session in different slots.

    Raises:
        TypeError: `prefix` is not a string.
        ValueError: `prefix` breaks a rule above.
    """

    __slots__ = (
        "announcements",
        "changes",
        "counter",
        "deleting",
        "index",
        "poller",
        "prefix",
        "requests",
        "server",
        "session",
        "sizes",
        "state_epoch",
        "state_keys",
        "stored",
    )

    def __init__(self, prefix: str) -> None:
        check_prefix("key_prefix", prefix)
        self.prefix = prefix
        self.counter = f"{prefix}counter"
        self.deleting = f"{prefix}deleting"
        self.index = f"{prefix}index"
        self.requests = f"{prefix}requests"
        self.server = f"{prefix}server"
        self.session = f"{prefix}session"
        self.sizes = f"{prefix}sizes"
        self.announcements = f"{prefix}{{workers}}:announcements"
        self.poller = f"{prefix}poller"
        self.state_epoch = f"{prefix}{{state}}:epoch"
        self.state_keys = f"{prefix}{{state}}:keys"
        self.stored = f"{prefix}stored"
        self.changes = f"{prefix}changes"

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
        """The key of a worker's lease, in one slot with all leases: no outage of another one's escapes a worker."""
        return f"{self.prefix}{{workers}}:worker:{worker}"

    def inbox(self, worker: str) -> str:
        """The key of a worker's inbox, in one slot with the announcements: both are read by one command."""
        return f"{self.prefix}{{workers}}:inbox:{worker}"

    def probe(self, worker: str) -> str:
        """The key that a worker writes to probe Redis."""
        return f"{self.prefix}probe:{worker}"

    def task(self, worker: str, name: str) -> str:
        """The key of a task, in one slot with all tasks of its worker, which renews them by one command."""
        return f"{self.prefix}{{tasks:{worker}}}:task:{name}"

    def task_result(self, worker: str, name: str) -> str:
        """The key of a task's result, which polls of its status do not read."""
        return f"{self.prefix}{{tasks:{worker}}}:result:{name}"

    def task_signals(self, worker: str) -> str:
        """The channel that wakes the worker of a task."""
        return f"{self.prefix}{{tasks:{worker}}}:signals"

    def for_session(self, session_id: str) -> "Keys":
        """The keys of one session: `{prefix}{session}:…`, with literal braces, hence in one slot.

        Raises:
            ValueError: `session_id` is empty: Redis ignores a hash tag without text.
        """
        if not session_id:
            msg = "session_id must not be empty; pass the MCP session id"
            raise ValueError(msg)
        return Keys(f"{self.prefix}{{{quote(session_id, safe='')}}}:")

    def answer(self, state: str) -> str:
        """The key of the answer to a request state, by its digest, in one slot with the keys and the epoch."""
        return f"{self.prefix}{{state}}:answer:{state}"
