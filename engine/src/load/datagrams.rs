//! The load generator's datagrams: clients that send the next request after a reply, each with its own socket.
//!
//! A request without a reply within [`REPLY_TIMEOUT`] counts as an error and is sent again from another port.
//! A late reply goes to the old port, so it does not count for the next request. Latency counts from the
//! first transmission. Besides objmapper's two forms it speaks memcached's protocol for UDP, so that the same
//! client measures a peer.

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::load::{Counters, GRACE, LoadProtocol, Shared};
use crate::protocol::{Mode, Status, encode_request};
use crate::udp::codec::{self, Pull, UdpReply};

/// Bytes of content in a piece, and pieces in a PULL.
const CHUNK: u32 = 32 << 10;
const PIECES: u32 = 32;
/// A client sends a request again after this time without a reply.
const REPLY_TIMEOUT: Duration = Duration::from_millis(200);
const KERNEL_BUFFER: usize = 8 << 20;
const BUFFER: usize = 64 << 10;

struct Client {
    socket: OwnedFd,
    /// When the current request was first sent, and when last; None after the end of the load.
    due: Option<Instant>,
    sent_at: Instant,
    next_uri: usize,
    /// Of a PULL: where it begins, and how many of its bytes have come.
    offset: u64,
    received: u64,
    number: u32,
}

/// Runs this thread's share of the clients.
pub(crate) fn run(shared: &Shared, address: SocketAddr, number: usize, threads: usize) -> Counters {
    let mut counters = Counters::new();
    let mut clients = Vec::new();
    if load(shared, address, number, threads, &mut clients, &mut counters).is_err() {
        counters.errors += 1;
    }
    let now = Instant::now();
    for due in clients.iter().filter_map(|client| client.due) {
        counters.lose(now.saturating_duration_since(due), 1);
    }
    counters
}

fn load(
    shared: &Shared,
    address: SocketAddr,
    number: usize,
    threads: usize,
    clients: &mut Vec<Client>,
    counters: &mut Counters,
) -> io::Result<()> {
    let plan = &shared.plan;
    let client_count = plan.clients / threads + usize::from(number < plan.clients % threads);
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for index in 0..client_count {
        let socket = connect(address)?;
        epoll::add(&poller, &socket, EventData::new_u64(index as u64), EventFlags::IN)?;
        let next_uri = (number + index * threads) % plan.uris.len().max(1);
        let (due, sent_at) = (None, Instant::now());
        clients.push(Client { socket, due, sent_at, next_uri, offset: 0, received: 0, number: 0 });
    }
    let until = Instant::now() + plan.duration;
    for client in clients.iter_mut() {
        client.send_next(shared)?;
    }
    let mut events = [MaybeUninit::<epoll::Event>::uninit(); 256];
    let mut buffer = vec![0; BUFFER];
    let mut next_look = Instant::now() + REPLY_TIMEOUT;
    let mut over = None;
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    loop {
        let now = Instant::now();
        if over.is_none() && (now >= until || shared.is_over()) {
            over = Some(now);
            counters.end(now.min(until));
        }
        // The server may still answer requests under way.
        if over.is_some_and(|over| now >= over + GRACE || clients.iter().all(|client| client.due.is_none())) {
            return Ok(());
        }
        if now >= next_look {
            next_look = now + REPLY_TIMEOUT;
            for (index, client) in clients.iter_mut().enumerate() {
                if client.due.is_some() && now - client.sent_at > REPLY_TIMEOUT {
                    counters.errors += 1;
                    client.socket = connect(address)?;
                    let data = EventData::new_u64(index as u64);
                    epoll::add(&poller, &client.socket, data, EventFlags::IN)?;
                    client.send_request(shared)?;
                }
            }
        }
        let ready = match epoll::wait(&poller, &mut events, Some(&timeout)) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        for event in ready {
            clients[event.data.u64() as usize].receive(shared, &mut buffer, counters, over.is_some())?;
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::DGRAM, flags, None)?;
    // As much as the kernel allows.
    let _ = sockopt::set_socket_recv_buffer_size(&socket, KERNEL_BUFFER);
    net::connect(&socket, &address)?;
    Ok(socket)
}

impl Client {
    /// Sends a request for the first time.
    fn send_next(&mut self, shared: &Shared) -> io::Result<()> {
        self.due = Some(Instant::now());
        self.send_request(shared)
    }

    fn send_request(&mut self, shared: &Shared) -> io::Result<()> {
        let uri = &shared.plan.uris[self.next_uri];
        self.number = self.number.wrapping_add(1);
        self.received = 0;
        let mut datagram = Vec::new();
        match shared.plan.protocol {
            LoadProtocol::Pull => {
                let (request_id, offset) = (self.number, self.offset);
                let (length, chunk) = (CHUNK * PIECES, CHUNK as u16);
                let pull = Pull { request_id, offset, length, chunk, cookie: None, uri: Ok(uri) };
                codec::encode_pull(&mut datagram, &pull, uri);
            }
            LoadProtocol::Memcached => {
                // Request number, datagram number, number of datagrams, reserved.
                let number = (self.number as u16).to_be_bytes();
                datagram.extend([number[0], number[1], 0, 0, 0, 1, 0, 0]);
                datagram.extend(format!("get {uri}\r\n").into_bytes());
            }
            _ => encode_request(&mut datagram, Mode::Copy, uri),
        }
        self.sent_at = Instant::now();
        match net::send(&self.socket, &datagram, SendFlags::NOSIGNAL) {
            // The client sends a lost request again.
            Ok(_) | Err(Errno::AGAIN | Errno::CONNREFUSED) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes received replies; sends the next request unless the load is `over`.
    fn receive(
        &mut self,
        shared: &Shared,
        buffer: &mut [u8],
        counters: &mut Counters,
        over: bool,
    ) -> io::Result<()> {
        while let Some(due) = self.due {
            let length = match net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNREFUSED) => return Ok(()),
                Err(errno) => return Err(errno),
            };
            counters.bytes += length as u64;
            let uri = &shared.plan.uris[self.next_uri];
            let Some((refused, failed)) = self.read(shared.plan.protocol, uri, &buffer[..length]) else {
                continue;
            };
            let now = Instant::now();
            counters.count(now.saturating_duration_since(due), refused, failed);
            counters.end(now);
            shared.count(1);
            self.due = None;
            if self.offset == 0 {
                self.next_uri = (self.next_uri + 1) % shared.plan.uris.len();
            }
            if !over {
                self.send_next(shared)?;
            }
        }
        Ok(())
    }

    /// Whether a datagram completes the reply; if so, whether that was a refusal or a failure.
    fn read(&mut self, protocol: LoadProtocol, uri: &str, datagram: &[u8]) -> Option<(bool, bool)> {
        let busy = Status::Unavailable as u8;
        match protocol {
            LoadProtocol::Pull => match UdpReply::decode(codec::checksum_of_uri(uri), datagram) {
                UdpReply::Data { request_id, total, payload, .. } if request_id == self.number => {
                    self.received += payload.len() as u64;
                    let due = total.saturating_sub(self.offset).min(u64::from(CHUNK * PIECES));
                    if self.received < due {
                        return None;
                    }
                    let end = self.offset + due;
                    self.offset = if end < total { end } else { 0 };
                    Some((false, false))
                }
                UdpReply::Error { request_id, status, .. } if request_id == self.number => {
                    Some((status == busy, status != busy))
                }
                _ => None,
            },
            LoadProtocol::Memcached => {
                let [high, low, _, at, _, count, _, _, words @ ..] = datagram else { return None };
                if u16::from_be_bytes([*high, *low]) != self.number as u16 {
                    return None;
                }
                let failed = *at == 0 && !words.starts_with(b"VALUE ");
                self.received += 1;
                (self.received == u64::from(*count)).then_some((false, failed))
            }
            _ => Some((datagram.first() == Some(&busy), datagram.first() != Some(&0))),
        }
    }
}
