//! The socket: bound, configured, and what is done where the kernel does not take an answer.
//!
//! Every datagram goes out with DF set: no router divides it, and none is divided here. Several threads may receive and
//! send at once; the kernel keeps each datagram whole.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use std::mem::size_of;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::batch::{Inbox, Outbox};
use super::counts::DatagramCounts;
use super::gate::Gate;
use super::limits::Network;
use crate::errors::StartError;

/// What the kernel is asked to keep for us, either way; it gives as much as net.core.{r,w}mem_max allow.
const KERNEL_BUFFER: usize = 4 << 20;
/// Segments of one message together, under the kernel's limit for either family.
const MOST_SEGMENTED: usize = 65_000;
/// How long a full queue of the network's is waited for before answers are dropped. Clients ask again.
const SEND_PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

#[derive(Debug)]
pub struct UdpSocket {
    /// As a client writes it: `udp://127.0.0.1:9998`.
    pub address: String,
    pub gate: Gate,
    socket: OwnedFd,
    /// Whether the kernel divides one large message into datagrams for us (UDP_SEGMENT).
    segmentation: AtomicBool,
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
        let socket =
            net::socket_with(family, SocketType::DGRAM, flags, None).map_err(fail("cannot make a socket"))?;
        configure(&socket, address).map_err(fail("cannot set socket options"))?;
        net::bind(&socket, &address).map_err(fail("cannot bind"))?;
        let bound = net::getsockname(&socket)
            .and_then(SocketAddr::try_from)
            .map_err(fail("cannot tell the bound address"))?;
        let gate = Gate::new(trusted, rate_limit).map_err(fail("cannot get random bytes"))?;
        if !bound.ip().is_loopback() {
            notices.push(format!(
                "udp://{bound} is not loopback: whoever reaches it may read every object, unencrypted; a plain request \
                 is answered only to loopback and to udp_trusted, everything else needs a cookie first"
            ));
        }
        Ok(UdpSocket { address: format!("udp://{bound}"), gate, socket, segmentation: true.into() })
    }

    /// Takes the datagrams that have come, without waiting. Returns how many; they are in the inbox then.
    pub fn receive(&self, inbox: &mut Inbox) -> usize {
        let received = inbox.receive(&self.socket);
        let bytes = inbox.bytes_received(received);
        if received > 0 {
            self.gate.counts.bytes_received.fetch_add(bytes as u64, Relaxed);
        }
        received
    }

    /// Sends what is in the outbox and empties it. What the kernel does not take is dropped and counted.
    pub fn send(&self, outbox: &mut Outbox) {
        let mut first = 0;
        while first < outbox.len() {
            match outbox.send(&self.socket, first) {
                Ok(sent) => {
                    let bytes = outbox.bytes_of(first..first + sent);
                    self.gate.counts.bytes_sent.fetch_add(bytes as u64, Relaxed);
                    first += sent;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.wait_writable() => {}
                Err(Errno::AGAIN) => {
                    let left = outbox.datagrams_of(first..outbox.len());
                    self.gate.counts.unsendable_dropped.fetch_add(left as u64, Relaxed);
                    break;
                }
                // The kernel, or the device (EIO), cannot divide this: we do, and for a device from now on.
                Err(errno @ (Errno::IO | Errno::INVAL)) if outbox.is_segmented(first) => {
                    if errno == Errno::IO {
                        self.segmentation.store(false, Relaxed);
                    }
                    outbox.divide(first);
                }
                // This message's own trouble: no route, a firewall's word, larger than the path.
                Err(_) => {
                    let lost = outbox.datagrams_of(first..first + 1);
                    self.gate.counts.unsendable_dropped.fetch_add(lost as u64, Relaxed);
                    first += 1;
                }
            }
        }
        outbox.clear();
    }

    fn wait_writable(&self) -> bool {
        let mut wanted = [PollFd::new(&self.socket, PollFlags::OUT)];
        matches!(poll(&mut wanted, Some(&SEND_PATIENCE)), Ok(1..) | Err(Errno::INTR))
    }

    /// How many bytes of datagrams of this size, which follow each other, one message may carry.
    pub fn segmented(&self, datagram: usize) -> usize {
        let count = if self.segmentation.load(Relaxed) { MOST_SEGMENTED / datagram } else { 1 };
        count.max(1) * datagram
    }

    pub fn counts(&self) -> DatagramCounts {
        self.gate.counts.read(dropped_by_kernel(&self.socket).unwrap_or(0))
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn configure(socket: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    // More room for bursts; less than was asked for is no failure.
    let _ = sockopt::set_socket_recv_buffer_size(socket, KERNEL_BUFFER);
    let _ = sockopt::set_socket_send_buffer_size(socket, KERNEL_BUFFER);
    let is_any = address.ip().is_unspecified();
    if address.is_ipv4() {
        set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
        if is_any {
            set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
    } else {
        sockopt::set_ipv6_v6only(socket, true)?;
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
        if is_any {
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        }
    }
    Ok(())
}

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the option's value is one int, whose size is told.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if answer < 0 { Err(last_error()) } else { Ok(()) }
}

/// Datagrams for which the receive buffer had no room.
fn dropped_by_kernel(socket: &OwnedFd) -> Result<u64, Errno> {
    // linux/sock_diag.h: the ninth number that SO_MEMINFO gives.
    const SK_MEMINFO_DROPS: usize = 8;
    let mut figures = [0u32; 9];
    let mut length = size_of_val(&figures) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the array's size.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            (&raw mut figures).cast(),
            &raw mut length,
        )
    };
    if answer < 0 { Err(last_error()) } else { Ok(u64::from(figures[SK_MEMINFO_DROPS])) }
}

pub fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
