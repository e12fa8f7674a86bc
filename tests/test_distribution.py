"""The distributions that are built from this tree: what is in them, and that each installs and works by itself."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
#: A build in the development profile takes half a minute; the crates that it needs are compiled once, in engine/target.
ENVIRONMENT = os.environ | {
    "SETUPTOOLS_RUST_CARGO_PROFILE": "dev",
    "CARGO_TARGET_DIR": str(HOME / "engine" / "target"),
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("cargo") is None, reason="a Rust toolchain is needed"),
]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, of a copy of what a clone has: a build leaves nothing in the tree."""
    clone = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("the files of a clone are needed: this is none")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (HOME / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HOME / name, clone / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", clone / "dist", cwd=clone)
    (built,) = (clone / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    run(sys.executable, *command, folder, sdist, cwd=folder)
    (built,) = folder.iterdir()
    return built


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_the_source_distribution_has_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    manifest = (HOME / "engine" / "Cargo.toml").read_text()
    benches = re.findall(r'\[\[bench\]\]\nname = "(\w+)"', manifest)
    assert benches
    needed = {f"engine/benches/{name}.rs" for name in benches}
    needed |= {"LICENSE", "CHANGELOG.md", "README.md", "engine/Cargo.toml", "engine/Cargo.lock"}
    needed |= {"objmapper_client/py.typed", "objmapper_server/py.typed", "objmapper_server/admin/dashboard.html"}
    needed |= {str(path.relative_to(HOME)) for path in (HOME / "engine" / "src").rglob("*.rs")}
    needed |= {str(path.relative_to(HOME)) for path in (HOME / "packaging").rglob("*") if path.is_file()}
    assert needed - names == set()


def test_the_wheel_has_the_three_packages_and_nothing_of_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"objmapper_cli", "objmapper_client", "objmapper_server"}
    python = {
        str(path.relative_to(HOME / folder))
        for folder, package in ((".", "objmapper_client"), (".", "objmapper_server"), ("cli", "objmapper_cli"))
        for path in (HOME / folder / package).rglob("*.py")
    }
    assert python - names == set()
    assert {"objmapper_client/py.typed", "objmapper_server/py.typed", "objmapper_server/_engine.pyi"} <= names
    assert "objmapper_server/_engine.abi3.so" in names


def test_the_page_on_an_index_works_by_itself(wheel: Path, sdist: Path) -> None:
    found = metadata(wheel)
    links = dict(line.split(", ", 1) for line in found.get_all("Project-URL", []))
    assert set(links) >= {"Homepage", "Documentation", "Changelog", "Issues", "Source"}
    assert all(link.startswith("https://") for link in links.values())
    assert found["Author"]
    assert found["License-Expression"] == "Apache-2.0"
    description = found.get_payload()
    assert isinstance(description, str)
    # A relative link leads nowhere there.
    assert re.findall(r"\]\((?!https?://)[^)]*\)", description) == []
    for name in re.findall(
        r"(?<!\])\[([^]\n]+)\](?![(\[:])", re.sub(r"```.*?```|`[^`]*`", "", description, flags=re.DOTALL)
    ):
        assert re.search(rf"^\[{re.escape(name)}\]: https://", description, re.MULTILINE), name
    pictures = re.findall(r"!\[[^]]*\]\[([^]]+)\]", description)
    assert len(pictures) >= 2
    for name in pictures:
        assert re.search(rf"^\[{re.escape(name)}\]: https://\S+\.(svg|png)$", description, re.MULTILINE), name
    assert "PASSED" in run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=wheel.parent)


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_it_installs_in_a_clean_environment_and_gets_an_object(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    distribution: Path = request.getfixturevalue(kind)
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python, command = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "objmapper"
    run(python, "-m", "pip", "install", "--quiet", distribution, cwd=tmp_path)
    where = "import objmapper_client, objmapper_server, objmapper_cli; print(objmapper_server.__file__)"
    assert run(python, "-c", where, cwd=tmp_path).startswith(str(tmp_path / "venv"))

    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "hello").write_text("hello, object")
    server = subprocess.Popen(
        [command, "serve", tmp_path / "root", "--unix", tmp_path / "s", "--no-admin"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        assert "ready" in server.stderr.readline()
        address = f"unix:{tmp_path / 's'}"
        assert run(command, "get", "/hello", "--server", address, cwd=tmp_path) == "hello, object"
    finally:
        server.terminate()
        assert server.wait(30) == 0
        if server.stderr is not None:
            server.stderr.close()
