"""``objmapper bench``: measures a server on this machine with a native load generator."""

from objmapper_cli.commands.bench.commands import bench

__all__ = ["bench"]
