"""``objmapper get``: objects, to standard output or into files. Memory is bounded whatever their size."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from objmapper_cli.destination import destination, make_directories
from objmapper_cli.errors import ExitCode, Failure
from objmapper_cli.fetching import Fetch
from objmapper_cli.names import local_name, uri_of
from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, WaitOption, client_of, one_of
from objmapper_cli.progress import Progress
from objmapper_cli.showing import print_fetched
from objmapper_client.client import Client
from objmapper_client.protocol import Mode

if TYPE_CHECKING:
    from objmapper_cli.fetching_many import Tell

#: No file is longer.
MOST_BYTES: Final = (1 << 63) - 1


def get(
    uris: Annotated[
        list[str],
        typer.Argument(metavar="URI...", help="The objects, such as /models/weights.bin.", show_default=False),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE|DIR", help="Write to FILE; '-' is standard output. Several go into DIR."
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Each URI is a prefix: get what begins with it, into DIR.")
    ] = False,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="fdpass|copy|splice",
            help="How it is delivered; by default the best that there is.",
            autocompletion=one_of("fdpass", "copy", "splice"),
        ),
    ] = None,
    as_json: JsonOption = False,
    server: ServerOption = None,
    offset: Annotated[int, typer.Option(metavar="BYTES", help="Begin here.", min=0, max=MOST_BYTES)] = 0,
    length: Annotated[
        int | None, typer.Option(metavar="BYTES", help="At most this many.", min=0, max=MOST_BYTES)
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", metavar="N", help="How many at once, into DIR.", min=1, max=1000)
    ] = 4,
    sync: Annotated[
        bool, typer.Option("--sync", help="Have files, and their names, on the disk when this returns.")
    ] = False,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = "0",
) -> int:
    """Write objects to standard output or into files.

    Several go to standard output one after the other, or each into a file in a directory. A file appears under its
    name when it is whole; an interrupted, failed or killed run leaves what was there. With --sync that holds for power
    failures, too. With --recursive a file that has its object's size and modification time already is kept as it is,
    so that an interrupted run can go on. With --json each object is a line: uri, file, size, fetched or
    there already.
    """
    uris = [uri_of(uri) for uri in uris]
    if output == "":
        raise Failure('--output "": a file or directory is needed, - is standard output', ExitCode.USAGE)
    ranged = offset > 0 or length is not None
    into_directory = recursive or (len(uris) > 1 and output not in (None, "-"))
    if ranged and (len(uris) > 1 or recursive):
        raise Failure("--offset and --length are for one object", ExitCode.USAGE)
    if recursive and output in (None, "-"):
        raise Failure("--recursive needs a directory to write to: -o DIR", ExitCode.USAGE)
    if as_json and output in (None, "-"):
        raise Failure("--json: standard output has the object's content; write that to -o FILE or DIR", ExitCode.USAGE)
    tell = print_fetched if as_json else None
    with client_of(server, timeout, _mode(mode), wait, at_once=jobs) as client:
        if into_directory:
            assert output is not None
            return _into(client, uris, Path(output), recursive, jobs, sync, tell)
        if len(uris) == 1:
            size = _get(client, uris[0], output, offset, length, sync)
            if tell is not None:
                assert output is not None
                tell(uris[0], output, size, True)
            return ExitCode.DONE
        from objmapper_cli.one_by_one import one_by_one

        return one_by_one(uris, lambda uri: _get(client, uri, None, 0, None, False))


def _get(client: Client, uri: str, output: str | None, offset: int, length: int | None, sync: bool) -> int:
    """Fetch one. Returns how many bytes it has."""
    # The answer first: a missing object leaves no trace of a file.
    with (
        Fetch(client, uri, offset, length) as fetch,
        destination(output, sync=sync) as target,
        Progress(uri, fetch.size) as progress,
    ):
        return fetch.write(target, progress)


def _into(
    client: Client, uris: list[str], folder: Path, recursive: bool, jobs: int, sync: bool, tell: "Tell | None"
) -> int:
    from objmapper_cli.fetching_many import Wanted, below, fetch_many
    from objmapper_cli.left_out import LeftOutFiles

    if folder.exists() and not folder.is_dir():
        raise Failure(f"{folder}: is not a directory: several objects need one", ExitCode.USAGE)
    if not recursive:
        names = [uri.rstrip("/").rpartition("/")[2] for uri in uris]
        for name in names:
            if names.count(name) > 1 or name in ("", ".", ".."):
                raise Failure(f"{folder / name}: not a file for one object; get them one by one", ExitCode.USAGE)
        make_directories(folder, sync=sync)
        return fetch_many(client, map(Wanted, uris, (folder / local_name(name) for name in names)), jobs, sync, tell)[0]
    first: int = ExitCode.DONE
    for prefix in uris:
        left_out = LeftOutFiles()
        code, found = fetch_many(client, below(client, prefix, folder, left_out), jobs, sync, tell)
        if not found and not left_out.code:
            raise Failure(f"{prefix}: no object begins with it", ExitCode.NOT_FOUND)
        first = first or code or left_out.code
    return first


def _mode(name: str | None) -> Mode | None:
    known = {mode.name.lower(): mode for mode in Mode}
    if name is not None and name not in known:
        raise Failure(f"--mode {name}: there are {', '.join(known)}", ExitCode.USAGE)
    return None if name is None else known[name]
