"""Stops an embedded Valkey whose process has ended, and deletes its directory.

`EmbeddedValkey` runs this file as a program of its own. The kernel closes the pipe when the process ends in any way,
`SIGKILL` included, so this works on every system with Unix sockets. The server is addressed by its socket in a
directory with a random name, never by a pid, which another process may have by now. It imports the standard library
only, so that it starts fast.
"""

import shutil
import signal
import socket
import sys
import time
from pathlib import Path

_START_SECONDS = 5.0
"""Maximum seconds to look for a server that was just being started."""
_STOP_SECONDS = 5.0
"""Maximum seconds to wait until the server has ended."""
_RETRY_SECONDS = 0.05


def stop(directory: Path) -> None:
    """Stop the server of a directory, and delete the directory.

    Args:
        directory: The directory with the server's socket. Nothing happens if it does not exist.
    """
    until = time.monotonic() + _START_SECONDS
    while directory.is_dir() and time.monotonic() < until:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_STOP_SECONDS)
                connection.connect(str(directory / "valkey.sock"))
                connection.sendall(b"SHUTDOWN NOSAVE NOW FORCE\r\n")
                while connection.recv(1024):
                    pass  # Until the server has closed the connection.
        except OSError:
            time.sleep(_RETRY_SECONDS)
        else:
            break
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # A supervisor may signal all processes of the service.
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()  # Returns when every copy of the pipe's other end is closed.
    stop(Path(sys.argv[1]))
