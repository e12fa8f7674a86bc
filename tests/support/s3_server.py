"""An S3 server over a directory, for tests: ``s3s-fs``, which `make .venv/bin/s3s-fs` builds."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

HOME: Final = Path(__file__).parent.parent.parent
ACCESS_KEY: Final = "objmapper-tests"
SECRET_KEY: Final = "canary-7f3a9c51"


def program() -> str | None:
    """The path of the server's program, if it is built."""
    return shutil.which("s3s-fs", path=f"{HOME / '.venv' / 'bin'}:{os.environ.get('PATH', '')}")


class S3Server:
    """Serves the buckets below `root`, each a directory, until the block is left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.endpoint = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        found = program()
        assert found is not None, "s3s-fs is not built: make .venv/bin/s3s-fs"
        for _ in range(10):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            command = [found, "--host", "127.0.0.1", "--port", str(port)]
            command += ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY, str(self.root)]
            log = (self.root.parent / "s3.log").open("ab")
            with log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log)
            if self._is_up(port):
                self.endpoint = f"http://127.0.0.1:{port}"
                return self
            self.stop()
        raise AssertionError("s3s-fs does not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def options(self, endpoint: str = "") -> Mapping[str, object]:
        """What an origin needs to use it."""
        return {
            "endpoint": endpoint or self.endpoint,
            "allow_http": True,
            "options": {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY},
        }

    def _is_up(self, port: int) -> bool:
        assert self._process is not None
        until = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return True
        return False
