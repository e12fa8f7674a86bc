"""``objmapper bench``: what a server does on this machine, measured by a native load generator."""

from objmapper_cli.commands.bench.commands import bench

__all__ = ["bench"]
