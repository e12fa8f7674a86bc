//! The load generator behind `objmapper bench`: many clients in a few threads, closed loop or open loop.
//!
//! Closed loop: every client sends its next request when the last is answered. Open loop: requests have times at which they
//! are due, whatever the server does, and latency counts from then, so a server that stalls is charged for all that it kept
//! waiting ("coordinated omission": Tene, "How NOT to Measure Latency", 2015).
//!
//! Besides objmapper it speaks HTTP/1.1 and Redis's protocol, so that peers are measured by the same client.

use histogram::Histogram;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{self, Errno, IoSliceMut};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketType, sockopt,
};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::protocol::{DecodedReply, Mode, ReplyDecoder, encode_request};
use crate::statistics::{Percentiles, percentiles};

const MOST_AHEAD: usize = 1000;
const STACK: usize = 512 << 10;
const ROOM: usize = 256 << 10;
const MOST_DESCRIPTORS: usize = 64;
/// 2^-7: 0.8 %, up to 2^40 ns: 18 min.
const HISTOGRAM: (u8, u8) = (7, 40);

/// Whom to load.
#[derive(Debug, Clone)]
pub enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// Asked by datagrams: see `udp/load.rs`.
    Udp(SocketAddr),
}

/// What to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Objmapper(Mode),
    Http,
    Redis,
    /// Ranges over UDP.
    Pull,
    /// Over UDP as well.
    Memcached,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub target: Target,
    pub dialect: Dialect,
    /// Asked for in turn, each client beginning at another.
    pub uris: Vec<String>,
    pub clients: usize,
    pub threads: usize,
    /// Requests that each client keeps under way.
    pub pipeline: usize,
    pub duration: Duration,
    /// End after so many requests, 0: only after the duration.
    pub requests: u64,
    /// Requests a second of all clients together; None: closed loop.
    pub rate: Option<f64>,
    /// A new connection for every request.
    pub reconnect: bool,
}

/// What came of it.
#[derive(Debug)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Outcome {
    pub requests: u64,
    pub bytes: u64,
    /// Answers that refused for want of room.
    pub refused: u64,
    /// Other errors, and connections that broke.
    pub errors: u64,
    pub elapsed: f64,
    pub latency: Percentiles,
    /// Latency of refusals alone.
    pub refusals: Percentiles,
    /// (quantile, microseconds) pairs, for a curve.
    pub curve: Vec<(f64, f64)>,
}

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Tally>>,
    started: Instant,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    frames: Vec<Vec<u8>>,
    answered: AtomicU64,
    stop: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Tally {
    latency: Histogram,
    refusals: Histogram,
    requests: u64,
    pub(crate) bytes: u64,
    refused: u64,
    pub(crate) errors: u64,
    pub(crate) ended: Instant,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Tally {
            latency: new_histogram(),
            refusals: new_histogram(),
            requests: 0,
            bytes: 0,
            refused: 0,
            errors: 0,
            ended: Instant::now(),
        }
    }
}

impl Tally {
    /// Counts one answer.
    pub(crate) fn count(&mut self, latency: Duration, refused: bool, failed: bool) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let nanoseconds = nanoseconds.min((1 << HISTOGRAM.1) - 1);
        // Fails only for a value out of range, which was cut off.
        if refused {
            self.refused += 1;
            let _ = self.refusals.increment(nanoseconds);
        } else {
            self.requests += 1;
            self.errors += u64::from(failed);
            let _ = self.latency.increment(nanoseconds);
        }
    }
}

impl Shared {
    /// Whether the load was stopped, or has come to its number of requests.
    pub(crate) fn is_over(&self) -> bool {
        let enough = self.plan.requests > 0 && self.answered.load(Relaxed) >= self.plan.requests;
        enough || self.stop.load(Relaxed)
    }

    pub(crate) fn count(&self, answers: u64) {
        self.answered.fetch_add(answers, Relaxed);
    }
}

fn new_histogram() -> Histogram {
    match Histogram::new(HISTOGRAM.0, HISTOGRAM.1) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("the constants are in range: {error}"),
    }
}

impl Load {
    pub fn start(plan: Plan) -> std::io::Result<Self> {
        let frames = plan.uris.iter().map(|uri| frame(plan.dialect, uri)).collect();
        let threads = plan.threads.clamp(1, plan.clients.max(1));
        let shared =
            Arc::new(Shared { plan, frames, answered: AtomicU64::new(0), stop: AtomicBool::new(false) });
        let started = Instant::now();
        let threads = (0..threads)
            .map(|number| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name("objmapper-load".into()).stack_size(STACK).spawn(move || {
                    match shared.plan.target {
                        Target::Udp(address) => crate::udp::load::run(&shared, address, number, threads),
                        _ => Worker::new(&shared, number, threads).run(),
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Load { shared, threads, started })
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }

    pub fn is_running(&self) -> bool {
        self.threads.iter().any(|thread| !thread.is_finished())
    }

    /// Ends it early.
    pub fn stop(&self) {
        self.shared.stop.store(true, Relaxed);
    }

    /// Waits for the end.
    pub fn finish(&mut self) -> Outcome {
        let mut sum = Tally::new();
        let mut ended = self.started;
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(tally) => {
                    add(&mut sum.latency, &tally.latency);
                    add(&mut sum.refusals, &tally.refusals);
                    sum.requests += tally.requests;
                    sum.bytes += tally.bytes;
                    sum.refused += tally.refused;
                    sum.errors += tally.errors;
                    ended = ended.max(tally.ended);
                }
                Err(_) => sum.errors += 1,
            }
        }
        Outcome {
            requests: sum.requests,
            bytes: sum.bytes,
            refused: sum.refused,
            errors: sum.errors,
            elapsed: ended.duration_since(self.started).as_secs_f64(),
            latency: percentiles(&sum.latency),
            refusals: percentiles(&sum.refusals),
            curve: curve(&sum.latency),
        }
    }
}

fn add(sum: &mut Histogram, other: &Histogram) {
    for (mine, theirs) in sum.as_mut_slice().iter_mut().zip(other.as_slice()) {
        *mine += theirs;
    }
}

/// Latency by quantile, denser towards 1.
fn curve(histogram: &Histogram) -> Vec<(f64, f64)> {
    let total: u64 = histogram.as_slice().iter().sum();
    let mut points = Vec::new();
    let mut seen = 0;
    for bucket in histogram.iter().filter(|bucket| bucket.count() > 0) {
        seen += bucket.count();
        points.push((seen as f64 / total as f64, (bucket.start() + bucket.end()) as f64 / 2000.0));
    }
    points
}

fn frame(dialect: Dialect, uri: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match dialect {
        Dialect::Objmapper(mode) => encode_request(&mut bytes, mode, uri),
        Dialect::Http => bytes.extend(format!("GET {uri} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes()),
        Dialect::Redis => {
            bytes.extend(format!("*2\r\n$3\r\nGET\r\n${}\r\n{uri}\r\n", uri.len()).into_bytes());
        }
        // Datagrams are made one by one.
        Dialect::Pull | Dialect::Memcached => {}
    }
    bytes
}

/// One connection.
#[derive(Debug)]
struct Client {
    socket: Option<OwnedFd>,
    /// When each unanswered request was sent, or was due.
    /// When each was due, and when it was sent.
    under_way: VecDeque<(Instant, Instant)>,
    decoder: ReplyDecoder,
    kept: Vec<u8>,
    /// Bytes of an HTTP or Redis body still to come.
    body: u64,
    unsent: Vec<u8>,
    interest: EventFlags,
    next_uri: usize,
    due: Instant,
}

struct Worker<'a> {
    shared: &'a Shared,
    clients: Vec<Client>,
    tally: Tally,
    room: Vec<u8>,
    interval: Option<Duration>,
    until: Instant,
}

/// What the front of the input says.
enum Answer {
    Done { refused: bool, failed: bool },
    More,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, number: usize, threads: usize) -> Self {
        let plan = &shared.plan;
        let mine = plan.clients / threads + usize::from(number < plan.clients % threads);
        let interval = plan.rate.map(|rate| Duration::from_secs_f64(plan.clients as f64 / rate));
        let now = Instant::now();
        let clients = (0..mine)
            .map(|index| Client {
                socket: None,
                under_way: VecDeque::new(),
                decoder: ReplyDecoder::default(),
                kept: Vec::new(),
                body: 0,
                unsent: Vec::new(),
                interest: EventFlags::IN,
                next_uri: (number + index * threads) % shared.frames.len().max(1),
                // Spread over the interval, so that they do not all come at once.
                due: now
                    + interval
                        .unwrap_or_default()
                        .mul_f64((index * threads + number) as f64 / plan.clients as f64),
            })
            .collect();
        Worker {
            shared,
            clients,
            tally: Tally::new(),
            room: vec![0; ROOM],
            interval,
            until: now + plan.duration,
        }
    }

    fn run(mut self) -> Tally {
        let one_at_a_time =
            self.clients.len() == 1 && self.shared.plan.pipeline == 1 && self.interval.is_none();
        let outcome =
            if self.shared.plan.reconnect || one_at_a_time { self.run_blocking() } else { self.run_many() };
        if outcome.is_err() {
            self.tally.errors += 1;
        }
        self.tally.ended = Instant::now();
        self.tally
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.until || self.shared.is_over()
    }

    /// One client that sleeps in its socket: how latency is read, without an epoll in between.
    fn run_blocking(&mut self) -> io::Result<()> {
        let patience = Duration::from_secs(10);
        for index in (0..self.clients.len()).cycle() {
            let now = Instant::now();
            if self.is_over(now) {
                break;
            }
            if self.clients[index].socket.is_none() {
                let socket = connect(&self.shared.plan.target)?;
                sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(patience))?;
                self.clients[index].socket = Some(socket);
            }
            self.begin_request(index, now);
            self.send(index, SendFlags::empty())?;
            while !self.clients[index].under_way.is_empty() {
                self.receive(index, RecvFlags::empty())?;
            }
            if self.shared.plan.reconnect {
                self.clients[index].socket = None;
            }
        }
        Ok(())
    }

    fn run_many(&mut self) -> io::Result<()> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for index in 0..self.clients.len() {
            let socket = connect(&self.shared.plan.target)?;
            io::ioctl_fionbio(&socket, true)?;
            epoll::add(&poller, &socket, EventData::new_u64(index as u64), EventFlags::IN)?;
            self.clients[index].socket = Some(socket);
        }
        // Only now: connecting ten thousand clients is not part of the measurement.
        let now = Instant::now();
        self.until = now + self.shared.plan.duration;
        if self.interval.is_none() {
            for index in 0..self.clients.len() {
                self.refill(index, &poller)?;
            }
        } else {
            for client in &mut self.clients {
                client.due += now.saturating_duration_since(self.tally.ended);
            }
        }
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 256];
        loop {
            let now = Instant::now();
            if self.is_over(now) {
                return Ok(());
            }
            let pause = self.send_due(now, &poller)?.min(Duration::from_millis(50));
            let timeout = rustix::event::Timespec::try_from(pause).ok();
            let ready = match epoll::wait(&poller, &mut events, timeout.as_ref()) {
                Ok((ready, _)) => ready,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            for event in ready {
                let (index, flags) = (event.data.u64() as usize, event.flags);
                if flags.contains(EventFlags::OUT) {
                    self.flush(index, &poller)?;
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    match self.receive(index, RecvFlags::DONTWAIT) {
                        Ok(()) => {}
                        Err(_) => {
                            self.tally.errors += 1;
                            self.clients[index].socket = None;
                            self.clients[index].under_way.clear();
                            continue;
                        }
                    }
                    if self.interval.is_none() {
                        self.refill(index, &poller)?;
                    }
                }
            }
        }
    }

    /// Sends what is due. Returns the time until something else is.
    fn send_due(&mut self, now: Instant, poller: &OwnedFd) -> io::Result<Duration> {
        let Some(interval) = self.interval else { return Ok(Duration::from_millis(50)) };
        let mut nearest = Duration::from_millis(50);
        // One is what nobody asked for: with a rate it would make the loop a closed one.
        let ahead = if self.shared.plan.pipeline > 1 { self.shared.plan.pipeline } else { MOST_AHEAD };
        for index in 0..self.clients.len() {
            let mut sent = false;
            while self.clients[index].due <= now && self.clients[index].under_way.len() < ahead {
                let due = self.clients[index].due;
                self.clients[index].due += interval;
                if self.clients[index].socket.is_some() {
                    self.begin_request(index, due);
                    sent = true;
                }
            }
            if sent {
                self.flush(index, poller)?;
            }
            nearest = nearest.min(self.clients[index].due.saturating_duration_since(now));
        }
        Ok(nearest)
    }

    fn refill(&mut self, index: usize, poller: &OwnedFd) -> io::Result<()> {
        let now = Instant::now();
        let missing = self.shared.plan.pipeline.saturating_sub(self.clients[index].under_way.len());
        for _ in 0..missing {
            self.begin_request(index, now);
        }
        if missing > 0 { self.flush(index, poller) } else { Ok(()) }
    }

    fn begin_request(&mut self, index: usize, at: Instant) {
        let client = &mut self.clients[index];
        client.unsent.extend_from_slice(&self.shared.frames[client.next_uri]);
        client.next_uri = (client.next_uri + 1) % self.shared.frames.len();
        client.under_way.push_back((at, Instant::now()));
    }

    fn flush(&mut self, index: usize, poller: &OwnedFd) -> io::Result<()> {
        if self.clients[index].socket.is_none() {
            return Ok(());
        }
        match self.send(index, SendFlags::DONTWAIT) {
            Ok(()) | Err(Errno::AGAIN) => {}
            Err(_) => {
                self.tally.errors += 1;
                self.clients[index].socket = None;
                self.clients[index].under_way.clear();
                return Ok(());
            }
        }
        let client = &mut self.clients[index];
        let wanted = if client.unsent.is_empty() { EventFlags::IN } else { EventFlags::IN | EventFlags::OUT };
        if let Some(socket) = &client.socket
            && wanted != client.interest
        {
            client.interest = wanted;
            epoll::modify(poller, socket, EventData::new_u64(index as u64), wanted)?;
        }
        Ok(())
    }

    fn send(&mut self, index: usize, flags: SendFlags) -> io::Result<()> {
        let client = &mut self.clients[index];
        let Some(socket) = &client.socket else { return Err(Errno::NOTCONN) };
        let mut at = 0;
        let outcome = loop {
            if at == client.unsent.len() {
                break Ok(());
            }
            match net::send(socket, &client.unsent[at..], flags | SendFlags::NOSIGNAL) {
                Ok(sent) => at += sent,
                Err(Errno::INTR) => {}
                Err(errno) => break Err(errno),
            }
        };
        client.unsent.drain(..at);
        outcome
    }

    /// One `recv`, and all the answers in it.
    fn receive(&mut self, index: usize, flags: RecvFlags) -> io::Result<()> {
        let kept = self.clients[index].kept.len();
        self.room[..kept].copy_from_slice(&self.clients[index].kept);
        self.clients[index].kept.clear();
        let passes = self.shared.plan.dialect == Dialect::Objmapper(Mode::FdPass);
        let Some(socket) = &self.clients[index].socket else { return Err(Errno::NOTCONN) };
        let received = if passes {
            receive_and_close(socket, &mut self.room[kept..], flags)
        } else {
            net::recv(socket, &mut self.room[kept..], flags).map(|(length, _)| (length, 0))
        };
        let (length, descriptors) = match received {
            Ok((0, _)) => return Err(Errno::CONNRESET),
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => {
                let room = self.room[..kept].to_vec();
                self.clients[index].kept = room;
                return if flags.is_empty() { Err(Errno::TIMEDOUT) } else { Ok(()) };
            }
            Err(errno) => return Err(errno),
        };
        if !passes {
            self.tally.bytes += length as u64;
        }
        let now = Instant::now();
        let room = std::mem::take(&mut self.room);
        let mut input = &room[..kept + length];
        let mut opened = 0;
        while !self.clients[index].under_way.is_empty() {
            let before = input.len();
            match self.next_answer(index, &mut input)? {
                Answer::More => break,
                Answer::Done { refused, failed } => {
                    opened += usize::from(passes && !refused && !failed && before > input.len());
                    self.count(index, now, refused, failed);
                }
            }
        }
        self.clients[index].kept.extend_from_slice(input);
        self.room = room;
        if passes && opened != descriptors {
            self.tally.errors += 1;
        }
        Ok(())
    }

    fn count(&mut self, index: usize, now: Instant, refused: bool, failed: bool) {
        let Some((due, sent)) = self.clients[index].under_way.pop_front() else { return };
        // A refusal tells how quick the server is to say no; that the generator itself came too late is not its doing.
        let since = if refused { sent } else { due };
        self.tally.count(now.saturating_duration_since(since), refused, failed);
        self.shared.answered.fetch_add(1, Relaxed);
    }

    fn next_answer(&mut self, index: usize, input: &mut &[u8]) -> io::Result<Answer> {
        let client = &mut self.clients[index];
        match self.shared.plan.dialect {
            Dialect::Objmapper(mode) => loop {
                return match client.decoder.decode(Some(mode), input) {
                    DecodedReply::Descriptor | DecodedReply::Content { last: true, .. } => {
                        Ok(Answer::Done { refused: false, failed: false })
                    }
                    DecodedReply::Content { .. } => continue,
                    DecodedReply::Error { status, .. } => {
                        let refused = status == crate::protocol::Status::Unavailable as u8;
                        Ok(Answer::Done { refused, failed: !refused })
                    }
                    DecodedReply::Broken => Err(Errno::PROTO),
                    DecodedReply::More => Ok(Answer::More),
                };
            },
            Dialect::Http => {
                if client.body == 0 {
                    let Some(end) = find(input, b"\r\n\r\n") else { return Ok(Answer::More) };
                    let head = &input[..end];
                    let length = find(head, b"ength: ").map_or(0, |at| digits(&head[at..]));
                    let failed = head.get(9..12) != Some(b"200");
                    *input = &input[end..];
                    client.body = length;
                    if failed || length == 0 {
                        client.body = 0;
                        let here = usize::try_from(length).unwrap_or(usize::MAX).min(input.len());
                        *input = &input[here..];
                        return Ok(Answer::Done { refused: false, failed });
                    }
                }
                Ok(take_body(client, input))
            }
            Dialect::Pull | Dialect::Memcached => Err(Errno::PROTO),
            Dialect::Redis => {
                if client.body == 0 {
                    let Some(end) = find(input, b"\r\n") else { return Ok(Answer::More) };
                    let missing = input.starts_with(b"$-") || !input.starts_with(b"$");
                    client.body = digits(&input[1..end]) + 2;
                    *input = &input[end..];
                    if missing {
                        client.body = 0;
                        return Ok(Answer::Done { refused: false, failed: true });
                    }
                }
                Ok(take_body(client, input))
            }
        }
    }
}

fn take_body(client: &mut Client, input: &mut &[u8]) -> Answer {
    let here = usize::try_from(client.body).unwrap_or(usize::MAX).min(input.len());
    *input = &input[here..];
    client.body -= here as u64;
    if client.body == 0 { Answer::Done { refused: false, failed: false } } else { Answer::More }
}

/// The position behind the first occurrence.
fn find(input: &[u8], wanted: &[u8]) -> Option<usize> {
    input.windows(wanted.len()).position(|window| window == wanted).map(|at| at + wanted.len())
}

fn digits(text: &[u8]) -> u64 {
    text.iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number: u64, byte| number.saturating_mul(10).saturating_add(u64::from(byte - b'0')))
}

/// Receives status bytes and the descriptors that came with them, which are closed. Returns how many of each.
fn receive_and_close(socket: &OwnedFd, room: &mut [u8], flags: RecvFlags) -> io::Result<(usize, usize)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = room.len().min(4096);
    let received = net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut room[..length])],
        &mut control,
        flags | RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = 0;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors += rights.count();
        }
    }
    Ok((received.bytes, descriptors))
}

fn connect(target: &Target) -> io::Result<OwnedFd> {
    let flags = net::SocketFlags::CLOEXEC;
    match target {
        Target::Unix(path) => {
            let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let name = SocketAddrUnix::new(path.as_path())?;
            loop {
                match net::connect(socket.as_fd(), &name) {
                    // The backlog is full: the server accepts as fast as it can.
                    Err(Errno::AGAIN) => std::thread::sleep(Duration::from_micros(200)),
                    outcome => return outcome.map(|()| socket),
                }
            }
        }
        Target::Tcp(address) => {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
            sockopt::set_tcp_nodelay(&socket, true)?;
            net::connect(socket.as_fd(), address)?;
            Ok(socket)
        }
        Target::Udp(_) => Err(Errno::PROTOTYPE),
    }
}
