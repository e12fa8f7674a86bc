//! Bound sockets: how they come to be, how connections are taken from them, how they go.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, CWD, FileType, FlockOperation, Mode as Permissions, OFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::errors::{Error, StartError};
use crate::hand_over::HandOver;
use crate::protocol::{self, Status};
use crate::service::Service;
use crate::session::Session;
use crate::settings::Settings;
use crate::transport::{self, Bell, Patience, Transport};

/// Connections that the kernel keeps until they are accepted; it cuts this to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// The longest path of a Unix socket: sun_path without its final NUL.
const MAX_UNIX_PATH: usize = 107;
/// Without a descriptor to spare, accepting rests so long: it fails ten times a second at most.
const PAUSE: Duration = Duration::from_millis(100);

/// What came of an attempt to accept.
#[derive(Debug)]
pub enum Accepted {
    Session(Box<Session>),
    /// Refused with a word, or gone before it was taken.
    Refused,
    /// Nothing waits.
    Nothing,
    /// No descriptor or memory is left: try again after this time.
    Exhausted(Duration),
}

/// One transport's front door. Besides new connections it takes in sessions that another model hands over.
#[derive(Debug)]
pub struct Listener {
    pub transport: Transport,
    /// As a client writes it: `unix:/path`, `tcp://127.0.0.1:9999`.
    pub address: String,
    // Removed when the listener is dropped, and before the socket is closed: as long as that is open, the inode number of its
    // file is no other file's.
    _path: Option<SocketPath>,
    socket: OwnedFd,
    /// Whether somebody else holds the socket, too, and lets clients wait in it for the next server.
    shared: bool,
    handed_over: HandOver<Box<Session>>,
    bell: Bell,
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
        // bind(2) gives the file the permissions of the socket's own inode: no moment of others'.
        fs::fchmod(&socket, Permissions::from_raw_mode(mode)).map_err(fail("cannot set permissions"))?;
        let name = SocketAddrUnix::new(path).map_err(fail("not a path for a Unix socket"))?;
        net::bind(&socket, &name).map_err(fail("cannot bind"))?;
        // The umask has narrowed them; what was asked for is what there is to be.
        fs::chmodat(CWD, path, Permissions::from_raw_mode(mode), fs::AtFlags::empty())
            .map_err(fail("cannot set permissions"))?;
        let claim = claim.bound()?;
        if !settings.writable {
            transport::pass_descriptors(&socket, false).map_err(fail("cannot refuse descriptors"))?;
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

    /// Takes over a socket that somebody else has bound and listens on, and goes on to hold: a service manager.
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
            Transport::Unix => transport::pass_descriptors(socket, settings.writable),
            _ => configure_tcp(socket),
        }
        .map_err(fail("cannot set socket options"))?;
        let own = rustix::io::fcntl_dupfd_cloexec(socket, 0).map_err(fail("cannot take it over"))?;
        // A flag of the description, which all its holders share; a service manager only polls it.
        rustix::io::ioctl_fionbio(&own, true).map_err(fail("cannot take it over"))?;
        Ok(Listener { shared: true, ..Self::new(transport, address, own, None)? })
    }

    fn new(
        transport: Transport,
        address: String,
        socket: OwnedFd,
        path: Option<SocketPath>,
    ) -> Result<Self, StartError> {
        let bell = Bell::new().map_err(|errno| StartError::new(errno, "cannot make an eventfd", &address))?;
        Ok(Listener {
            transport,
            address,
            socket,
            shared: false,
            handed_over: HandOver::new(),
            bell,
            _path: path,
        })
    }

    /// Takes one connection, without waiting.
    pub fn accept(&self, service: &Arc<Service>) -> Accepted {
        let gauges = service.statistics.gauges(self.transport);
        let socket = match net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::AGAIN) => return Accepted::Nothing,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                gauges.accept_failures_total.fetch_add(1, Relaxed);
                return Accepted::Exhausted(PAUSE);
            }
            // After shutdown(2) on the listener, at the end of a drain.
            Err(Errno::INVAL) => return Accepted::Nothing,
            // ECONNABORTED, EPROTO, ENETDOWN and their kind concern the one connection, which is gone.
            Err(_) => return Accepted::Refused,
        };
        let full = Error::Busy("the server has as many connections as it may have, try again");
        let beyond_reserve = socket.as_raw_fd() as u64 >= service.descriptor_limit;
        let admitted = if beyond_reserve { Err(full) } else { service.peers.admit(&socket, self.transport) };
        let error = match admitted {
            Ok(guest) if service.admit_connection() => {
                return Accepted::Session(Box::new(Session::new(socket, self.transport, service, guest)));
            }
            Ok(_) => full,
            Err(error) => error,
        };
        if error.status() == Status::Unavailable {
            gauges.rejected_total.fetch_add(1, Relaxed);
        }
        let mut word = Vec::new();
        protocol::encode_error(&mut word, error.status(), &error.to_string());
        // It fits a fresh socket's buffer; a client that is gone misses nothing.
        let _ = transport::send(&socket, &word, Patience::Never, false);
        Accepted::Refused
    }

    /// Takes what waits in the backlog, past those that are refused, and ends listening: who connects now is refused by the
    /// kernel, or waits for the next server where the socket is shared with who has bound it (shutdown(2) would end it for all).
    pub fn accept_rest(&self, service: &Arc<Service>, mut take: impl FnMut(Box<Session>)) {
        // Those that come meanwhile could make it go on for ever.
        for _ in 0..=BACKLOG {
            match self.accept(service) {
                Accepted::Session(session) => take(session),
                Accepted::Refused => {}
                Accepted::Nothing | Accepted::Exhausted(_) => break,
            }
        }
        if !self.shared {
            let _ = net::shutdown(&self.socket, net::Shutdown::Both);
        }
    }

    /// Gives a session to the model that serves this listener next. It comes back where none is left, which is so only
    /// while all drain or stop.
    pub fn hand_over(&self, session: Box<Session>) -> Result<(), Box<Session>> {
        self.handed_over.give(session)?;
        self.bell.ring();
        Ok(())
    }

    /// Takes in a session that was handed over. Only after [`serve`](Self::serve).
    pub fn take_over(&self) -> Option<Box<Session>> {
        // Whether or not it has rung: a ring too many is one look too many.
        self.bell.take();
        self.handed_over.take()
    }

    /// A thread of a model takes over sessions as long as it has what this gives.
    pub fn serve(self: &Arc<Self>) -> Taker {
        self.handed_over.enlist();
        Taker { listener: Arc::clone(self), is_enlisted: true }
    }

    /// Readable while sessions wait to be taken over.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }
}

/// The right, and the duty, to take over sessions.
#[derive(Debug)]
pub struct Taker {
    listener: Arc<Listener>,
    is_enlisted: bool,
}

impl Taker {
    pub fn is_enlisted(&self) -> bool {
        self.is_enlisted
    }

    /// Gives it up, unless a session waits that no other takes; false then.
    pub fn leave(&mut self) -> bool {
        if self.is_enlisted && !self.listener.handed_over.leave() {
            return false;
        }
        self.is_enlisted = false;
        true
    }

    /// Gives it up to others: to the model that takes over.
    pub fn resign(&mut self) {
        if std::mem::take(&mut self.is_enlisted) {
            self.listener.handed_over.resign();
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.resign();
    }
}

/// What accepted connections inherit.
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

/// The right to a Unix socket's path: a locked file beside it, held as long as the server lives.
#[derive(Debug)]
struct SocketPath {
    path: PathBuf,
    lock_path: PathBuf,
    // Closing it gives the lock up.
    lock: OwnedFd,
    /// Device and inode of the socket that is ours.
    ours: Option<(u64, u64)>,
}

impl SocketPath {
    /// Locks the path and clears away a socket that nobody serves any more.
    fn claim(path: &Path, notices: &mut Vec<String>) -> Result<Self, StartError> {
        let shown = path.display().to_string();
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = lock_file(&lock_path, &shown)?;
        let claim = SocketPath { path: path.to_owned(), lock_path, lock, ours: None };
        let stat = match fs::lstat(path) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(claim),
            Err(errno) => return Err(StartError::new(errno, "cannot look at the socket's path", shown)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(StartError::new(
                Errno::EXIST,
                "there is a file that is no socket: remove it or choose another path",
                shown,
            ));
        }
        if answers(path) {
            return Err(StartError::new(Errno::ADDRINUSE, "another server listens there", shown));
        }
        fs::unlink(path)
            .map_err(|errno| StartError::new(errno, "cannot remove the stale socket", shown.clone()))?;
        notices.push(format!("removed a stale socket that nobody served: {shown}"));
        Ok(claim)
    }

    /// Remembers which socket is ours, now that it is bound.
    fn bound(mut self) -> Result<Self, StartError> {
        let stat = fs::lstat(&self.path)
            .map_err(|errno| StartError::new(errno, "the socket is gone", self.path.display().to_string()))?;
        self.ours = Some((stat.st_dev, stat.st_ino));
        Ok(self)
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        // Only what is ours: both files may have been removed meanwhile, and made anew by another server. The lock goes last,
        // so a server that waits for it finds the path free.
        let found = fs::lstat(&self.path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        if self.ours.is_some() && found == self.ours {
            let _ = fs::unlink(&self.path);
        }
        let there = fs::lstat(&self.lock_path).map(|stat| (stat.st_dev, stat.st_ino));
        let held = fs::fstat(&self.lock).map(|stat| (stat.st_dev, stat.st_ino));
        if held.is_ok() && there == held {
            let _ = fs::unlink(&self.lock_path);
        }
    }
}

/// Opens and locks the file; again where its last holder removed it meanwhile.
fn lock_file(path: &Path, shown: &str) -> Result<OwnedFd, StartError> {
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = fs::openat(CWD, path, flags, Permissions::from_raw_mode(0o600))
            .map_err(|errno| StartError::new(errno, "cannot make the lock file beside the socket", shown))?;
        match fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) => {
                return Err(StartError::new(
                    Errno::ADDRINUSE,
                    "another server holds this socket's lock",
                    shown,
                ));
            }
            Err(errno) => return Err(StartError::new(errno, "cannot lock", shown)),
        }
        let mine = fs::fstat(&lock)
            .map_err(|errno| StartError::new(errno, "cannot look at the lock file", shown))?;
        if fs::stat(path).is_ok_and(|there| (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)) {
            return Ok(lock);
        }
    }
}

/// Whether somebody listens on the socket. Only ECONNREFUSED says that nobody does.
fn answers(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(name) = SocketAddrUnix::new(path) else { return true };
    let Ok(probe) = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else {
        return true;
    };
    net::connect(&probe, &name) != Err(Errno::CONNREFUSED)
}
