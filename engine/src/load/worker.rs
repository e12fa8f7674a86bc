//! The connections of one thread of a load.

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno, IoSliceMut};
use rustix::net::{self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, sockopt};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{Counters, GRACE, Shared};
use crate::load::connect::connect;
use crate::load::protocols::{LoadReply, LoadReplyDecoder};

/// With a rate and without a pipeline setting: a client with this many unanswered requests stops sending.
const MAX_AHEAD: usize = 1000;
const BUFFER: usize = 256 << 10;
/// How often a thread that waits for an answer checks whether the load is over.
const STEP: Duration = Duration::from_millis(50);
/// The most descriptors that the kernel passes in a message.
const MAX_DESCRIPTORS: usize = 253;

/// A request without an answer.
#[derive(Debug, Clone, Copy)]
struct PendingRequest {
    id: u32,
    due: Instant,
    sent: Instant,
}

/// One connection.
#[derive(Debug)]
struct Client {
    socket: Option<OwnedFd>,
    pending: VecDeque<PendingRequest>,
    decoder: LoadReplyDecoder,
    next_id: u32,
    /// Descriptors received ahead of their answer.
    spare: usize,
    unparsed: Vec<u8>,
    unsent: Vec<u8>,
    interest: EventFlags,
    next_uri: usize,
    /// With a rate: when the next request is due, and how long after the start the first was.
    due: Instant,
    first_due: Duration,
}

pub(super) struct Worker<'a> {
    shared: &'a Shared,
    clients: Vec<Client>,
    counters: Counters,
    buffer: Vec<u8>,
    interval: Option<Duration>,
    until: Instant,
    /// Requests sent that the server may still answer.
    outstanding: usize,
    /// The due times of requests whose connection broke before the answer.
    broken_due: Vec<Instant>,
}

impl<'a> Worker<'a> {
    pub fn new(shared: &'a Shared, number: usize, threads: usize) -> Self {
        let plan = &shared.plan;
        let client_count = plan.clients / threads + usize::from(number < plan.clients % threads);
        let now = Instant::now();
        let clients = (0..client_count)
            .map(|index| Client {
                socket: None,
                pending: VecDeque::new(),
                decoder: LoadReplyDecoder::new(plan.protocol),
                next_id: 0,
                spare: 0,
                unparsed: Vec::new(),
                unsent: Vec::new(),
                interest: EventFlags::IN,
                next_uri: (number + index * threads) % shared.frames.len().max(1),
                due: now,
                // Spread over the interval, so that they do not all come at once.
                first_due: plan
                    .interval
                    .unwrap_or_default()
                    .mul_f64((index * threads + number) as f64 / plan.clients as f64),
            })
            .collect();
        Worker {
            shared,
            clients,
            counters: Counters::new(),
            buffer: vec![0; BUFFER],
            interval: plan.interval,
            until: now + plan.duration,
            outstanding: 0,
            broken_due: Vec::new(),
        }
    }

    pub fn run(mut self) -> Counters {
        let one_at_a_time =
            self.clients.len() == 1 && self.shared.plan.pipeline == 1 && self.interval.is_none();
        let blocking = self.shared.plan.reconnect || one_at_a_time;
        if (if blocking { self.run_blocking() } else { self.run_many() }).is_err() {
            self.counters.errors += 1;
        }
        self.settle();
        self.counters
    }

    /// Counts the requests, sent or due, without an answer.
    fn settle(&mut self) {
        let now = Instant::now();
        let over = now.min(self.until);
        self.counters.end(over);
        for index in 0..self.clients.len() {
            self.close_connection(index);
        }
        for due in self.broken_due.drain(..) {
            self.counters.lose(now.saturating_duration_since(due), 1);
        }
        let Some(interval) = self.interval else { return };
        for client in &self.clients {
            let behind = over.saturating_duration_since(client.due).as_nanos();
            let unsent = u64::try_from(behind.div_ceil(interval.as_nanos().max(1))).unwrap_or(u64::MAX);
            // In groups of a thousand where they are many: each counts as the longest of its group.
            let together = unsent.div_ceil(1000).max(1);
            for first in (0..unsent).step_by(usize::try_from(together).unwrap_or(usize::MAX)) {
                let earliest = interval.saturating_mul(u32::try_from(first).unwrap_or(u32::MAX));
                let waited = now.saturating_duration_since(client.due).saturating_sub(earliest);
                self.counters.lose(waited, together.min(unsent - first));
            }
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.until || self.shared.is_over()
    }

    /// Closes a connection that has broken, or that the client no longer reads.
    fn close_connection(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.socket = None;
        client.unsent.clear();
        client.unparsed.clear();
        self.outstanding -= client.pending.len();
        self.broken_due.extend(client.pending.drain(..).map(|request| request.due));
    }

    /// Runs one client that blocks in its socket: measures latency without an epoll in between.
    fn run_blocking(&mut self) -> io::Result<()> {
        for index in (0..self.clients.len()).cycle() {
            if self.is_over(Instant::now()) {
                break;
            }
            if self.clients[index].socket.is_none() {
                let socket = connect(self.shared)?;
                io::ioctl_fionbio(&socket, false)?;
                sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(STEP))?;
                sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(GRACE))?;
                self.clients[index].socket = Some(socket);
                self.clients[index].decoder = LoadReplyDecoder::new(self.shared.plan.protocol);
            }
            self.begin_request(index, Instant::now());
            match self.send(index, SendFlags::empty()).and_then(|()| self.await_answer(index)) {
                Ok(()) => {}
                // No answer until the end: lost, counted later.
                Err(Errno::TIMEDOUT) => break,
                Err(_) if self.shared.plan.reconnect => self.counters.errors += 1,
                Err(errno) => return Err(errno),
            }
            if self.shared.plan.reconnect {
                self.close_connection(index);
            }
        }
        Ok(())
    }

    /// Receives until a blocking client's request is answered; ETIMEDOUT where the load ended first.
    fn await_answer(&mut self, index: usize) -> io::Result<()> {
        let mut over = None;
        while !self.clients[index].pending.is_empty() {
            if !self.receive(index, RecvFlags::empty())? {
                let now = Instant::now();
                if self.is_over(now) && now >= *over.get_or_insert(now) + GRACE {
                    return Err(Errno::TIMEDOUT);
                }
            }
        }
        Ok(())
    }

    fn run_many(&mut self) -> io::Result<()> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for index in 0..self.clients.len() {
            let socket = connect(self.shared)?;
            epoll::add(&poller, &socket, EventData::new_u64(index as u64), EventFlags::IN)?;
            self.clients[index].socket = Some(socket);
        }
        // The clock starts here: connecting ten thousand clients is not part of the measurement.
        let now = Instant::now();
        self.until = now + self.shared.plan.duration;
        for client in &mut self.clients {
            client.due = now + client.first_due;
        }
        if self.interval.is_none() {
            for index in 0..self.clients.len() {
                self.refill(index, &poller)?;
            }
        }
        let mut over = None;
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 256];
        loop {
            let now = Instant::now();
            if over.is_none() && self.is_over(now) {
                over = Some(now);
                self.until = self.until.min(now);
                // If this thread had no processor, requests that became due meanwhile are late, not lost. A request due
                // at the very end does not belong to this load.
                self.send_due(self.until - Duration::from_nanos(1), &poller)?;
            }
            let pause = match over {
                // The server may still answer requests under way.
                Some(over) if self.outstanding == 0 || now >= over + GRACE => return Ok(()),
                Some(_) => STEP,
                None => self.send_due(now, &poller)?.min(STEP),
            };
            let timeout = Timespec::try_from(pause).ok();
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
                let ended = EventFlags::HUP | EventFlags::ERR;
                if flags.intersects(EventFlags::IN | ended) && self.clients[index].socket.is_some() {
                    if self.receive(index, RecvFlags::DONTWAIT).is_err() {
                        self.counters.errors += 1;
                        self.close_connection(index);
                    } else if self.interval.is_none() && over.is_none() {
                        self.refill(index, &poller)?;
                    }
                }
            }
        }
    }

    /// Sends the due requests. Returns the time until the next one is due.
    fn send_due(&mut self, now: Instant, poller: &OwnedFd) -> io::Result<Duration> {
        let Some(interval) = self.interval else { return Ok(STEP) };
        let mut nearest = STEP;
        // 1 is the default, not the caller's choice: with a rate it would make the loop a closed one.
        let ahead = if self.shared.plan.pipeline > 1 { self.shared.plan.pipeline } else { MAX_AHEAD };
        for index in 0..self.clients.len() {
            let mut sent = false;
            while self.clients[index].due <= now && self.clients[index].pending.len() < ahead {
                if self.clients[index].socket.is_none() {
                    // It stays due, and counts as lost at the end.
                    break;
                }
                let due = self.clients[index].due;
                self.clients[index].due += interval;
                self.begin_request(index, due);
                sent = true;
            }
            if sent {
                self.flush(index, poller)?;
            }
            if self.clients[index].socket.is_some() {
                nearest = nearest.min(self.clients[index].due.saturating_duration_since(now));
            }
        }
        Ok(nearest)
    }

    fn refill(&mut self, index: usize, poller: &OwnedFd) -> io::Result<()> {
        if self.clients[index].socket.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        let missing = self.shared.plan.pipeline.saturating_sub(self.clients[index].pending.len());
        for _ in 0..missing {
            self.begin_request(index, now);
        }
        if missing > 0 { self.flush(index, poller) } else { Ok(()) }
    }

    fn begin_request(&mut self, index: usize, at: Instant) {
        let client = &mut self.clients[index];
        let start = client.unsent.len();
        client.unsent.extend_from_slice(&self.shared.frames[client.next_uri]);
        let id = client.next_id;
        client.next_id = id.wrapping_add(1);
        self.shared.plan.protocol.number(&mut client.unsent[start..], id);
        client.next_uri = (client.next_uri + 1) % self.shared.frames.len();
        client.pending.push_back(PendingRequest { id, due: at, sent: Instant::now() });
        self.outstanding += 1;
    }

    fn flush(&mut self, index: usize, poller: &OwnedFd) -> io::Result<()> {
        if self.clients[index].socket.is_none() {
            return Ok(());
        }
        match self.send(index, SendFlags::DONTWAIT) {
            Ok(()) | Err(Errno::AGAIN) => {}
            Err(_) => {
                self.counters.errors += 1;
                self.close_connection(index);
                return Ok(());
            }
        }
        let client = &mut self.clients[index];
        let interest =
            if client.unsent.is_empty() { EventFlags::IN } else { EventFlags::IN | EventFlags::OUT };
        if let Some(socket) = &client.socket
            && interest != client.interest
        {
            client.interest = interest;
            epoll::modify(poller, socket, EventData::new_u64(index as u64), interest)?;
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

    /// One `recv`, and all the answers in it; false where the socket has no data.
    fn receive(&mut self, index: usize, flags: RecvFlags) -> io::Result<bool> {
        let unparsed = self.clients[index].unparsed.len();
        self.buffer[..unparsed].copy_from_slice(&self.clients[index].unparsed);
        self.clients[index].unparsed.clear();
        let passes = self.shared.plan.protocol.passes_descriptors();
        let Some(socket) = &self.clients[index].socket else { return Err(Errno::NOTCONN) };
        let received = if passes {
            receive_and_close(socket, &mut self.buffer[unparsed..], flags)
        } else {
            net::recv(socket, &mut self.buffer[unparsed..], flags).map(|(length, _)| (length, 0))
        };
        let (length, descriptors) = match received {
            Ok((0, _)) => return Err(Errno::CONNRESET),
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => {
                let buffer = self.buffer[..unparsed].to_vec();
                self.clients[index].unparsed = buffer;
                return Ok(false);
            }
            Err(errno) => return Err(errno),
        };
        if !passes {
            self.counters.bytes += length as u64;
        }
        let now = Instant::now();
        let buffer = std::mem::take(&mut self.buffer);
        let opened = self.take_answers(index, &buffer[..unparsed + length], now);
        // Before the error check: other clients receive into it too.
        self.buffer = buffer;
        let opened = opened?;
        // A descriptor may come before the rest of its answer, never after it.
        let received = self.clients[index].spare + descriptors;
        if passes && opened > received {
            self.counters.errors += 1;
        }
        self.clients[index].spare = received.saturating_sub(opened);
        Ok(true)
    }

    /// Counts the answers in the input, and keeps the rest. Returns how many came with a descriptor.
    fn take_answers(&mut self, index: usize, mut input: &[u8], now: Instant) -> io::Result<usize> {
        let passes = self.shared.plan.protocol.passes_descriptors();
        let mut opened = 0;
        while !self.clients[index].pending.is_empty() {
            let before = input.len();
            match self.clients[index].decoder.next(&mut input)? {
                LoadReply::More => break,
                LoadReply::Done { id, refused, failed } => {
                    opened += usize::from(passes && !refused && !failed && before > input.len());
                    self.count(index, id, now, refused, failed)?;
                }
            }
        }
        self.clients[index].unparsed.extend_from_slice(input);
        Ok(opened)
    }

    fn count(
        &mut self,
        index: usize,
        id: Option<u32>,
        now: Instant,
        refused: bool,
        failed: bool,
    ) -> io::Result<()> {
        let pending = &mut self.clients[index].pending;
        let at = id.map_or(Some(0), |id| pending.iter().position(|request| request.id == id));
        let Some(PendingRequest { due, sent, .. }) = at.and_then(|at| pending.remove(at)) else {
            return Err(Errno::PROTO);
        };
        self.outstanding -= 1;
        // A refusal measures how quickly the server refuses; a late send is the generator's own delay.
        let since = if refused { sent } else { due };
        self.counters.count(now.saturating_duration_since(since), refused, failed);
        self.counters.end(now);
        self.shared.answered.fetch_add(1, Relaxed);
        Ok(())
    }
}

/// Receives status bytes and their descriptors, and closes those. Returns how many of each.
fn receive_and_close(socket: &OwnedFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<(usize, usize)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = 0;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors += rights.count();
        }
    }
    Ok((received.bytes, descriptors))
}
