"""Somebody else on this machine: commands as a user who is not root, where the tests are run by root."""

import functools
import os
import subprocess
import sys

UID = 65534
COMMAND = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]


@functools.cache
def why_not() -> str:
    """Why no command can be run as somebody else here; empty where it can."""
    if os.geteuid() != 0:
        return "only root can become somebody else"
    try:
        tried = subprocess.run(
            [*COMMAND, sys.executable, "-c", "import pydantic"], capture_output=True, timeout=60, check=False
        )
    except FileNotFoundError:
        return "setpriv (Debian: util-linux) is not installed"
    return "" if tried.returncode == 0 else "nobody may not read this Python"
