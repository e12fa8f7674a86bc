"""The server: settings, lifecycle, figures. The data plane below it is native."""

from .concurrency import Concurrency
from .config import Config
from .server import Server
from .settings.config_error import ConfigError
from .statistics import Statistics

__all__ = ["Concurrency", "Config", "ConfigError", "Server", "Statistics"]
