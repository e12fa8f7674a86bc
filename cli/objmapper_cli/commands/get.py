"""``objmapper get``: objects, to standard output or into files. Memory is bounded for any size."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from objmapper_cli.download import Download
from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.formatting import print_fetched
from objmapper_cli.name_encoding import local_name, uri_of
from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, WaitOption, complete_with, open_client
from objmapper_cli.output_file import make_directories, open_output_file
from objmapper_cli.progress import Progress
from objmapper_client.client import Client
from objmapper_client.protocol import Mode

if TYPE_CHECKING:
    from objmapper_cli.parallel_download import OnDownloaded

#: The maximum size of a file.
MAX_BYTES: Final = (1 << 63) - 1


def get(
    uris: Annotated[
        list[str],
        typer.Argument(metavar="URI...", help="URIs of objects, such as /models/weights.bin.", show_default=False),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR",
            help="Write to FILE; '-' is standard output. Several objects go into DIR.",
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option("--recursive", "-r", help="Each URI is a prefix: get all objects that begin with it, into DIR."),
    ] = False,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="fdpass|copy|splice",
            help="Delivery mode. [default: the best one available]",
            autocompletion=complete_with("fdpass", "copy", "splice"),
        ),
    ] = None,
    as_json: JsonOption = False,
    server: ServerOption = None,
    offset: Annotated[int, typer.Option(metavar="BYTES", help="First byte to get.", min=0, max=MAX_BYTES)] = 0,
    length: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Maximum number of bytes to get.", min=0, max=MAX_BYTES)
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", metavar="N", help="Parallel downloads into DIR.", min=1, max=1000)
    ] = 4,
    sync: Annotated[bool, typer.Option("--sync", help="Return when files, and their names, are on the disk.")] = False,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = "0",
) -> int:
    """Write objects to standard output or into files.

    Several objects go to standard output one after the other, or each into a file in a directory. A file gets its name
    when it is complete; an interrupted, failed or killed run leaves the old file. With --sync this holds for power
    failures, too. With --recursive, a file that already has its object's size and modification time is kept, so that
    an interrupted run can continue. With --json each object is a line: uri, file, size, fetched (false for a file
    that was kept).
    """
    uris = [uri_of(uri) for uri in uris]
    if output == "":
        raise CommandError('--output: expected a file or directory, or - for standard output (got "")', ExitCode.USAGE)
    ranged = offset > 0 or length is not None
    into_directory = recursive or (len(uris) > 1 and output not in (None, "-"))
    if ranged and (len(uris) > 1 or recursive):
        raise CommandError("--offset and --length: expected one object", ExitCode.USAGE)
    if recursive and output in (None, "-"):
        raise CommandError("--recursive: no directory to write to; add -o DIR", ExitCode.USAGE)
    if as_json and output in (None, "-"):
        raise CommandError(
            "--json: standard output has the object's content; write that to a file with -o FILE or DIR", ExitCode.USAGE
        )
    on_downloaded = print_fetched if as_json else None
    with open_client(server, timeout, _mode(mode), wait, parallel=jobs) as client:
        if into_directory:
            assert output is not None
            return _download_into(client, uris, Path(output), recursive, jobs, sync, on_downloaded)
        if len(uris) == 1:
            size = _download(client, uris[0], output, offset, length, sync)
            if on_downloaded is not None:
                assert output is not None
                on_downloaded(uris[0], output, size, True)
            return ExitCode.DONE
        from objmapper_cli.batch import run_each

        return run_each(uris, lambda uri: _download(client, uri, None, 0, None, False))


def _download(client: Client, uri: str, output: str | None, offset: int, length: int | None, sync: bool) -> int:
    """Fetch one object. Returns its size in bytes."""
    # Request first, so that a missing object creates no file.
    with (
        Download(client, uri, offset, length) as download,
        open_output_file(output, sync=sync) as target,
        Progress(uri, download.size) as progress,
    ):
        return download.write(target, progress)


def _download_into(
    client: Client,
    uris: list[str],
    folder: Path,
    recursive: bool,
    jobs: int,
    sync: bool,
    on_downloaded: "OnDownloaded | None",
) -> int:
    from objmapper_cli.parallel_download import DownloadTask, download_all, tasks_below
    from objmapper_cli.skipped_files import SkippedFiles

    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{folder}: not a directory; several objects need one", ExitCode.USAGE)
    if not recursive:
        names = [uri.rstrip("/").rpartition("/")[2] for uri in uris]
        for name in names:
            if names.count(name) > 1 or name in ("", ".", ".."):
                raise CommandError(
                    f"{folder / name}: no name for the file of one object; get them one by one", ExitCode.USAGE
                )
        make_directories(folder, sync=sync)
        return download_all(
            client, map(DownloadTask, uris, (folder / local_name(name) for name in names)), jobs, sync, on_downloaded
        )[0]
    first: int = ExitCode.DONE
    for prefix in uris:
        skipped = SkippedFiles()
        code, found = download_all(client, tasks_below(client, prefix, folder, skipped), jobs, sync, on_downloaded)
        if not found and not skipped.code:
            raise CommandError(f"{prefix}: no object has this prefix", ExitCode.NOT_FOUND)
        first = first or code or skipped.code
    return first


def _mode(name: str | None) -> Mode | None:
    known = {mode.name.lower(): mode for mode in Mode}
    if name is not None and name not in known:
        raise CommandError(f"--mode: expected one of {', '.join(known)} (got {name})", ExitCode.USAGE)
    return None if name is None else known[name]
