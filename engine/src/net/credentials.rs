//! What the kernel knows of a peer: user, groups, process, address.

use crate::net::socket::last_error;
use crate::net::transport::Transport;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::net::{self};

/// The process at the other end of a Unix socket, as of connect(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// 0 for a process in a namespace that this one cannot see.
    pub pid: i32,
    pub uid: u32,
    /// The effective group and the supplementary groups.
    pub gids: Vec<u32>,
}

impl Credentials {
    /// For a peer without credentials: (uid_t) -1 is never a user's number.
    pub const UNKNOWN: Credentials = Credentials { pid: 0, uid: u32::MAX, gids: Vec::new() };
}

/// The kernel's credentials for the other end of a Unix socket (SO_PEERCRED, SO_PEERGROUPS).
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
    // A dual-stack socket shows IPv4 peers as mapped addresses; return the IPv4 address.
    std::net::SocketAddr::try_from(address).ok().map(|address| address.ip().to_canonical())
}

// rustix's type cannot hold the process id 0, which the kernel gives for a process in another namespace.
fn peer_credentials(socket: &OwnedFd) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the option's value is one ucred, and `length` holds its size; the descriptor is open as long as it is
    // borrowed.
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

/// The supplementary groups; empty if the kernel is older than Linux 4.13.
fn peer_groups(socket: &OwnedFd) -> io::Result<Vec<u32>> {
    const SO_PEERGROUPS: libc::c_int = 59;
    let mut groups = vec![0u32; 32];
    loop {
        let mut length = size_of_val(&groups[..]) as libc::socklen_t;
        // SAFETY: `length` holds the room in `groups`, and the kernel writes no more than that.
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
            // The kernel has written the needed size into `length`.
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

/// Describes the peer for people: process and user of a Unix socket, else the address.
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
