"""A page of the documentation that is run: its blocks, in order, against the server that it starts.

Blocks marked sh and python are run; one marked text is what the block before it prints. Of those marked console only
the line that serves is run. The runner replaces path and port of the page by unused ones.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOCKET, PORT = "/tmp/objmapper.sock", "9999"


@dataclass
class Page:
    """The folder and the environment that the blocks share, and what stands for the page's socket and port."""

    folder: Path
    port: str = PORT

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OBJMAPPER_")}
        return kept | {
            "PATH": path,
            "OBJMAPPER_SERVER": f"unix:{self.folder}/socket",
            "OBJMAPPER_ADMIN": f"unix:{self.folder}/admin",
        }

    def here(self, text: str) -> str:
        return text.replace(SOCKET, f"{self.folder}/socket").replace(f":{PORT}", f":{self.port}")

    def run(self, language: str, source: str) -> str:
        command = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-W", "error", "-c"]}[language]
        done = subprocess.run(
            [*command, self.here(source)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{source}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def serving(self, command: str) -> Iterator[None]:
        """Runs the page's server, on a free port and with its admin endpoint in the folder."""
        arguments = shlex.split(self.here(command).replace(f":{PORT}", ":0"))
        process = subprocess.Popen(
            [*arguments, "--admin", f"unix:{self.folder}/admin"],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        with process, process.stderr:
            try:
                ready = next((line for line in process.stderr if line.startswith("objmapper: ready ")), "")
                found = re.search(r"tcp://127\.0\.0\.1:(\d+)", ready)
                assert found, "the server of the page does not start"
                self.port = found[1]
                yield
            finally:
                process.terminate()
        assert process.returncode == 0


def run_page(page: Path, folder: Path) -> int:
    """Runs a page's blocks in a folder. Returns how many of them printed what the page says."""
    here, found = Page(folder), BLOCK.findall(page.read_text())
    serve = next(at for at, (_, text) in enumerate(found) if text.startswith("$ objmapper serve"))
    for language, text in found[:serve]:
        if language == "sh":
            here.run(language, text)
    command = found[serve][1].splitlines()[0].removeprefix("$ ")
    compared = 0
    with here.serving(command):
        printed = ""
        for language, text in found[serve + 1 :]:
            if language == "text":
                assert printed == here.here(text), f"the page says:\n{text}\nbut this is printed:\n{printed}"
                compared += 1
            elif language in ("sh", "python"):
                printed = here.run(language, text)
    return compared


HOME = Path(__file__).parents[2]
#: What the files of this repository are called on the web: README's links also work where only README is shown.
OWN_FILES = re.compile(
    r"https://(?:github\.com|raw\.githubusercontent\.com)/objmapper/objmapper/(?:(?:blob|tree)/)?main/(\S+)"
)


def broken_links(page: Path) -> list[str]:
    """The files that a page links to and that are not there, and references without a target."""
    text = page.read_text()
    targets = [page.parent / target for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)]
    targets += [HOME / target.rstrip(").,#") for target in OWN_FILES.findall(text)]
    return [str(target) for target in targets if not target.exists()]
