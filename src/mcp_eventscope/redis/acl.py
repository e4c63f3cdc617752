"""The ACL rules of users with the least rights: of a worker, and of an operator's command line."""

from mcp_eventscope.redis.self_test import commands

STATISTICS = ("dbsize", "memory|usage", "pttl", "scan", "type")
"""The commands of a worker that polls Redis statistics (`redis_stats_interval`)."""
CONSOLE = ("hstrlen", "memory|usage", "pttl", "pubsub|numsub", "scan")
"""The commands of a worker that serves the console. Without PUBSUB and MEMORY it shows no followers and no bytes."""
CLUSTER = ("cluster|slots", "command")
"""The commands with which redis-py learns the nodes of a cluster."""
_WORKER = ("eval", "evalsha", "info", "ping", "publish", "select", "subscribe", "unsubscribe")
"""The commands of a worker, beside those of its scripts. INFO serves the self-test alone."""
_OPERATOR = (
    "eval",
    "evalsha",
    "exists",
    "get",
    "hexists",
    "hget",
    "hgetall",
    "hkeys",
    "hmget",
    "hstrlen",
    "info",
    "lindex",
    "llen",
    "lrange",
    "memory|usage",
    "mget",
    "ping",
    "pttl",
    "scan",
    "select",
    "time",
    "type",
    "xlen",
)
"""The commands of a command line that reads."""
_END = (
    "del",
    "expire",
    "hset",
    "ltrim",
    "pexpire",
    "rename",
    "set",
    "unlink",
    "xadd",
    "xrange",
    "xread",
    "xrevrange",
    "xtrim",
)
"""The commands of `sessions end` in addition, which takes part as a worker that sends a message to the others."""


def worker_rules(key_prefix: str, *, statistics: bool = False, console: bool = False, cluster: bool = False) -> str:
    """The rules of a user for workers.

    Args:
        key_prefix: The prefix of the keys and channels.
        statistics: Whether a worker polls Redis statistics.
        console: Whether a worker serves the console.
        cluster: Whether it is a cluster.
    """
    names = {*_WORKER, *(name.lower() for name in commands())}
    names.update(STATISTICS if statistics else ())
    names.update(CONSOLE if console else ())
    return _rules(key_prefix, names, channels=True, cluster=cluster)


def operator_rules(key_prefix: str, *, end: bool = True, cluster: bool = False) -> str:
    """The rules of a user for the command line, except for the permissions that `doctor` tests, which are a worker's.

    Args:
        key_prefix: The prefix of the keys.
        end: Whether the user may end sessions. Without it, the user changes nothing.
        cluster: Whether it is a cluster.
    """
    return _rules(key_prefix, {*_OPERATOR, *(_END if end else ())}, channels=False, cluster=cluster)


def _rules(key_prefix: str, names: set[str], *, channels: bool, cluster: bool) -> str:
    names |= set(CLUSTER if cluster else ())
    # A new user of Redis 6.2 has all channels.
    places = [f"~{key_prefix}*", "resetchannels", *([f"&{key_prefix}*"] if channels else [])]
    return " ".join([*places, *(f"+{name}" for name in sorted(names))])
