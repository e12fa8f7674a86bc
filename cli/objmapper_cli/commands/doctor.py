"""``objmapper doctor``: problems of this machine for a server, and their remedies."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from objmapper_cli.errors import ExitCode

if TYPE_CHECKING:
    from objmapper_cli.doctor_checks import Finding

MARKS: Final = {"ok": "ok      ", "note": "note    ", "problem": "problem "}
COLOURS: Final = {"ok": "32", "note": "33", "problem": "1;31"}


def doctor(
    root: Annotated[str | None, typer.Argument(metavar="ROOT", help="Directory to serve.")] = None,
    unix: Annotated[str | None, typer.Option(metavar="PATH", help="Unix socket to serve.")] = None,
    tcp: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="TCP address.")] = None,
    udp: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="UDP address.")] = None,
    admin: Annotated[str | None, typer.Option(metavar="HOST:PORT|unix:PATH", help="Admin endpoint.")] = None,
    max_connections: Annotated[
        str | None, typer.Option(metavar="N", help="Maximum number of open connections.")
    ] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="Settings file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of check, level, finding and cure.")
    ] = False,
) -> int:
    """Check this machine for problems of a server.

    Each line is a finding with its remedy. The settings come from where `objmapper serve` reads them. The exit code is
    1 if there is a problem.
    """
    from objmapper_cli.doctor_checks import problem
    from objmapper_server import ConfigError

    flags = {"root": root, "unix": unix, "tcp": tcp, "udp": udp, "admin": admin, "max_connections": max_connections}
    try:
        findings = list(_findings(config, flags))
    except ConfigError as error:
        findings = [problem("settings", str(error), "correct it; objmapper config --check FILE checks a file alone")]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(_line(finding))
    return ExitCode.FAILED if any(finding.level == "problem" for finding in findings) else ExitCode.DONE


def _findings(file: str | None, flags: dict[str, Any]) -> Iterator["Finding"]:
    from objmapper_cli import doctor_checks
    from objmapper_server.settings.effective import settings_without_root

    config, has_root = settings_without_root(file, **flags)
    yield doctor_checks.ok("settings", f"valid{f', from {file}' if file else ''}")
    yield from doctor_checks.check_kernel()
    yield from doctor_checks.check_descriptors(config)
    yield from doctor_checks.check_backlog()
    yield from doctor_checks.check_root(Path(config.root) if has_root else None)
    yield from doctor_checks.check_unix_socket(config)
    yield from doctor_checks.check_access(config)
    yield from doctor_checks.check_ports(config)
    yield from doctor_checks.check_udp(config)


def _line(finding: "Finding") -> str:
    mark = MARKS[finding.level]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        mark = f"\x1b[{COLOURS[finding.level]}m{mark}\x1b[0m"
    cure = f"; {finding.cure}" if finding.cure else ""
    return f"{mark}{finding.check}: {finding.finding}{cure}"
