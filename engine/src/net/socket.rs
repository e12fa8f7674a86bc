//! System calls on sockets: bytes, passed descriptors, files, options.

use crate::net::transport::IoMode;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno, IoSlice, IoSliceMut};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    self, MMsgHdr, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage,
};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::time::Duration;

/// Room for one SCM_RIGHTS message with one descriptor.
const ONE_RIGHT: usize = rustix::cmsg_space!(ScmRights(1));

const MANY_RIGHTS: usize = rustix::cmsg_space!(ScmRights(MAX_FDS_PER_MESSAGE));

/// The kernel passes at most 253 descriptors in a message (SCM_MAX_FD). The server must receive all of them to close
/// them.
const MAX_RIGHTS_SPACE: usize = rustix::cmsg_space!(ScmRights(253));

/// Descriptors that the server sends in one call.
pub const MAX_FDS_PER_MESSAGE: usize = 64;

/// Reads the bytes that have arrived. This never receives descriptors: `recv` without a control buffer makes the
/// kernel drop them.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8], io_mode: IoMode) -> io::Result<usize> {
    let flags = match io_mode {
        IoMode::Blocking => RecvFlags::empty(),
        IoMode::NonBlocking => RecvFlags::DONTWAIT,
    };
    net::recv(socket, buffer, flags).map(|(length, _)| length)
}

/// Sends bytes; `more` announces that others follow at once. Returns how many the kernel took.
pub fn send(socket: &OwnedFd, bytes: &[u8], io_mode: IoMode, more: bool) -> io::Result<usize> {
    net::send(socket, bytes, io_mode.send_flags(more))
}

/// Passes each descriptor in a message of its own with the one byte `byte`, in as few calls as possible (64
/// descriptors per call). Returns how many were passed; the caller still closes the descriptors.
pub fn send_fd_bytes(
    socket: &OwnedFd,
    byte: u8,
    files: &[BorrowedFd<'_>],
    io_mode: IoMode,
) -> io::Result<usize> {
    let byte = [byte];
    let bytes = [IoSlice::new(&byte)];
    let flags = io_mode.send_flags(false);
    if let [file] = files {
        let mut space = [MaybeUninit::uninit(); ONE_RIGHT];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(file)));
        return net::sendmsg(socket, &bytes, &mut control, flags).map(|_| 1);
    }
    let files = &files[..files.len().min(MAX_FDS_PER_MESSAGE)];
    let mut spaces = [[MaybeUninit::uninit(); ONE_RIGHT]; MAX_FDS_PER_MESSAGE];
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

/// Sends bytes whose first one carries the descriptors, at most 64; the caller still closes them. Returns how many
/// bytes the kernel took: if it took one, all descriptors are passed.
pub fn send_with_fds(
    socket: &OwnedFd,
    bytes: &[u8],
    files: &[Option<BorrowedFd<'_>>],
    io_mode: IoMode,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); MANY_RIGHTS];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let (mut given, mut count) = ([socket.as_fd(); MAX_FDS_PER_MESSAGE], 0);
    for file in files.iter().flatten().take(MAX_FDS_PER_MESSAGE) {
        given[count] = *file;
        count += 1;
    }
    control.push(SendAncillaryMessage::ScmRights(&given[..count]));
    net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, io_mode.send_flags(false))
}

/// Reads the bytes that have arrived, and the descriptors that came along; these are close-on-exec.
///
/// Fails with ENOBUFS if descriptors were lost because this process can open no more.
pub fn recv_with_fds(
    socket: &OwnedFd,
    buffer: &mut [u8],
    io_mode: IoMode,
    files: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if io_mode == IoMode::NonBlocking {
        flags |= RecvFlags::DONTWAIT;
    }
    let mut space = [MaybeUninit::uninit(); MAX_RIGHTS_SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) { Err(Errno::NOBUFS) } else { Ok(received.bytes) }
}

/// Kernel memory, in bytes, of messages that the peer of a Unix stream socket has not read yet. 0: the peer has read
/// all.
pub fn unread_bytes(socket: &OwnedFd) -> io::Result<usize> {
    let mut queued: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (= TIOCOUTQ) writes one int, and the descriptor is open as long as it is borrowed.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    if answer < 0 { Err(last_error()) } else { Ok(usize::try_from(queued).unwrap_or(0)) }
}

/// The least kernel memory that a message of a Unix stream socket takes, in bytes: the cost of a single byte, as this
/// kernel accounts for it. 1 if the measurement fails.
pub fn min_message_cost() -> usize {
    static MIN_COST: OnceLock<usize> = OnceLock::new();
    *MIN_COST.get_or_init(|| {
        let flags = net::SocketFlags::CLOEXEC;
        let measured = net::socketpair(net::AddressFamily::UNIX, net::SocketType::STREAM, flags, None)
            .and_then(|(socket, _peer)| {
                send(&socket, &[0], IoMode::NonBlocking, false)?;
                unread_bytes(&socket)
            });
        measured.unwrap_or(1).max(1)
    })
}

/// Makes the kernel refuse or pass descriptors that clients send (Linux 6.16). Older kernels do not know the option;
/// there `receive` makes the kernel drop them.
pub fn set_passrights(socket: &OwnedFd, enabled: bool) -> io::Result<()> {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let value = libc::c_int::from(enabled);
    // SAFETY: the option's value is one int, and the last argument is its size.
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

/// Whether the client neither sends nor receives any more. A client that has only ended its sending still waits for
/// answers.
pub fn has_hung_up(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::HUP | PollFlags::ERR;
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0) && polled[0].revents().intersects(gone)
}

pub fn set_non_blocking(socket: &OwnedFd, never_waits: bool) -> io::Result<()> {
    io::ioctl_fionbio(socket, never_waits)
}

/// Limits how long one blocking call may take.
pub fn set_timeouts(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, Timeout::Recv, Some(timeout))?;
    sockopt::set_socket_timeout(socket, Timeout::Send, Some(timeout))
}

/// Sends a file's bytes from `offset` on without copying them through this process. Returns how many the kernel took;
/// 0 means that the file ends there.
pub fn send_file(socket: &OwnedFd, file: &OwnedFd, offset: u64, max_bytes: usize) -> io::Result<usize> {
    let mut at = offset;
    rustix::fs::sendfile(socket, file, Some(&mut at), max_bytes)
}

/// Whether the connection is gone in both directions.
pub fn is_cut(socket: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

pub(super) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
