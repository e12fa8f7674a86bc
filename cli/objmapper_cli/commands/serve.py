"""``objmapper serve``: one server in the foreground, until a signal ends it."""

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from objmapper_cli.errors import ExitCode, discard_output, explain, with_exit_code

if TYPE_CHECKING:
    from objmapper_server import Server


class ServeCommand(TyperCommand):
    """The command on the help page. It makes its flags, one for each setting, when it is called.

    The import of the settings takes longer than the whole run of many other commands.
    """

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the arguments of the command with its flags."""
        from objmapper_cli.setting_flags import with_flags
        from objmapper_server import Config

        app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
        app.command("serve")(with_exit_code(with_flags(serve_settings, Config)))
        return typer.main.get_command(app).make_context(info_name, args, parent, **extra)


def serve_settings(
    *,
    no_admin: Annotated[bool, typer.Option("--no-admin", help="Serve no admin endpoint.")] = False,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="Read settings from a TOML file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print a line of JSON: pid, addresses, admin.")
    ] = False,
    **flags: Any,
) -> int:
    """Serve the files under ROOT until SIGTERM or Ctrl-C.

    SIGHUP reads the settings again and reopens the access log. Every setting can also be given in the file, under its
    name, and in the environment, as OBJMAPPER_ and its name.
    """
    if no_admin:
        flags["admin"] = "none"

    from objmapper_server import Config, Server
    from objmapper_server.process.logs import LOG, log_to_stderr
    from objmapper_server.process.socket_activation import inherited_sockets

    # While the server serves, SIGHUP is a reload; before and after, it is ignored, so that it does not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = Config.load(file=config, **flags)
    log_to_stderr(settings.log_format)
    try:
        with ExitStack() as stack:
            sockets = inherited_sockets(os.environ)
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
    LOG.error("stopped before all pending requests were finished; a longer shutdown_grace waits for them")
    return ExitCode.FAILED


serve = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


@serve.command("serve", cls=ServeCommand, help=serve_settings.__doc__)
def serve_help() -> None:
    """Represents the command on the help page, which shows no flags."""


def print_addresses(server: "Server", *, as_json: bool = False) -> None:
    """Log the notices of the start, and that the server is ready; with `as_json` on standard output, too."""
    from objmapper_server.process.logs import LOG

    for notice in server.notices:
        LOG.info(notice)
    admin_words = () if server.admin_address is None else ("admin", server.admin_address)
    facts = {"event": "ready", "addresses": dict(server.addresses), "admin": server.admin_address}
    if as_json:
        import json

        from objmapper_cli.formatting import print_text
        from objmapper_cli.output_file import naming_file

        document = {"pid": os.getpid(), "addresses": dict(server.addresses), "admin": server.admin_address}
        # Before the message: if its reader has closed standard output, the server ends without being ready.
        with naming_file("standard output"):
            print_text(json.dumps(document))
    LOG.info(" ".join(("ready", *server.addresses.values(), *admin_words)), extra={"facts": facts})
