//! Listening sockets: how the server creates them, accepts sockets from them, and removes them.

use crate::net::socket;
use crate::net::socket_path::{MAX_UNIX_PATH, SocketPath};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, CWD, Mode as Permissions};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::errors::StartError;
use crate::net::transport::Transport;

/// Connections that the kernel queues until the server accepts them; the kernel cuts this to net.core.somaxconn.
pub const BACKLOG: i32 = 4096;

/// The listening socket of one transport.
#[derive(Debug)]
pub struct Listener {
    pub transport: Transport,
    /// The address as clients write it: `unix:/path`, `tcp://127.0.0.1:9999`.
    pub address: String,
    // Dropped before the socket: while that is open, the inode number of its file cannot belong to another file.
    _path: Option<SocketPath>,
    socket: OwnedFd,
    /// Whether another process also holds the socket, and keeps clients waiting in it for the next server.
    shared: bool,
}

impl Listener {
    /// Binds a path. `permissions` are those of its file; `accepts_fds` says whether clients may pass descriptors.
    pub fn unix(
        path: &Path,
        permissions: u32,
        accepts_fds: bool,
        notices: &mut Vec<String>,
    ) -> Result<Self, StartError> {
        let shown = path.display().to_string();
        let fail = |what: &str| {
            let (what, shown) = (what.to_owned(), shown.clone());
            move |errno| StartError::new(errno, what, shown)
        };
        if path.as_os_str().as_bytes().len() > MAX_UNIX_PATH {
            let why = format!("a Unix socket's path has at most {MAX_UNIX_PATH} bytes; choose a shorter one");
            return Err(StartError::new(Errno::NAMETOOLONG, why, shown));
        }
        let claim = SocketPath::claim(path, notices)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(fail("cannot create a socket"))?;
        // bind(2) gives the file the permissions of the socket's own inode, so no other user can connect in between.
        fs::fchmod(&socket, Permissions::from_raw_mode(permissions))
            .map_err(fail("cannot set permissions"))?;
        let name = SocketAddrUnix::new(path).map_err(fail("not a path for a Unix socket"))?;
        net::bind(&socket, &name).map_err(fail("cannot bind"))?;
        // The umask has narrowed the permissions; set exactly those requested.
        fs::chmodat(CWD, path, Permissions::from_raw_mode(permissions), fs::AtFlags::empty())
            .map_err(fail("cannot set permissions"))?;
        let claim = claim.bound()?;
        if !accepts_fds {
            socket::set_passrights(&socket, false).map_err(fail("cannot refuse descriptors"))?;
        }
        net::listen(&socket, BACKLOG).map_err(fail("cannot listen"))?;
        Ok(Self::new(Transport::Unix, format!("unix:{shown}"), socket, Some(claim)))
    }

    pub fn tcp(address: SocketAddr) -> Result<Self, StartError> {
        let fail = |what: &str| {
            let what = what.to_owned();
            move |errno| StartError::new(errno, what, format!("tcp://{address}"))
        };
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(fail("cannot create a socket"))?;
        sockopt::set_socket_reuseaddr(&socket, true)
            .and_then(|()| configure_tcp(&socket))
            .map_err(fail("cannot set socket options"))?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true).map_err(fail("cannot set socket options"))?;
        }
        net::bind(&socket, &address).map_err(fail("cannot bind"))?;
        net::listen(&socket, BACKLOG).map_err(fail("cannot listen"))?;
        let bound = net::getsockname(&socket)
            .and_then(SocketAddr::try_from)
            .map_err(fail("cannot get the bound address"))?;
        Ok(Self::new(Transport::Tcp, format!("tcp://{bound}"), socket, None))
    }

    /// Takes over a listening socket that another process, a service manager, has bound and continues to hold.
    pub fn inherited(socket: &OwnedFd, accepts_fds: bool) -> Result<Self, StartError> {
        let subject = String::from("socket activation");
        let fail = |what: &str| {
            let (what, subject) = (what.to_owned(), subject.clone());
            move |errno| StartError::new(errno, what, subject)
        };
        let unfit = |why: &str| StartError::new(Errno::INVAL, why, subject.clone());
        let listens = sockopt::socket_acceptconn(socket).map_err(fail("not a socket"))?;
        if !listens || sockopt::socket_type(socket).map_err(fail("not a socket"))? != SocketType::STREAM {
            return Err(unfit("the socket does not listen for connections; use ListenStream="));
        }
        let name = net::getsockname(socket).map_err(fail("cannot get the bound address"))?;
        let (transport, address) = if let Ok(unix) = SocketAddrUnix::try_from(name.clone()) {
            let path = unix.path().filter(|path| !path.is_empty());
            let path = path.ok_or_else(|| {
                unfit("the Unix socket has no path, so it has no permissions; bind it to a path")
            })?;
            (Transport::Unix, format!("unix:{}", path.to_string_lossy()))
        } else if let Ok(address) = SocketAddr::try_from(name) {
            (Transport::Tcp, format!("tcp://{address}"))
        } else {
            return Err(unfit("unsupported address family; use a path, or an address and a port"));
        };
        match transport {
            Transport::Unix => socket::set_passrights(socket, accepts_fds),
            _ => configure_tcp(socket),
        }
        .map_err(fail("cannot set socket options"))?;
        let own = rustix::io::fcntl_dupfd_cloexec(socket, 0).map_err(fail("cannot duplicate the socket"))?;
        // A flag of the open file description, which all its holders share; a service manager only polls it.
        rustix::io::ioctl_fionbio(&own, true).map_err(fail("cannot duplicate the socket"))?;
        Ok(Listener { shared: true, ..Self::new(transport, address, own, None) })
    }

    fn new(transport: Transport, address: String, socket: OwnedFd, path: Option<SocketPath>) -> Self {
        Listener { transport, address, socket, shared: false, _path: path }
    }

    /// Accepts the socket of one connection, without waiting. EAGAIN: none waits.
    pub fn accept(&self) -> Result<OwnedFd, Errno> {
        net::accept_with(&self.socket, SocketFlags::CLOEXEC)
    }

    /// Ends listening: the kernel refuses clients that connect afterwards. On a shared socket they wait for the next
    /// server instead, since shutdown(2) would end the socket for all its holders.
    pub fn stop_listening(&self) {
        if !self.shared {
            let _ = net::shutdown(&self.socket, net::Shutdown::Both);
        }
    }
}

/// Sets the options that accepted connections inherit.
fn configure_tcp(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)
        .and_then(|()| sockopt::set_socket_keepalive(socket, true))
        .and_then(|()| sockopt::set_tcp_keepidle(socket, Duration::from_secs(60)))
        .and_then(|()| sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10)))
        .and_then(|()| sockopt::set_tcp_user_timeout(socket, 120_000))
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
