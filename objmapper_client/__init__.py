"""The client of objmapper: opens objects by URI, as file descriptors or bytes. Standard library only."""

from objmapper_client._operations.metadata_operations import Stat
from objmapper_client.address import Address, TcpAddress, UdpAddress, UnixAddress, default_address, parse
from objmapper_client.async_client import AsyncClient
from objmapper_client.client import Client
from objmapper_client.errors import (
    AddressError,
    Conflict,
    ConnectionFailed,
    DescriptorLimit,
    InvalidRequest,
    LocalProtocolError,
    ObjectNotFound,
    ObjmapperError,
    OutcomeUnknown,
    PermissionDenied,
    ProtocolError,
    RemoteProtocolError,
    RequestTimeout,
    ServerBusy,
    ServerFailed,
    ServerReply,
    ServerTimeout,
    UnansweredBreak,
    UnansweredTimeout,
    UnsupportedMode,
    UnsupportedOperation,
)
from objmapper_client.object import Object
from objmapper_client.protocol.v1 import Mode, Status
from objmapper_client.protocol.v2_responses import Entry, LeftOut

__all__ = [
    "Address",
    "AddressError",
    "AsyncClient",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "DescriptorLimit",
    "Entry",
    "InvalidRequest",
    "LeftOut",
    "LocalProtocolError",
    "Mode",
    "Object",
    "ObjectNotFound",
    "ObjmapperError",
    "OutcomeUnknown",
    "PermissionDenied",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestTimeout",
    "ServerBusy",
    "ServerFailed",
    "ServerReply",
    "ServerTimeout",
    "Stat",
    "Status",
    "TcpAddress",
    "UdpAddress",
    "UnansweredBreak",
    "UnansweredTimeout",
    "UnixAddress",
    "UnsupportedMode",
    "UnsupportedOperation",
    "default_address",
    "parse",
]
