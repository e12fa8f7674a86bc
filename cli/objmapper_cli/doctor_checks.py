"""Checks of the requirements of a server on this machine; each reports a finding and a remedy."""

import ctypes
import errno
import ipaddress
import os
import resource
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from objmapper_server import Config

SYS_OPENAT2: Final = 437
SO_PASSRIGHTS: Final = 83
AT_FDCWD: Final = -100
MAX_UNIX_PATH: Final = 107
BACKLOG: Final = 4096
#: Reserved descriptors, and the divisor for the share that may be in flight (engine/src/service.rs).
RESERVED: Final = 32
IN_FLIGHT_DIVISOR: Final = 4
#: The engine's socket buffers over UDP, in bytes (engine/src/udp/socket.rs).
UDP_BUFFER: Final = 4 << 20
_LIMITS: Final = ("rmem_max", "wmem_max")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. ``note``: not an error, but good to know; ``problem``: it impairs a server."""

    check: str
    level: Literal["ok", "note", "problem"]
    finding: str
    cure: str = ""


def ok(check: str, finding: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(check, "ok", finding)


def note(check: str, finding: str, cure: str) -> Finding:
    """Return a finding that is not an error, with advice."""
    return Finding(check, "note", finding, cure)


def problem(check: str, finding: str, cure: str) -> Finding:
    """Return a problem with its remedy."""
    return Finding(check, "problem", finding, cure)


def check_kernel() -> Iterator[Finding]:
    """Check the system calls and the socket option that the engine uses."""
    yield _check_openat2()
    try:
        os.close(os.memfd_create("objmapper-doctor", os.MFD_CLOEXEC))
        yield ok("memfd", "memfd_create works")
    except OSError as error:
        yield problem("memfd", f"memfd_create fails: {error.strerror}", "allow it in the container's seccomp profile")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
            yield ok("SO_PASSRIGHTS", "the kernel can refuse descriptors that clients send")
        except OSError as error:
            reason = "needs Linux 6.16" if error.errno == errno.ENOPROTOOPT else error.strerror
            yield note("SO_PASSRIGHTS", f"not there ({reason})", "nothing to do: descriptors that come are dropped")


def _check_openat2() -> Finding:
    # struct open_how: flags, mode, resolve (RESOLVE_BENEATH).
    open_how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, 0x08)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(SYS_OPENAT2, AT_FDCWD, b".", ctypes.byref(open_how), ctypes.sizeof(open_how))
    if descriptor >= 0:
        os.close(descriptor)
        return ok("openat2", "openat2 works")
    errno_value = ctypes.get_errno()
    if errno_value == errno.ENOSYS:
        return problem("openat2", f"Linux {os.uname().release} has no openat2", "use Linux 5.6 or newer")
    return problem(
        "openat2", f"openat2 fails: {os.strerror(errno_value)}", "allow openat2 in the container's seccomp profile"
    )


def check_descriptors(config: "Config") -> Iterator[Finding]:
    """Compare RLIMIT_NOFILE with `max_connections`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY else 1 << 20
    fits = max(1, limit - RESERVED - limit // IN_FLIGHT_DIVISOR)
    wanted = config.max_connections
    if fits >= wanted:
        raised = f" (the server raises the soft limit, {soft})" if soft != hard else ""
        yield ok("RLIMIT_NOFILE", f"{limit} descriptors suffice for {wanted} connections{raised}")
    else:
        need = -(-(wanted + RESERVED) * IN_FLIGHT_DIVISOR // (IN_FLIGHT_DIVISOR - 1))
        cure = (
            f"raise it to {need} (LimitNOFILE={need} under systemd, ulimit -Hn {need}), or set max_connections={fits}"
        )
        yield problem("RLIMIT_NOFILE", f"{limit} descriptors suffice for {fits} of {wanted} connections", cure)


def check_backlog() -> Iterator[Finding]:
    """Check the kernel's limit on connections that wait to be accepted."""
    path = Path("/proc/sys/net/core/somaxconn")
    try:
        somaxconn = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        yield note("somaxconn", f"cannot be read: {error}", "nothing to do")
        return
    if somaxconn >= BACKLOG:
        yield ok("somaxconn", f"{somaxconn} connections may wait to be accepted")
    else:
        cure = f"sysctl -w net.core.somaxconn={BACKLOG}, if thousands of clients connect at once"
        yield note("somaxconn", f"only {somaxconn} connections may wait to be accepted", cure)


def check_root(root: Path | None) -> Iterator[Finding]:
    """Check that the root is readable, and whether clients could write to passed files."""
    if root is None:
        yield note("root", "no root given", "objmapper doctor ROOT checks it, too")
        return
    try:
        with os.scandir(root) as entries:
            next(iter(entries), None)
    except OSError as error:
        cure = {
            errno.ENOENT: "create it, or name another",
            errno.ENOTDIR: "name a directory",
        }.get(error.errno or 0, f"let user {os.geteuid()} read and search it, and search the directories above it")
        yield problem("root", f"{root}: {error.strerror}", cure)
        return
    yield ok("root", f"{root} can be read")
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        yield ok("read-only", f"{root} is mounted read-only: no client can write through a descriptor")
    else:
        yield note(
            "read-only",
            f"clients of the server's user ({os.geteuid()}) can reopen a passed file for writing, "
            "where its permissions let them",
            "run the server as a user of its own, or serve a read-only bind mount",
        )


def check_unix_socket(config: "Config") -> Iterator[Finding]:
    """Check the socket's directory and the file at its path."""
    path = config.unix
    if path is None:
        return
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        yield problem("socket", f"{path} has more than {MAX_UNIX_PATH} bytes", "choose a shorter path")
        return
    yield from _check_directory(path.parent, is_default=config.sources["unix"] == "default")
    yield from _check_socket_file(path)


def _check_directory(directory: Path, *, is_default: bool) -> Iterator[Finding]:
    check = "socket directory"
    try:
        found = directory.lstat() if is_default else directory.stat()
    except FileNotFoundError:
        if is_default and os.access(directory.parent, os.W_OK | os.X_OK):
            yield ok(check, f"{directory} will be created")
        else:
            yield problem(check, f"{directory} does not exist", f"mkdir -p {directory}, or choose another path")
        return
    except OSError as error:
        yield problem(
            check, f"{directory}: {error.strerror}", f"let user {os.geteuid()} search the directories above it"
        )
        return
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        yield problem(check, f"{directory} is not a directory", "remove it, or choose another path")
    elif found.st_uid not in {os.geteuid(), 0} or (is_default and found.st_uid != os.geteuid()):
        cure = "choose a path below a directory of your own"
        yield problem(check, f"{directory} belongs to user {found.st_uid}, which could put another socket there", cure)
    elif mode & 0o022 and (is_default or not mode & stat.S_ISVTX):
        # Other programs may need these permissions: advise a change only for the server's own directory.
        cure = "choose a path in a directory of the server's own (mode 0700), such as the default one"
        if is_default:
            cure = f"chmod 0700 {directory}"
        yield problem(check, f"other users may write to {directory} and put another socket there ({mode:04o})", cure)
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield problem(
            check, f"user {os.geteuid()} may not write to {directory}", "choose a path in a directory of your own"
        )
    else:
        yield ok(check, f"{directory} is safe ({mode:04o}, user {found.st_uid})")


def _check_socket_file(path: Path) -> Iterator[Finding]:
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        # No file, or in a directory that has its own finding.
        return
    if not is_socket:
        yield problem("socket", f"{path} exists and is not a socket", "remove it, or choose another path")
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        code = probe.connect_ex(os.fspath(path))
    if code == 0:
        yield ok("socket", f"a server listens on {path}")
    elif code == errno.ECONNREFUSED:
        cure = f"start a server, which removes it, or rm {path}"
        yield problem("socket", f"{path} is stale: no server listens, connections are refused", cure)
    else:
        yield problem("socket", f"{path}: {os.strerror(code)}", "check its permissions (unix_mode)")


def check_access(config: "Config") -> Iterator[Finding]:
    """Check that the allow lists are effective: permissions of the socket, and transports without users."""
    others = bool(config.allow_gid) or not set(config.allow_uid) <= {os.geteuid(), 0}
    if config.unix is not None and others and not config.unix_mode & 0o022:
        finding = f"the socket's permissions ({config.unix_mode:04o}) keep out users that allow_uid and allow_gid name"
        cure = "set unix_mode to 0666 (under systemd SocketMode=), so that the lists decide"
        yield note("lists and permissions", finding, cure)
    streams = [name for name in ("tcp", "udp") if getattr(config, name) is not None]
    if streams and (config.allow_uid or config.allow_gid):
        finding = f"allow_uid and allow_gid apply to the Unix socket only; {' and '.join(streams)} admit every client"
        yield note(
            "lists and networks",
            finding,
            "serve the Unix socket alone, or restrict prefixes to users (allow_prefix)",
        )


def check_ports(config: "Config") -> Iterator[Finding]:
    """Check that the network addresses are free."""
    running = _running_listeners(config.admin)
    if config.tcp is not None:
        yield _check_port("tcp", config.tcp, running)
    if config.udp is not None:
        yield _check_port("udp", config.udp, running)
    if config.admin is not None and not config.admin.startswith("unix:"):
        yield _check_port("admin", config.admin, running)


def _running_listeners(admin: str | None) -> frozenset[str]:
    """The settings whose addresses a running objmapper server has, as its admin endpoint reports them."""
    from objmapper_cli.admin_client import AdminClient
    from objmapper_cli.errors import CommandError

    if admin is None or admin.endswith(":0"):
        return frozenset()
    try:
        return frozenset({"admin", *AdminClient(admin).read("/stats", "transports")["transports"]})
    except (CommandError, TypeError):
        # No server answers, or another program.
        return frozenset()


def _check_port(setting: str, listen: str, running: frozenset[str]) -> Finding:
    from objmapper_server.settings.listen_address import ListenAddress

    kind = socket.SOCK_DGRAM if setting == "udp" else socket.SOCK_STREAM
    try:
        point = ListenAddress.parse(listen, 0).resolve()
        family = socket.AF_INET6 if ":" in point.host else socket.AF_INET
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:
                # A port with connections of a stopped server in TIME_WAIT is free. For datagrams this option would
                # hide a user of the port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((point.host, point.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE and setting in running:
            return ok(f"{setting} port", f"a running objmapper server has {listen}")
        list_command = "ss -lunp" if kind == socket.SOCK_DGRAM else "ss -ltnp"
        cure = {
            errno.EADDRINUSE: f"end the process that has it ({list_command}), or set another {setting} address",
            errno.EADDRNOTAVAIL: "name an address that this machine has (ip address)",
            errno.EACCES: "choose a port from 1024 on, or grant CAP_NET_BIND_SERVICE",
        }.get(error.errno or 0, f"set {setting} to an address that this machine has")
        return problem(f"{setting} port", f"{listen}: {error.strerror or error}", cure)
    return ok(f"{setting} port", f"{listen} is free")


def check_udp(config: "Config") -> Iterator[Finding]:
    """Check UDP: the kernel's buffers, the address and the trusted networks."""
    if config.udp is None:
        return
    yield _check_udp_buffers()
    from objmapper_server.settings.listen_address import ListenAddress

    point = ListenAddress.parse(config.udp, 0)
    try:
        host = point.resolve().host
    except OSError:
        # The finding of the port reports it.
        return
    if not ipaddress.ip_address(host).is_loopback:
        yield note(
            "udp address",
            f"{config.udp} is not loopback: every host that reaches it may read every object, unencrypted",
            "listen on 127.0.0.1, or restrict access with a firewall",
        )
    for network in map(ipaddress.ip_network, config.udp_trusted):
        if network.is_global or network.prefixlen == 0:
            yield problem(
                "udp_trusted",
                f"{network} is trusted, but its addresses can be forged: plain replies would flood their owners",
                "trust only networks whose forged addresses your routers drop; other clients can pull",
            )


def _check_udp_buffers() -> Finding:
    check = "socket buffers"
    try:
        limit = min(int(Path(f"/proc/sys/net/core/{name}").read_text(encoding="ascii")) for name in _LIMITS)
    except OSError:
        # Only the initial network namespace shows them.
        return ok(check, "this network namespace does not show the kernel's limit")
    if limit < UDP_BUFFER:
        cure = f"sysctl -w {' '.join(f'net.core.{name}={UDP_BUFFER}' for name in _LIMITS)}"
        return note(check, f"a socket may buffer {limit} bytes: bursts over UDP lose datagrams, and cost retries", cure)
    return ok(check, f"a socket may buffer {limit} bytes")
