"""The operator's secrets that seal request states."""

import os
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "EVENTSCOPE_REQUEST_STATE_KEYS"
"""The environment variable with the secrets, newest first, separated by commas or white space."""
FILE_VARIABLE = f"{VARIABLE}_FILE"
"""The environment variable with the path of a file that contains them, as container platforms mount secrets."""

_LEAST = 32
_FIX = 'generate one with: python -c "import secrets; print(secrets.token_hex(32))"'


def secrets_of(keys: Sequence[bytes | str] | None) -> tuple[bytes, ...]:
    """Return the secrets that are given, or those of the environment.

    Args:
        keys: Secrets of at least 32 bytes, newest first. None: those of the environment.

    Returns:
        The secrets without duplicates; empty if none are given.

    Raises:
        TypeError: A secret is neither bytes nor a string.
        ValueError: There is none, a secret is too short, both variables are set, or the file cannot be read.
    """
    if keys is not None:
        if isinstance(keys, bytes | str):
            msg = f"keys must be a sequence of secrets, got {type(keys).__name__}; pass [secret]"
            raise TypeError(msg)
        return _checked("keys", keys)
    text, path = os.environ.get(VARIABLE), os.environ.get(FILE_VARIABLE)
    if text is not None and path is not None:
        msg = f"{VARIABLE} must not be set together with {FILE_VARIABLE}, got both; unset one of them"
        raise ValueError(msg)
    if path is not None:
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{FILE_VARIABLE} must name a readable text file, got {type(error).__name__}; correct the path"
            raise ValueError(msg) from None
    if text is None:
        return ()
    return _checked(VARIABLE if path is None else FILE_VARIABLE, text.replace(",", " ").split())


def _checked(option: str, keys: Sequence[bytes | str]) -> tuple[bytes, ...]:
    if not keys:
        msg = f"{option} must contain at least one secret, got none; {_FIX}"
        raise ValueError(msg)
    found: list[bytes] = []
    for key in keys:
        if not isinstance(key, bytes | str):
            msg = f"{option} must contain bytes or strings, got {type(key).__name__}; {_FIX}"
            raise TypeError(msg)
        secret = key.encode() if isinstance(key, str) else key
        if len(secret) < _LEAST:
            msg = f"{option} must contain secrets of at least {_LEAST} bytes, got one of {len(secret)}; {_FIX}"
            raise ValueError(msg)
        found.append(secret)
    return tuple(dict.fromkeys(found))
