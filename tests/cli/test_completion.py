"""``objmapper completion``: the script of each shell, and what a shell makes of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run, one_line

COMPLETE = """
eval "$(python -m objmapper_cli completion bash)"
objmapper() { python -m objmapper_cli "$@"; }
export -f objmapper
complete -p objmapper
COMP_WORDS=(%s) COMP_CWORD=%d
_objmapper_completion "$PWD/objmapper"
printf '%%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("shell", "part"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --command")]
)
def test_each_shell_has_its_script(objmapper: Run, environment: dict[str, str], shell: str, part: str) -> None:
    got = objmapper("completion", shell)
    assert (got.returncode, got.stderr) == (0, b"")
    assert part in got.stdout.decode()
    environment["SHELL"] = f"/usr/bin/{shell}"
    assert objmapper("completion").stdout == got.stdout
    document = json.loads(objmapper("completion", shell, "--json").stdout)
    assert document == {"shell": shell, "script": got.stdout.decode()}


def test_a_shell_that_is_unknown_is_asked_for(objmapper: Run, environment: dict[str, str]) -> None:
    environment["SHELL"] = "/bin/ksh"
    got = objmapper("completion")
    assert got.returncode == 2
    assert "bash, zsh, fish" in one_line(got.stderr)
    assert objmapper("completion", "ksh").returncode == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("objmapper sta", ["stat", "stats"]),
        ("objmapper serve --shut", ["--shutdown-grace"]),
        ("objmapper completion f", ["fish"]),
    ],
)
def test_bash_completes_by_it(environment: dict[str, str], tmp_path: Path, typed: str, offered: list[str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    (tmp_path / "objmapper").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m objmapper_cli "$@"\n')
    (tmp_path / "objmapper").chmod(0o755)
    got = subprocess.run(
        ["bash", "-c", COMPLETE % (typed, typed.count(" "))],
        env=environment | {"PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert got.stdout.splitlines()[1:] == offered
