"""The server's control plane: settings, lifecycle, statistics. The data plane is the native engine."""

from objmapper_server.concurrency import Concurrency
from objmapper_server.config import Config
from objmapper_server.errors import ConfigError
from objmapper_server.server import Server
from objmapper_server.statistics import Statistics

__all__ = ["Concurrency", "Config", "ConfigError", "Server", "Statistics"]
