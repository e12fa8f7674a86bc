"""Other users of this machine: connections and commands as them, where root runs the tests."""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys

UID = 65534
#: What a command begins with to run as a user without privileges.
COMMAND = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
#: Connects to each path that it receives and passes the connection back: the kernel records the user that connected.
SCRIPT = """
import os, socket
control = socket.socket(fileno=0)
while path := control.recv(200):
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path.decode())
        socket.send_fds(control, [b"."], [made.fileno()])
"""


@functools.cache
def why_no_users() -> str:
    """Why tests cannot connect as other users on this machine; empty where they can."""
    if os.geteuid() != 0:
        return "only root can become another user"
    return "" if shutil.which("setpriv") else "setpriv (Debian: util-linux) is not installed"


class OtherUser:
    """A process with these ids. They need not be known to the machine."""

    def __init__(self, uid: int, gid: int, *groups: int) -> None:
        self.uid = uid
        self.command = ["setpriv", "--reuid", str(uid), "--regid", str(gid)]
        self.command += ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
        self._control, theirs = socket.socketpair()
        with theirs:
            script = [sys.executable, "-I", "-S", "-c", SCRIPT]
            self._process = subprocess.Popen([*self.command, *script], stdin=theirs.fileno())
        self._control.settimeout(20)

    def connect(self, address: str) -> socket.socket:
        """A new connection of this user to a Unix socket."""
        self._control.send(address.removeprefix("unix:").encode())
        _, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        made = socket.socket(fileno=descriptors[0])
        # recv_fds makes it inheritable.
        made.set_inheritable(False)
        return made

    def __enter__(self) -> "OtherUser":
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()


@functools.cache
def why_no_command() -> str:
    """Why tests cannot run commands as an unprivileged user; empty where they can."""
    if os.geteuid() != 0:
        return "only root can become another user"
    try:
        tried = subprocess.run(
            [*COMMAND, sys.executable, "-c", "import pydantic"], capture_output=True, timeout=60, check=False
        )
    except FileNotFoundError:
        return "setpriv (Debian: util-linux) is not installed"
    return "" if tried.returncode == 0 else "user 65534 may not read this Python"
