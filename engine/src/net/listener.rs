//! Bound sockets: how the server creates them, accepts connections from them, and removes them.

use crate::net::socket;
use crate::net::socket_path::{MAX_UNIX_PATH, SocketPath};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, CWD, Mode as Permissions};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::errors::{Error, StartError};
use crate::handover::Handover;
use crate::net::eventfd::EventFd;
use crate::net::transport::{IoMode, Transport};
use crate::protocol::{self, Status};
use crate::service::Service;
use crate::session::Session;
use crate::settings::Settings;

/// Connections that the kernel queues until the server accepts them; the kernel cuts this to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// The pause in accepting when no descriptor is left: accepting fails ten times a second at most.
const PAUSE: Duration = Duration::from_millis(100);

/// The outcome of an attempt to accept.
#[derive(Debug)]
pub enum AcceptOutcome {
    Session(Box<Session>),
    /// The server refused the connection with an error message, or the client had left.
    Refused,
    /// No connection waits.
    Nothing,
    /// No descriptor or memory is left: try again after this time.
    Exhausted(Duration),
}

/// The listening socket of one transport. Besides new connections it takes in sessions that another model hands over.
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
    handed_over: Handover<Box<Session>>,
    event_fd: EventFd,
}

impl Listener {
    pub fn unix(path: &Path, settings: &Settings, notices: &mut Vec<String>) -> Result<Self, StartError> {
        let mode = settings.unix_mode;
        let shown = path.display().to_string();
        let fail = |what: &str| {
            let (what, shown) = (what.to_owned(), shown.clone());
            move |errno| StartError::new(errno, what, shown)
        };
        if path.as_os_str().as_bytes().len() > MAX_UNIX_PATH {
            let why = format!("a Unix socket's path has at most {MAX_UNIX_PATH} bytes: choose a shorter one");
            return Err(StartError::new(Errno::NAMETOOLONG, why, shown));
        }
        let claim = SocketPath::claim(path, notices)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(fail("cannot make a socket"))?;
        // bind(2) gives the file the permissions of the socket's own inode, so no other user can connect in between.
        fs::fchmod(&socket, Permissions::from_raw_mode(mode)).map_err(fail("cannot set permissions"))?;
        let name = SocketAddrUnix::new(path).map_err(fail("not a path for a Unix socket"))?;
        net::bind(&socket, &name).map_err(fail("cannot bind"))?;
        // The umask has narrowed the permissions; set exactly those requested.
        fs::chmodat(CWD, path, Permissions::from_raw_mode(mode), fs::AtFlags::empty())
            .map_err(fail("cannot set permissions"))?;
        let claim = claim.bound()?;
        if !settings.writable {
            socket::set_passrights(&socket, false).map_err(fail("cannot refuse descriptors"))?;
        }
        net::listen(&socket, BACKLOG).map_err(fail("cannot listen"))?;
        Self::new(Transport::Unix, format!("unix:{shown}"), socket, Some(claim))
    }

    pub fn tcp(address: SocketAddr) -> Result<Self, StartError> {
        let fail = |what: &str| {
            let what = what.to_owned();
            move |errno| StartError::new(errno, what, format!("tcp://{address}"))
        };
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(fail("cannot make a socket"))?;
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
            .map_err(fail("cannot tell the bound address"))?;
        Self::new(Transport::Tcp, format!("tcp://{bound}"), socket, None)
    }

    /// Takes over a listening socket that another process, a service manager, has bound and continues to hold.
    pub fn inherited(socket: &OwnedFd, settings: &Settings) -> Result<Self, StartError> {
        let subject = String::from("a socket that was handed over");
        let fail = |what: &str| {
            let (what, subject) = (what.to_owned(), subject.clone());
            move |errno| StartError::new(errno, what, subject)
        };
        let unfit = |why: &str| StartError::new(Errno::INVAL, why, subject.clone());
        let listens = sockopt::socket_acceptconn(socket).map_err(fail("is no socket"))?;
        if !listens || sockopt::socket_type(socket).map_err(fail("is no socket"))? != SocketType::STREAM {
            return Err(unfit("is not one that listens for connections (ListenStream=)"));
        }
        let name = net::getsockname(socket).map_err(fail("cannot tell the bound address"))?;
        let (transport, address) = if let Ok(unix) = SocketAddrUnix::try_from(name.clone()) {
            let path = unix.path().filter(|path| !path.is_empty());
            let path = path.ok_or_else(|| unfit("has no path: abstract Unix sockets have no permissions"))?;
            (Transport::Unix, format!("unix:{}", path.to_string_lossy()))
        } else if let Ok(address) = SocketAddr::try_from(name) {
            (Transport::Tcp, format!("tcp://{address}"))
        } else {
            return Err(unfit("is of a family that is not served"));
        };
        match transport {
            Transport::Unix => socket::set_passrights(socket, settings.writable),
            _ => configure_tcp(socket),
        }
        .map_err(fail("cannot set socket options"))?;
        let own = rustix::io::fcntl_dupfd_cloexec(socket, 0).map_err(fail("cannot take it over"))?;
        // A flag of the open file description, which all its holders share; a service manager only polls it.
        rustix::io::ioctl_fionbio(&own, true).map_err(fail("cannot take it over"))?;
        Ok(Listener { shared: true, ..Self::new(transport, address, own, None)? })
    }

    fn new(
        transport: Transport,
        address: String,
        socket: OwnedFd,
        path: Option<SocketPath>,
    ) -> Result<Self, StartError> {
        let event_fd =
            EventFd::new().map_err(|errno| StartError::new(errno, "cannot make an eventfd", &address))?;
        Ok(Listener {
            transport,
            address,
            socket,
            shared: false,
            handed_over: Handover::new(),
            event_fd,
            _path: path,
        })
    }

    /// Accepts one connection, without waiting.
    pub fn accept(&self, service: &Arc<Service>) -> AcceptOutcome {
        let gauges = service.statistics.gauges(self.transport);
        let socket = match net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::AGAIN) => return AcceptOutcome::Nothing,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                gauges.accept_failures_total.fetch_add(1, Relaxed);
                return AcceptOutcome::Exhausted(PAUSE);
            }
            // shutdown(2) has ended the listener, at the end of a drain.
            Err(Errno::INVAL) => return AcceptOutcome::Nothing,
            // ECONNABORTED, EPROTO, ENETDOWN and the like concern only this one connection, which is gone.
            Err(_) => return AcceptOutcome::Refused,
        };
        let full = Error::Busy("the server has as many connections as it may have, try again");
        let beyond_reserve = socket.as_raw_fd() as u64 >= service.descriptor_limit;
        let admitted = if beyond_reserve { Err(full) } else { service.peers.admit(&socket, self.transport) };
        let error = match admitted {
            Ok(client_access) if service.admit_connection() => {
                return AcceptOutcome::Session(Box::new(Session::new(
                    socket,
                    self.transport,
                    service,
                    client_access,
                )));
            }
            Ok(_) => full,
            Err(error) => error,
        };
        if error.status() == Status::Unavailable {
            gauges.rejected_total.fetch_add(1, Relaxed);
        }
        let mut word = Vec::new();
        protocol::encode_error(&mut word, error.status(), &error.to_string());
        // The message fits a fresh socket's buffer. The client may be gone; ignore errors.
        let _ = socket::send(&socket, &word, IoMode::NonBlocking, false);
        AcceptOutcome::Refused
    }

    /// Accepts the connections in the backlog, skips refused ones, and ends listening. Afterwards the kernel refuses
    /// clients that connect. On a shared socket they wait for the next server instead: shutdown(2) would end the
    /// socket for all its holders.
    pub fn accept_rest(&self, service: &Arc<Service>, mut take: impl FnMut(Box<Session>)) {
        // The bound keeps clients that connect meanwhile from prolonging this without end.
        for _ in 0..=BACKLOG {
            match self.accept(service) {
                AcceptOutcome::Session(session) => take(session),
                AcceptOutcome::Refused => {}
                AcceptOutcome::Nothing | AcceptOutcome::Exhausted(_) => break,
            }
        }
        if !self.shared {
            let _ = net::shutdown(&self.socket, net::Shutdown::Both);
        }
    }

    /// Gives a session to the model that serves this listener next. Returns it if no model takes over, which happens
    /// only while all drain or stop.
    pub fn hand_over(&self, session: Box<Session>) -> Result<(), Box<Session>> {
        self.handed_over.give(session)?;
        self.event_fd.notify();
        Ok(())
    }

    /// Takes in a session that another model handed over. Call only after [`serve`](Self::serve).
    pub fn take_over(&self) -> Option<Box<Session>> {
        // Looks into the queue with or without a notification: a spare notification costs one extra look.
        self.event_fd.take();
        self.handed_over.take()
    }

    /// Registers the calling thread as a taker of sessions, for as long as it keeps the returned value.
    pub fn serve(self: &Arc<Self>) -> Taker {
        self.handed_over.enlist();
        Taker { listener: Arc::clone(self), is_enlisted: true }
    }

    /// Readable while sessions wait for a taker.
    pub fn event_fd(&self) -> &EventFd {
        &self.event_fd
    }
}

/// The duty to take over sessions.
#[derive(Debug)]
pub struct Taker {
    listener: Arc<Listener>,
    is_enlisted: bool,
}

impl Taker {
    pub fn is_enlisted(&self) -> bool {
        self.is_enlisted
    }

    /// Ends the duty, unless a session waits that no other taker would take; returns false then.
    pub fn leave(&mut self) -> bool {
        if self.is_enlisted && !self.listener.handed_over.leave() {
            return false;
        }
        self.is_enlisted = false;
        true
    }

    /// Ends the duty and leaves waiting sessions to the model that takes over.
    pub fn withdraw(&mut self) {
        if std::mem::take(&mut self.is_enlisted) {
            self.listener.handed_over.withdraw();
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.withdraw();
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
