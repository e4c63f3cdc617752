"""Commands of the command line, each in a process of its own."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mcp_eventscope.cli.main import main
from support.forks import FORKSERVER
from support.servers import text_of
from support.waiting import CEILING


def run_command(*arguments: str) -> tuple[int, str]:
    """Run a command in the directory and with the variables of this process; its exit code, and what it has printed.

    The process is forked from one that has imported the SDK, which takes a fresh one longer than most commands.
    """
    with tempfile.NamedTemporaryFile() as output:
        environment = os.environ | {"COLUMNS": "400"}
        process = FORKSERVER.Process(target=_run, args=(arguments, environment, Path.cwd(), output.name), daemon=True)
        process.start()
        process.join(CEILING)
        code = process.exitcode
        assert code is not None, f"it has not ended: {text_of(output)}"
        return code, text_of(output)


def _run(arguments: tuple[str, ...], environment: Mapping[str, str], directory: Path, output: str) -> None:
    os.environ.clear()
    os.environ |= environment
    os.chdir(directory)
    with Path(output).open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(main(arguments))
