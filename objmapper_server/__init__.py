"""The server: settings, lifecycle, figures. The data plane below it is native."""

from .concurrency import Concurrency
from .config import Config
from .config_error import ConfigError
from .server import Server
from .statistics import Statistics

__all__ = ["Concurrency", "Config", "ConfigError", "Server", "Statistics"]
