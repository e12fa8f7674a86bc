//! The socket: bind, configure, and handle replies that the kernel does not accept.
//!
//! Every datagram goes out with DF set: neither routers nor this machine fragment it. Several threads may
//! receive and send at once; the kernel keeps each datagram whole.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use std::mem::size_of;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::errors::StartError;
use crate::net::network::Network;
use crate::udp::admission::Admission;
use crate::udp::batch::{Inbox, Outbox};
use crate::udp::counts::DatagramCounts;

/// The buffer size that the server requests from the kernel for each direction; the kernel caps it at
/// net.core.{r,w}mem_max.
const KERNEL_BUFFER: usize = 4 << 20;
/// Bytes of all segments of one message, under the kernel's limit for either family.
const MAX_SEGMENTED: usize = 65_000;
/// How long a send waits for a full network queue before it drops replies. Clients send the request again.
const SEND_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

#[derive(Debug)]
pub struct UdpSocket {
    /// The URL as a client writes it: `udp://127.0.0.1:9998`.
    pub address: String,
    pub admission: Admission,
    socket: OwnedFd,
    /// Whether the kernel splits one large message into datagrams (UDP_SEGMENT).
    segmentation: AtomicBool,
    /// The kernel's drop counter when the server took the socket: the kernel counts over the socket's life.
    dropped_before: u32,
}

impl UdpSocket {
    pub fn bind(
        address: SocketAddr,
        trusted: Vec<Network>,
        rate_limit: u64,
        notices: &mut Vec<String>,
    ) -> Result<Self, StartError> {
        let fail = |what: &str| {
            let what = what.to_owned();
            move |errno| StartError::new(errno, what, format!("udp://{address}"))
        };
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(family, SocketType::DGRAM, flags, None)
            .map_err(fail("cannot create a socket"))?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true).map_err(fail("cannot set socket options"))?;
        }
        net::bind(&socket, &address).map_err(fail("cannot bind"))?;
        let bound = net::getsockname(&socket)
            .and_then(SocketAddr::try_from)
            .map_err(fail("cannot get the bound address"))?;
        Self::new(bound, socket, trusted, rate_limit, notices)
    }

    /// Takes over a socket that a service manager has bound and keeps open. Datagrams wait in it while no server runs.
    pub fn inherited(
        socket: &OwnedFd,
        trusted: Vec<Network>,
        rate_limit: u64,
        notices: &mut Vec<String>,
    ) -> Result<Self, StartError> {
        let subject = "socket activation";
        let fail = |what: &'static str| move |errno| StartError::new(errno, what, subject);
        let unfit = |why: &str| StartError::new(Errno::INVAL, why, subject);
        let name = net::getsockname(socket).map_err(fail("cannot get the bound address"))?;
        let bound =
            SocketAddr::try_from(name).map_err(|_| unfit("the datagram socket is not IPv4 or IPv6"))?;
        if bound.port() == 0 {
            return Err(unfit("the datagram socket is not bound to a port"));
        }
        if net::getpeername(socket).is_ok() {
            return Err(unfit("the datagram socket is connected to one address; pass an unconnected one"));
        }
        let own = rustix::io::fcntl_dupfd_cloexec(socket, 0).map_err(fail("cannot duplicate the socket"))?;
        Self::new(bound, own, trusted, rate_limit, notices)
    }

    fn new(
        bound: SocketAddr,
        socket: OwnedFd,
        trusted: Vec<Network>,
        rate_limit: u64,
        notices: &mut Vec<String>,
    ) -> Result<Self, StartError> {
        let fail = |what: &'static str| move |errno| StartError::new(errno, what, format!("udp://{bound}"));
        configure(&socket, bound).map_err(fail("cannot set socket options"))?;
        let admission = Admission::new(trusted, rate_limit).map_err(fail("cannot get random bytes"))?;
        if !bound.ip().is_loopback() {
            notices.push(format!(
                "udp://{bound} is not loopback: every host that reaches it may read every object, unencrypted; the server \
                 answers plain requests from loopback and udp_trusted only, other clients need a cookie first"
            ));
        }
        let dropped_before = dropped_by_kernel(&socket).unwrap_or(0);
        Ok(UdpSocket {
            address: format!("udp://{bound}"),
            admission,
            socket,
            segmentation: true.into(),
            dropped_before,
        })
    }

    /// Receives the waiting datagrams into the inbox, without blocking. Returns how many.
    pub fn receive(&self, inbox: &mut Inbox) -> usize {
        let received = inbox.receive(&self.socket);
        let bytes = inbox.bytes_received(received);
        if received > 0 {
            self.admission.counts.bytes_received.fetch_add(bytes as u64, Relaxed);
        }
        received
    }

    /// Sends the outbox and empties it. Drops and counts datagrams that the kernel does not accept.
    pub fn send(&self, outbox: &mut Outbox) {
        let mut first = 0;
        while first < outbox.len() {
            match outbox.send(&self.socket, first) {
                Ok(sent) => {
                    let bytes = outbox.bytes_of(first..first + sent);
                    self.admission.counts.bytes_sent.fetch_add(bytes as u64, Relaxed);
                    first += sent;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.wait_writable() => {}
                Err(Errno::AGAIN) => {
                    let left = outbox.datagrams_of(first..outbox.len());
                    self.admission.counts.unsendable_dropped.fetch_add(left as u64, Relaxed);
                    break;
                }
                // The kernel or the device (EIO) cannot split this message: split it here, and for a device
                // from now on.
                Err(errno @ (Errno::IO | Errno::INVAL)) if outbox.is_segmented(first) => {
                    if errno == Errno::IO {
                        self.segmentation.store(false, Relaxed);
                    }
                    outbox.divide(first);
                }
                // This message alone failed: no route, a firewall, or larger than the path.
                Err(_) => {
                    let lost = outbox.datagrams_of(first..first + 1);
                    self.admission.counts.unsendable_dropped.fetch_add(lost as u64, Relaxed);
                    first += 1;
                }
            }
        }
        outbox.clear();
    }

    fn wait_writable(&self) -> bool {
        let mut events = [PollFd::new(&self.socket, PollFlags::OUT)];
        matches!(poll(&mut events, Some(&SEND_TIMEOUT)), Ok(1..) | Err(Errno::INTR))
    }

    /// How many bytes of consecutive datagrams of this size one message may carry.
    pub fn segmented(&self, datagram: usize) -> usize {
        let count = if self.segmentation.load(Relaxed) { MAX_SEGMENTED / datagram } else { 1 };
        count.max(1) * datagram
    }

    pub fn counts(&self) -> DatagramCounts {
        let dropped = dropped_by_kernel(&self.socket).unwrap_or(self.dropped_before);
        self.admission.counts.read(u64::from(dropped.wrapping_sub(self.dropped_before)))
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sets the options that a bound socket accepts. Whether it takes IPv4 besides IPv6 is fixed before bind.
fn configure(socket: &OwnedFd, bound: SocketAddr) -> Result<(), Errno> {
    enlarge_buffers(socket, bound);
    let is_any = bound.ip().is_unspecified();
    // A dual-stack socket has the options of both families.
    if bound.is_ipv4() || !sockopt::ipv6_v6only(socket)? {
        set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
    }
    if bound.is_ipv4() && is_any {
        set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    }
    if bound.is_ipv6() {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
        if is_any {
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        }
    }
    Ok(())
}

/// Requests larger buffers for bursts; accepts less. Keeps a larger buffer that the service manager has set:
/// systemd may exceed net.core.{r,w}mem_max (ReceiveBuffer=).
fn enlarge_buffers(socket: &OwnedFd, bound: SocketAddr) {
    let family = if bound.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let Ok(trial) = net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None) else { return };
    let _ = sockopt::set_socket_recv_buffer_size(&trial, KERNEL_BUFFER);
    let _ = sockopt::set_socket_send_buffer_size(&trial, KERNEL_BUFFER);
    if sockopt::socket_recv_buffer_size(&trial).ok() > sockopt::socket_recv_buffer_size(socket).ok() {
        let _ = sockopt::set_socket_recv_buffer_size(socket, KERNEL_BUFFER);
    }
    if sockopt::socket_send_buffer_size(&trial).ok() > sockopt::socket_send_buffer_size(socket).ok() {
        let _ = sockopt::set_socket_send_buffer_size(socket, KERNEL_BUFFER);
    }
}

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the option's value is one int, and the call passes its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

/// Datagrams that the kernel dropped because the receive buffer was full.
fn dropped_by_kernel(socket: &OwnedFd) -> Result<u32, Errno> {
    // linux/sock_diag.h: the ninth number of SO_MEMINFO.
    const SK_MEMINFO_DROPS: usize = 8;
    let mut figures = [0u32; 9];
    let mut length = size_of_val(&figures) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the array's size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            (&raw mut figures).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(last_error()) } else { Ok(figures[SK_MEMINFO_DROPS]) }
}

pub fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
