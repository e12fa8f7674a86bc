"""``objmapper serve``: one server in the foreground, until a signal ends it."""

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from objmapper_cli.errors import ExitCode, discard_output, explain
from objmapper_cli.options import complete_with, models_by_transport

if TYPE_CHECKING:
    from objmapper_server import Server


def serve(
    root: Annotated[str | None, typer.Argument(metavar="ROOT", help="The directory whose files are served.")] = None,
    unix: Annotated[
        str | None, typer.Option(metavar="PATH", help="Serve on this Unix socket; the default without --tcp and --udp.")
    ] = None,
    unix_mode: Annotated[
        str | None, typer.Option(metavar="OCTAL", help="Who may connect to the Unix socket. [default: 0600]")
    ] = None,
    tcp: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Serve on TCP; port 0 takes a free one.")] = None,
    udp: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Serve on UDP; port 0 takes a free one.")] = None,
    udp_trusted: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="Answer plain requests from here too, such as 10.0.0.0/8 (repeatable)."),
    ] = None,
    udp_rate_limit: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES", help="A second over UDP to one address, such as 50MB; 0 for any. [default: 128MiB]"
        ),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT|unix:PATH", help="Where the figures are shown. [default: 127.0.0.1:9997]"),
    ] = None,
    admin_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Answer over the admin endpoint to this host name too, or to any with * (repeatable)."
        ),
    ] = None,
    no_admin: Annotated[bool, typer.Option("--no-admin", help="Show no figures.")] = False,
    concurrency_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TRANSPORT=]MODEL",
            help="auto, by-transport, thread-per-connection, … (repeatable)",
            autocompletion=models_by_transport,
        ),
    ] = None,
    pool_size: Annotated[
        str | None, typer.Option(metavar="N", help="Threads of a pool. [default: 0, twice the cores]")
    ] = None,
    max_queue_depth: Annotated[
        str | None, typer.Option(metavar="N", help="Requests that may wait; more are refused. [default: 100]")
    ] = None,
    max_threads: Annotated[
        str | None, typer.Option(metavar="N", help="Threads of thread-per-connection. [default: 1000]")
    ] = None,
    max_connections: Annotated[
        str | None, typer.Option(metavar="N", help="Connections at once. [default: 10000]")
    ] = None,
    allow_uid: Annotated[
        list[str] | None,
        typer.Option(metavar="USER", help="Let only these users connect to the Unix socket (repeatable)."),
    ] = None,
    allow_gid: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP", help="Whose members may connect to the Unix socket (repeatable)."),
    ] = None,
    allow_prefix: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX=uid:USER,gid:GROUP", help="Who may use what is below a URI (repeatable)."),
    ] = None,
    max_connections_per_uid: Annotated[
        str | None, typer.Option(metavar="N", help="Connections at once of one user. [default: 0, no cap]")
    ] = None,
    max_descriptors_per_uid: Annotated[
        str | None, typer.Option(metavar="N", help="Descriptors of one user, unread or open. [default: 0, no cap]")
    ] = None,
    optimize_for: Annotated[
        str | None,
        typer.Option(
            metavar="latency|throughput",
            help="Spin before sleeping, or batch. [default: throughput]",
            autocompletion=complete_with("latency", "throughput"),
        ),
    ] = None,
    async_storage: Annotated[
        bool | None,
        typer.Option(
            "--async-storage/--no-async-storage", help="Wait for the disk in threads of their own. [default: on]"
        ),
    ] = None,
    storage_pool_size: Annotated[
        str | None, typer.Option(metavar="N", help="How many of those there are. [default: 4]")
    ] = None,
    cache_size: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Small objects kept in memory, such as 512MB. [default: 1GiB]")
    ] = None,
    cache_max_age: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="Objects in memory are read again after that time. [default: 60]"),
    ] = None,
    max_output_buffer: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Answers in memory for one connection that does not read. [default: 4MiB]"),
    ] = None,
    max_output_memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="The same for all connections together. [default: 256MiB]")
    ] = None,
    follow_symlinks: Annotated[
        bool | None,
        typer.Option("--follow-symlinks/--no-follow-symlinks", help="Follow links that stay inside ROOT."),
    ] = None,
    writable: Annotated[
        bool | None, typer.Option("--writable/--no-writable", help="Let clients put and delete objects.")
    ] = None,
    max_object_size: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Refuse to store larger objects. [default: any size]")
    ] = None,
    min_upload_rate: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Bytes a second that a content must come with. [default: 1KiB]")
    ] = None,
    upload_timeout: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="One put must be over by then. [default: 3600]")
    ] = None,
    max_uploads_per_uid: Annotated[
        str | None, typer.Option(metavar="N", help="Contents that one user may be sending. [default: no cap]")
    ] = None,
    max_reserved_per_uid: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Disk kept free for what one user has announced. [default: 1GiB]"),
    ] = None,
    idle_timeout: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="Close a connection that is silent for this time. [default: 60]"),
    ] = None,
    header_timeout: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="A request must have arrived by then. [default: 10]")
    ] = None,
    request_timeout: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="An answer must have moved on by then. [default: 30]")
    ] = None,
    shutdown_grace: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="Shutdown grace period. [default: 10]")
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="text|json",
            help="How messages are written. [default: text]",
            autocompletion=complete_with("text", "json"),
        ),
    ] = None,
    access_log: Annotated[
        str | None, typer.Option(metavar="FILE", help="Append a sample of the requests, a line of JSON each.")
    ] = None,
    access_log_sample: Annotated[str | None, typer.Option(metavar="N", help="One request of N. [default: 100]")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="Read settings from a TOML file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print a line of JSON: pid, addresses, admin.")
    ] = False,
) -> int:
    """Serve the files under ROOT until SIGTERM or Ctrl-C.

    SIGHUP reads the settings again and reopens the access log. Every setting can also be given in the file, under its
    name, and in the environment, as OBJMAPPER_ and its name.
    """
    # Text as it was typed: the settings themselves say what is wrong with it.
    flags = dict(locals())
    del flags["config"], flags["no_admin"], flags["as_json"]
    if no_admin:
        flags["admin"] = "none"

    from objmapper_server import Config, Server
    from objmapper_server.process.logs import LOG, log_to_stderr
    from objmapper_server.process.socket_activation import handed_over

    # While it serves, SIGHUP is a reload; before and after, one that comes a moment too early or late ends nothing.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = Config.load(file=config, **flags)
    log_to_stderr(settings.log_format)
    try:
        with ExitStack() as stack:
            sockets = handed_over(os.environ)
            for each in sockets.values():
                stack.enter_context(each)
            server = Server(settings, sockets)
            finished = server.serve_forever(lambda: print_addresses(server, as_json=as_json))
    except OSError as error:
        code, line = explain(error)
        LOG.error(line)
        discard_output()
        return code
    if finished:
        return ExitCode.DONE
    LOG.error("stopped before everything under way was finished")
    return ExitCode.FAILED


def print_addresses(server: "Server", *, as_json: bool = False) -> None:
    """Say what was found at start and that clients can come, with `as_json` on standard output too."""
    from objmapper_server.process.logs import LOG

    for notice in server.notices:
        LOG.info(notice)
    admin_at = () if server.admin_address is None else ("admin", server.admin_address)
    facts = {"event": "ready", "addresses": dict(server.addresses), "admin": server.admin_address}
    if as_json:
        import json

        from objmapper_cli.formatting import print_text
        from objmapper_cli.output_file import naming_file

        document = {"pid": os.getpid(), "addresses": dict(server.addresses), "admin": server.admin_address}
        # Before the message: a server whose starter cannot read this ends, and is never ready.
        with naming_file("standard output"):
            print_text(json.dumps(document))
    LOG.info(" ".join(("ready", *server.addresses.values(), *admin_at)), extra={"facts": facts})
