"""The admin endpoint's hostile clients: what they cost, and that the data plane does not notice them."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx
import pytest

from objmapper_server import Config, Server
from objmapper_server.admin import http_limits
from objmapper_server.admin.auth import MAX_CONTENT
from tests.support.raw_client import COPY, OK, RawClient
