"""Programs that a test needs and that pip cannot install."""

import os
import shutil
import subprocess

import pytest


def program(name: str, package: str) -> str:
    """The path of a program. Without it the test is skipped, with the reason; in CI nothing is skipped.

    Args:
        name: The program.
        package: The Debian package that has it.
    """
    if found := shutil.which(name):
        return found
    reason = f"needs {name}: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def promtool_problems(metrics: bytes) -> str:
    """Return the output of `promtool check metrics` on the text format; empty without problems."""
    promtool = program("promtool", "prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True, check=False)
    output = (checked.stdout + checked.stderr).decode()
    return output if output or checked.returncode == 0 else f"status {checked.returncode}"
