//! How the load generator connects: no step waits longer than [`CONNECT_TIMEOUT`], or after the load was stopped.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use std::time::{Duration, Instant};

use super::{Shared, Target};
use crate::protocol::v2::{self, DecodedHelloAck};

/// A server that takes longer to accept or to greet counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a waiting thread checks whether the load was stopped.
const STEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A connection after its greeting; its socket does not block.
pub(super) fn connect(shared: &Shared) -> io::Result<OwnedFd> {
    let until = Instant::now() + CONNECT_TIMEOUT;
    let socket = connect_to(shared, until)?;
    let greeting = shared.plan.protocol.greeting();
    if greeting.is_empty() {
        return Ok(socket);
    }
    net::send(&socket, &greeting, SendFlags::NOSIGNAL)?;
    let mut answer = [0; v2::HELLO_ACK];
    let mut length = 0;
    while length < answer.len() {
        wait(&socket, PollFlags::IN, shared, until)?;
        match net::recv(&socket, &mut answer[length..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(Errno::CONNRESET),
            Ok((more, _)) => length += more,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    match v2::decode_hello_ack(&mut &answer[..]) {
        DecodedHelloAck::Ack { .. } => Ok(socket),
        _ => Err(Errno::PROTO),
    }
}

fn connect_to(shared: &Shared, until: Instant) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match &shared.plan.target {
        Target::Unix(path) => {
            let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let name = SocketAddrUnix::new(path.as_path())?;
            loop {
                match net::connect(socket.as_fd(), &name) {
                    // The backlog is full: retry until the server accepts.
                    Err(Errno::AGAIN) if Instant::now() < until && !shared.is_over() => {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    Err(Errno::INTR) => {}
                    outcome => return outcome.map(|()| socket),
                }
            }
        }
        Target::Tcp(address) => {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
            sockopt::set_tcp_nodelay(&socket, true)?;
            match net::connect(socket.as_fd(), address) {
                Ok(()) => return Ok(socket),
                Err(Errno::INPROGRESS | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            wait(&socket, PollFlags::OUT, shared, until)?;
            sockopt::socket_error(&socket)?.map(|()| socket)
        }
        Target::Udp(_) => Err(Errno::PROTOTYPE),
    }
}

fn wait(socket: &OwnedFd, interest: PollFlags, shared: &Shared, until: Instant) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(socket, interest)], Some(&STEP)) {
            Ok(0) if Instant::now() >= until => return Err(Errno::TIMEDOUT),
            Ok(0) if shared.is_over() => return Err(Errno::CANCELED),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}
