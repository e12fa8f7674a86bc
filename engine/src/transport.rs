//! Sockets and SCM_RIGHTS. With the files of `storage/` the only one near raw system calls.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno, IoSlice, IoSliceMut};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    self, MMsgHdr, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::time::Duration;

/// What a connection runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Unix,
    Tcp,
    Udp,
}

impl Transport {
    pub const ALL: [Transport; 3] = [Transport::Unix, Transport::Tcp, Transport::Udp];

    pub fn index(self) -> usize {
        self as usize
    }

    pub fn name(self) -> &'static str {
        ["unix", "tcp", "udp"][self.index()]
    }

    pub fn from_name(name: &str) -> Option<Transport> {
        Transport::ALL.into_iter().find(|transport| transport.name() == name)
    }
}

/// Room for one SCM_RIGHTS message with one descriptor.
const ONE_RIGHT: usize = rustix::cmsg_space!(ScmRights(1));
const MANY_RIGHTS: usize = rustix::cmsg_space!(ScmRights(MOST_AT_ONCE));
/// The kernel passes at most 253 in a message (SCM_MAX_FD): all that come must be taken in to be closed.
const MOST_RIGHTS: usize = rustix::cmsg_space!(ScmRights(253));
/// So many descriptors go out in one call.
pub const MOST_AT_ONCE: usize = 64;

/// Whether a call may wait: for a thread that has one connection yes, for one that has many never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    Wait,
    Never,
}

impl Patience {
    fn send_flags(self, more: bool) -> SendFlags {
        let mut flags = SendFlags::NOSIGNAL;
        if self == Patience::Never {
            flags |= SendFlags::DONTWAIT;
        }
        if more {
            flags |= SendFlags::MORE;
        }
        flags
    }
}

/// Reads what has come. Descriptors that a client sends are never taken in: `recv` without a control buffer makes the
/// kernel drop them.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8], patience: Patience) -> io::Result<usize> {
    let flags = match patience {
        Patience::Wait => RecvFlags::empty(),
        Patience::Never => RecvFlags::DONTWAIT,
    };
    net::recv(socket, buffer, flags).map(|(length, _)| length)
}

/// Sends bytes; `more` says that others follow at once. Returns how many the kernel took.
pub fn send(socket: &OwnedFd, bytes: &[u8], patience: Patience, more: bool) -> io::Result<usize> {
    net::send(socket, bytes, patience.send_flags(more))
}

/// Passes each descriptor in a message of its own whose one byte is `byte`, with as few calls as can be (64 descriptors a
/// call). Returns how many were passed; the descriptors stay the caller's to close.
pub fn send_descriptors(
    socket: &OwnedFd,
    byte: u8,
    files: &[BorrowedFd<'_>],
    patience: Patience,
) -> io::Result<usize> {
    let byte = [byte];
    let bytes = [IoSlice::new(&byte)];
    let flags = patience.send_flags(false);
    if let [file] = files {
        let mut space = [MaybeUninit::uninit(); ONE_RIGHT];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(file)));
        return net::sendmsg(socket, &bytes, &mut control, flags).map(|_| 1);
    }
    let files = &files[..files.len().min(MOST_AT_ONCE)];
    let mut spaces = [[MaybeUninit::uninit(); ONE_RIGHT]; MOST_AT_ONCE];
    let mut controls: Vec<_> = spaces
        .iter_mut()
        .zip(files)
        .map(|(space, file)| {
            let mut control = SendAncillaryBuffer::new(space);
            control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(file)));
            control
        })
        .collect();
    let mut messages: Vec<_> = controls.iter_mut().map(|control| MMsgHdr::new(&bytes, control)).collect();
    net::sendmmsg(socket, &mut messages, flags)
}

/// Sends bytes whose first one carries the descriptors, 64 at most; they stay the caller's to close. Returns how many bytes
/// the kernel took: with one of them, all descriptors are passed.
pub fn send_carrying(
    socket: &OwnedFd,
    bytes: &[u8],
    files: &[Option<BorrowedFd<'_>>],
    patience: Patience,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); MANY_RIGHTS];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let (mut given, mut count) = ([socket.as_fd(); MOST_AT_ONCE], 0);
    for file in files.iter().flatten().take(MOST_AT_ONCE) {
        given[count] = *file;
        count += 1;
    }
    control.push(SendAncillaryMessage::ScmRights(&given[..count]));
    net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, patience.send_flags(false))
}

/// Reads what has come, and the descriptors that came along; they are close-on-exec.
///
/// Fails with ENOBUFS where descriptors were lost, because this process can have no more.
pub fn receive_carried(
    socket: &OwnedFd,
    buffer: &mut [u8],
    patience: Patience,
    files: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if patience == Patience::Never {
        flags |= RecvFlags::DONTWAIT;
    }
    let mut space = [MaybeUninit::uninit(); MOST_RIGHTS];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let came = net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    if came.flags.contains(ReturnFlags::CTRUNC) { Err(Errno::NOBUFS) } else { Ok(came.bytes) }
}

/// Kernel memory, in bytes, of what the peer of a Unix stream socket has not read yet. 0: it has read all.
pub fn unread_by_peer(socket: &OwnedFd) -> io::Result<usize> {
    let mut queued: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (= TIOCOUTQ) writes one int, and the descriptor is open as long as it is borrowed.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    if answer < 0 { Err(last_error()) } else { Ok(usize::try_from(queued).unwrap_or(0)) }
}

/// The least kernel memory that a message of a Unix stream socket takes, in bytes: that of a single byte, as this kernel
/// accounts for it. 1 where it could not be found out.
pub fn least_memory() -> usize {
    static LEAST: OnceLock<usize> = OnceLock::new();
    *LEAST.get_or_init(|| {
        let flags = net::SocketFlags::CLOEXEC;
        let measured = net::socketpair(net::AddressFamily::UNIX, net::SocketType::STREAM, flags, None)
            .and_then(|(socket, _peer)| {
                send(&socket, &[0], Patience::Never, false)?;
                unread_by_peer(&socket)
            });
        measured.unwrap_or(1).max(1)
    })
}

/// Makes the kernel refuse descriptors that clients send, or let them pass (Linux 6.16); older kernels do not know the
/// option, and there `receive` has them dropped.
pub fn pass_descriptors(socket: &OwnedFd, wanted: bool) -> io::Result<()> {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let value = libc::c_int::from(wanted);
    // SAFETY: the option's value is one int, whose size is told.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match if answer < 0 { Err(last_error()) } else { Ok(()) } {
        Err(Errno::NOPROTOOPT) => Ok(()),
        other => other,
    }
}

/// Who is at the other end of a Unix socket, or was at connect(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// 0 where it is in a process namespace that this one cannot see.
    pub pid: i32,
    pub uid: u32,
    /// The effective group and the supplementary ones.
    pub gids: Vec<u32>,
}

impl Credentials {
    /// Of no process: (uid_t) -1 is no user.
    pub const NOBODY: Credentials = Credentials { pid: 0, uid: u32::MAX, gids: Vec::new() };
}

/// What the kernel says of the other end of a Unix socket (SO_PEERCRED, SO_PEERGROUPS).
pub fn credentials(socket: &OwnedFd) -> io::Result<Credentials> {
    let peer = peer_credentials(socket)?;
    let mut gids = peer_groups(socket)?;
    gids.push(peer.gid);
    Ok(Credentials { pid: peer.pid, uid: peer.uid, gids })
}

/// The user at the other end of a Unix socket.
pub fn peer_uid(socket: &OwnedFd) -> io::Result<u32> {
    peer_credentials(socket).map(|peer| peer.uid)
}

/// The address at the other end of an Internet socket.
pub fn peer_address(socket: &OwnedFd) -> Option<std::net::IpAddr> {
    let address = net::getpeername(socket).ok()??;
    // As over IPv4 where a socket for both shows it as mapped.
    std::net::SocketAddr::try_from(address).ok().map(|address| address.ip().to_canonical())
}

/// Whether the client neither sends nor receives any more. One that has only ended its sending still waits for answers.
pub fn has_hung_up(socket: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(socket, PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::HUP | PollFlags::ERR;
    poll(&mut asked, Some(&now)).is_ok_and(|ready| ready > 0) && asked[0].revents().intersects(gone)
}

// rustix's type cannot hold the process id 0, which the kernel gives for a process in another namespace.
fn peer_credentials(socket: &OwnedFd) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the option's value is one ucred, whose size is told; the descriptor is open as long as it is borrowed.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if answer < 0 { Err(last_error()) } else { Ok(peer) }
}

/// The supplementary groups; none where the kernel is older than Linux 4.13.
fn peer_groups(socket: &OwnedFd) -> io::Result<Vec<u32>> {
    const SO_PEERGROUPS: libc::c_int = 59;
    let mut groups = vec![0u32; 32];
    loop {
        let mut length = size_of_val(&groups[..]) as libc::socklen_t;
        // SAFETY: the value has at most the room that is told.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let needed = length as usize / size_of::<u32>();
        match if answer < 0 { Err(last_error()) } else { Ok(()) } {
            // How much room it takes has been written.
            Err(Errno::RANGE) if needed > groups.len() => groups.resize(needed, 0),
            Err(Errno::NOPROTOOPT | Errno::NODATA) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
            Ok(()) => {
                groups.truncate(needed);
                return Ok(groups);
            }
        }
    }
}

/// Who is at the other end, for people: process and user of a Unix socket, else the address.
pub fn peer(socket: &OwnedFd, transport: Transport) -> String {
    match transport {
        Transport::Unix => match peer_credentials(socket) {
            Ok(peer) => format!("pid {} uid {}", peer.pid, peer.uid),
            Err(_) => "unknown".to_owned(),
        },
        _ => match net::getpeername(socket) {
            Ok(Some(address)) => std::net::SocketAddr::try_from(address)
                .map_or_else(|_| "unknown".to_owned(), |address| address.to_string()),
            _ => "gone".to_owned(),
        },
    }
}

pub fn set_non_blocking(socket: &OwnedFd, never_waits: bool) -> io::Result<()> {
    io::ioctl_fionbio(socket, never_waits)
}

/// Limits what one call that waits may take.
pub fn set_timeouts(socket: &OwnedFd, most: Duration) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, Timeout::Recv, Some(most))?;
    sockopt::set_socket_timeout(socket, Timeout::Send, Some(most))
}

/// Sends a file's bytes from `offset` on without copying them through this process. Returns how many the kernel took; 0
/// means that the file ends there.
pub fn send_file(socket: &OwnedFd, file: &OwnedFd, offset: u64, most: usize) -> io::Result<usize> {
    let mut at = offset;
    rustix::fs::sendfile(socket, file, Some(&mut at), most)
}

/// Waits until `length` bytes of a file from `at` on are in the page cache, by reading a byte of each page.
pub fn touch(file: &OwnedFd, at: u64, length: u64) -> io::Result<()> {
    // Asks for all of it at once; the reads below then wait in order.
    if length > 4096 {
        let wanted = std::num::NonZeroU64::new(length);
        let _ = rustix::fs::fadvise(file, at, wanted, rustix::fs::Advice::WillNeed);
    }
    let mut byte = [0u8];
    for offset in (at..at + length).step_by(4096) {
        match io::pread(file, &mut byte, offset) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) => break,
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Whether the connection is gone in both directions.
pub fn is_cut(socket: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// An eventfd: rung by one thread, noticed by others, in poll and epoll. Each `take` takes one ring away.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
        eventfd(0, flags).map(Bell)
    }

    pub fn ring(&self) {
        // Fails only where the counter is full, and then it is rung already.
        let _ = io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes one ring; false where it was not rung.
    pub fn take(&self) -> bool {
        io::read(&self.0, &mut [0u8; 8]).is_ok()
    }
}

/// A timerfd that becomes readable once a period. Unlike a timeout of every wait it is programmed once, which in a virtual
/// machine saves an exit to the hypervisor for each.
#[derive(Debug)]
pub struct Ticker(OwnedFd);

impl Ticker {
    pub fn new(period: Duration) -> io::Result<Self> {
        use rustix::time::{
            Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
        };
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let period = rustix::time::Timespec::try_from(period).map_err(|_| Errno::INVAL)?;
        let each = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &each)?;
        Ok(Ticker(timer))
    }

    /// Takes note that it was noticed.
    pub fn take(&self) {
        // EAGAIN: somebody else was told too.
        let _ = io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Ticker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
