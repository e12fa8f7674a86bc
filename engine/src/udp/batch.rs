//! Datagrams in and out by the batch: builds the arguments of recvmmsg(2) and sendmmsg(2) and reads their
//! results. Only this file and `socket.rs` here make raw system calls.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;

use crate::udp::codec::MAX_REQUEST;
use crate::udp::socket::last_error;

/// Datagrams received or sent in one call.
pub const BATCH: usize = 64;
/// Room for the control messages that we use: a local address (IPv6: 20 bytes) and a segment size.
const CONTROL: usize = 64;

/// The peer of a UDP request and the local address it used; the reply takes the same way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    /// The local address that the request was sent to, where the socket listens on all of them; IPv6 adds the
    /// interface.
    local: Option<(IpAddr, u32)>,
}

#[cfg(test)]
impl Peer {
    pub fn from_address(address: SocketAddr) -> Self {
        Peer { address, local: None }
    }
}

/// A received datagram.
#[derive(Debug)]
pub struct Received<'a> {
    pub from: Peer,
    /// The bytes kept of it, at most [`MAX_REQUEST`].
    pub bytes: &'a [u8],
}

/// Holds received datagrams until the next batch.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
    kept: [usize; BATCH],
    /// Lengths as sent, padding included.
    lengths: [usize; BATCH],
    from: [Option<Peer>; BATCH],
}

/// The headers that the kernel reads and fills for a batch.
struct Batch {
    messages: [libc::mmsghdr; BATCH],
    names: [libc::sockaddr_storage; BATCH],
    pieces: [libc::iovec; BATCH],
    controls: [[u64; CONTROL / 8]; BATCH],
}

impl Batch {
    fn new() -> Self {
        // SAFETY: all of these are plain data of the kernel's, for which zeros are valid.
        unsafe { zeroed() }
    }
}

impl Inbox {
    pub fn new() -> Self {
        Inbox {
            bytes: vec![0; BATCH * MAX_REQUEST].into_boxed_slice(),
            kept: [0; BATCH],
            lengths: [0; BATCH],
            from: [None; BATCH],
        }
    }

    /// The datagrams of the batch.
    pub fn received(&self, count: usize) -> impl Iterator<Item = Received<'_>> {
        let buffers = self.bytes.chunks_exact(MAX_REQUEST);
        buffers.zip(&self.kept).zip(&self.from).take(count).filter_map(|((buffer, &kept), from)| {
            // None means an unknown address family, which an IP socket never delivers.
            from.map(|from| Received { from, bytes: &buffer[..kept] })
        })
    }

    /// Bytes of the batch as it was sent, padding included.
    pub fn bytes_received(&self, count: usize) -> usize {
        self.lengths[..count].iter().sum()
    }

    /// Receives a batch without waiting. Returns how many there are.
    pub fn receive(&mut self, socket: &OwnedFd) -> usize {
        let mut batch = Batch::new();
        for (at, buffer) in self.bytes.chunks_exact_mut(MAX_REQUEST).enumerate() {
            batch.pieces[at] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let head = &mut batch.messages[at].msg_hdr;
            head.msg_name = (&raw mut batch.names[at]).cast();
            head.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            head.msg_iov = &raw mut batch.pieces[at];
            head.msg_iovlen = 1;
            head.msg_control = batch.controls[at].as_mut_ptr().cast();
            head.msg_controllen = CONTROL as _;
        }
        // MSG_TRUNC: the kernel reports a datagram's full length, even where it exceeds the buffer.
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: every pointer leads into `batch` or `self.bytes`, which outlive the call and have the given sizes.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                batch.messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                flags,
                std::ptr::null_mut(),
            )
        };
        // EAGAIN, or an ICMP error about an earlier reply: no datagram has come.
        let received = usize::try_from(received).unwrap_or(0);
        for at in 0..received {
            let message = &batch.messages[at];
            self.lengths[at] = message.msg_len as usize;
            self.kept[at] = self.lengths[at].min(MAX_REQUEST);
            self.from[at] = read_name(&batch.names[at])
                .map(|address| Peer { address, local: read_local(&message.msg_hdr) });
        }
        received
    }
}

/// Datagrams to send.
#[derive(Debug, Default)]
pub struct Outbox {
    pub bytes: Vec<u8>,
    messages: Vec<Message>,
}

#[derive(Debug, Clone, Copy)]
struct Message {
    start: usize,
    end: usize,
    /// Bytes of each datagram that the kernel splits the message into; 0: one datagram.
    segment: usize,
    to: Peer,
}

impl Message {
    fn length(&self) -> usize {
        self.end - self.start
    }

    fn datagrams(&self) -> usize {
        if self.segment == 0 { 1 } else { self.length().div_ceil(self.segment) }
    }

    fn pieces(self) -> impl Iterator<Item = Message> {
        (self.start..self.end).step_by(self.segment.max(1)).map(move |start| Message {
            start,
            end: (start + self.segment).min(self.end),
            segment: 0,
            ..self
        })
    }
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Queues the bytes from `start` on as datagrams of `datagram` bytes; the last may be shorter. One
    /// message carries at most `max_bytes` bytes of them, the result of [`UdpSocket::segmented`].
    pub fn push(&mut self, start: usize, datagram: usize, max_bytes: usize, to: Peer) {
        for start in (start..self.bytes.len()).step_by(max_bytes.max(1)) {
            let end = (start + max_bytes).min(self.bytes.len());
            let segment = if end - start > datagram { datagram } else { 0 };
            self.messages.push(Message { start, end, segment, to });
        }
    }

    /// Queues the bytes from `start` on as one datagram.
    pub fn push_one(&mut self, start: usize, to: Peer) {
        self.messages.push(Message { start, end: self.bytes.len(), segment: 0, to });
    }

    /// Number of messages; one may hold several datagrams.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn bytes_of(&self, messages: Range<usize>) -> usize {
        self.messages[messages].iter().map(Message::length).sum()
    }

    pub fn datagrams_of(&self, messages: Range<usize>) -> usize {
        self.messages[messages].iter().map(Message::datagrams).sum()
    }

    pub fn is_segmented(&self, message: usize) -> bool {
        self.messages[message].segment > 0
    }

    /// Splits a segmented message into one message per datagram.
    pub fn divide(&mut self, message: usize) {
        let pieces: Vec<_> = self.messages[message].pieces().collect();
        self.messages.splice(message..=message, pieces);
    }

    pub fn clear(&mut self) {
        self.messages.clear();
        self.bytes.clear();
    }

    /// Passes messages from `first` on to the kernel. Returns how many it took.
    pub fn send(&self, socket: &OwnedFd, first: usize) -> Result<usize, Errno> {
        let mut batch = Batch::new();
        let messages = &self.messages[first..];
        let count = messages.len().min(BATCH);
        for (at, message) in messages[..count].iter().enumerate() {
            let bytes = &self.bytes[message.start..message.end];
            batch.pieces[at] =
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            let head = &mut batch.messages[at].msg_hdr;
            head.msg_namelen = write_name(&mut batch.names[at], message.to.address);
            head.msg_name = (&raw mut batch.names[at]).cast();
            head.msg_iov = &raw mut batch.pieces[at];
            head.msg_iovlen = 1;
            let length = write_control(&mut batch.controls[at], message);
            if length > 0 {
                head.msg_control = batch.controls[at].as_mut_ptr().cast();
                head.msg_controllen = length as _;
            }
        }
        // SAFETY: every pointer leads into `batch` or `self.bytes`, which outlive the call; the kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                batch.messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        if sent < 0 { Err(last_error()) } else { Ok(sent as usize) }
    }
}

fn read_name(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let name: *const libc::sockaddr_storage = name;
    // SAFETY: the storage is large and aligned enough for either type, and the family says which one it holds.
    unsafe {
        match i32::from((*name).ss_family) {
            libc::AF_INET => {
                let v4 = &*name.cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let v6 = &*name.cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

fn write_name(name: &mut libc::sockaddr_storage, address: SocketAddr) -> libc::socklen_t {
    let name: *mut libc::sockaddr_storage = name;
    match address {
        SocketAddr::V4(address) => {
            // SAFETY: the storage is large and aligned enough, and zeroed.
            let v4 = unsafe { &mut *name.cast::<libc::sockaddr_in>() };
            v4.sin_family = libc::AF_INET as libc::sa_family_t;
            v4.sin_port = address.port().to_be();
            v4.sin_addr.s_addr = u32::from(*address.ip()).to_be();
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(address) => {
            // SAFETY: as above.
            let v6 = unsafe { &mut *name.cast::<libc::sockaddr_in6>() };
            v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            v6.sin6_port = address.port().to_be();
            v6.sin6_addr.s6_addr = address.ip().octets();
            v6.sin6_scope_id = address.scope_id();
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// The local address of a datagram, where the socket asked the kernel for it.
fn read_local(head: &libc::msghdr) -> Option<(IpAddr, u32)> {
    // SAFETY: the kernel filled the control buffer of this head and set its length, which the macros respect.
    // A message of the named kind holds the named structure.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(head);
        while let Some(message) = at.as_ref() {
            match (message.cmsg_level, message.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = libc::CMSG_DATA(at).cast::<libc::in_pktinfo>().read_unaligned();
                    return Some((Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into(), 0));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = libc::CMSG_DATA(at).cast::<libc::in6_pktinfo>().read_unaligned();
                    let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    // Only a link-local address needs its interface.
                    let interface = if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                    return Some((ip.into(), interface));
                }
                _ => at = libc::CMSG_NXTHDR(head, at),
            }
        }
    }
    None
}

/// Writes the control messages of a message. Returns their length.
fn write_control(control: &mut [u64; CONTROL / 8], message: &Message) -> usize {
    let mut at = 0;
    match message.to.local {
        Some((IpAddr::V4(ip), _)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(ip).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            at += write_one(control, at, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some((IpAddr::V6(ip), interface)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: interface as _,
            };
            at += write_one(control, at, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
        None => {}
    }
    if message.segment > 0 {
        at += write_one(control, at, libc::SOL_UDP, libc::UDP_SEGMENT, message.segment as u16);
    }
    at
}

/// Writes one control message at a multiple of 8. Returns the space it takes.
fn write_one<T: Copy>(control: &mut [u64; CONTROL / 8], at: usize, level: i32, kind: i32, value: T) -> usize {
    // SAFETY: the macros only compute.
    let (length, space) = unsafe {
        (libc::CMSG_LEN(size_of::<T>() as u32) as usize, libc::CMSG_SPACE(size_of::<T>() as u32) as usize)
    };
    assert!(at + space <= CONTROL, "the control buffer has room for all that we write");
    let mut head = MaybeUninit::<libc::cmsghdr>::zeroed();
    // SAFETY: zeros are a valid head; the place was checked to lie within the buffer, for head and value.
    unsafe {
        let written = head.assume_init_mut();
        written.cmsg_len = length as _;
        written.cmsg_level = level;
        written.cmsg_type = kind;
        let place = control.as_mut_ptr().cast::<u8>().add(at);
        place.cast::<libc::cmsghdr>().write(head.assume_init());
        libc::CMSG_DATA(place.cast()).cast::<T>().write_unaligned(value);
    }
    space
}
