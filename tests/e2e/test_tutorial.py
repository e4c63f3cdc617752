"""The tutorial, step by step: the commands of docs/tutorial.md, on ports of our own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.servers import HOST, free_port, healthy
from support.valkeys import own_valkey
from support.waiting import CEILING, eventually

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")]

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text("utf-8")
ATTEMPTS = 10
"""A busy machine may deliver no event before curl hangs up; the reader would repeat the call, too."""


@contextmanager
def started(command: str, directory: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a command of the page in the background until the block ends."""
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"], cwd=directory, env=environment, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(CEILING)


def test_tutorial_cuts_a_stream_and_resumes_it_on_the_other_worker(tmp_path: Path) -> None:
    """The resume delivers every page after the cut, once and in order, and the result."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "report.py").write_text(code.replace("asyncio.sleep(1)", "asyncio.sleep(0.3)"), encoding="utf-8")
    with ExitStack() as stack:
        ports = {"6379": stack.enter_context(own_valkey()).port, "8001": free_port(), "8002": free_port()}
        page = re.sub(r":(6379|8001|8002)\b|(?<=--port )(8001|8002)\b", lambda found: _moved(found, ports), PAGE)
        page = page.replace("--max-time 4", "--max-time 1.5")
        _install, _valkey, worker, other, *steps = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EVENTSCOPE_")}
        environment |= {"PATH": path, "NO_PROXY": HOST, "PYTHONPATH": ""}
        for command in (worker, other):
            stack.enter_context(started(command, tmp_path, environment))
        for port in (ports["8001"], ports["8002"]):
            eventually(lambda port=port: healthy(f"http://{HOST}:{port}"), otherwise=(tmp_path / "log").read_text)  # type: ignore[misc]
        for _ in range(ATTEMPTS):
            ran = subprocess.run(
                ["bash", "-c", "echo ---\n".join(steps)],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            _session, cut, why, resumed, operator = ran.stdout.split("---\n")
            if before := _progress(cut):
                break
        assert before == list(range(1, len(before) + 1))
        assert before + _progress(resumed) == list(range(1, 11)), ran.stderr
        assert '"result":"10 pages"' in resumed
        assert why.startswith("Can be resumed: ")
        assert re.search(r'_count\{outcome="resumed",store="report"\} [1-9]', operator)
        assert "verified: " in operator


def _moved(found: re.Match[str], ports: dict[str, int]) -> str:
    """The port of the test in place of the one on the page."""
    return f":{ports[found[1]]}" if found[1] else str(ports[found[2]])


def _progress(text: str) -> list[int]:
    return [int(page) for page in re.findall(r'"progress":(\d+)', text)]
