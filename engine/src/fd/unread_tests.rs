//! Compares the count of unread descriptors with a real socket.
#![allow(clippy::unwrap_used)]

use super::{MAX_RUNS, UnreadFds};
use crate::net::socket;
use crate::net::transport::IoMode;
use proptest::prelude::*;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::VecDeque;

/// A server's end and a client's; every passed descriptor is the same file.
struct Line {
    server: OwnedFd,
    client: OwnedFd,
    unread: UnreadFds,
    /// Descriptors in each message that the client has not read.
    truth: VecDeque<u32>,
}

impl Line {
    fn new() -> Self {
        let (server, client) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        Line { server, client, unread: UnreadFds::default(), truth: VecDeque::new() }
    }

    /// False if the socket takes no more.
    fn send(&mut self, bytes: usize, descriptors: usize) -> bool {
        let content = vec![7; bytes];
        let files = vec![Some(self.client.as_fd()); descriptors];
        let sent = if descriptors == 0 {
            socket::send(&self.server, &content, IoMode::NonBlocking, false)
        } else {
            socket::send_with_fds(&self.server, &content, &files, IoMode::NonBlocking)
        };
        match sent {
            Ok(taken) => {
                assert_eq!(taken, bytes);
                self.unread.sent(1, bytes, descriptors as u32);
                self.truth.push_back(descriptors as u32);
                true
            }
            Err(_) => false,
        }
    }

    /// The client reads a message of `bytes` bytes.
    fn read(&mut self, bytes: usize) {
        let mut files = VecDeque::new();
        let mut buffer = vec![0; bytes];
        let taken =
            socket::recv_with_fds(&self.client, &mut buffer, IoMode::NonBlocking, &mut files).unwrap();
        assert_eq!((taken, files.len() as u32), (bytes, self.truth.pop_front().unwrap()));
    }

    fn settle(&mut self) -> u32 {
        let before = self.unread.descriptors();
        let received = self.unread.settle(socket::unread_bytes(&self.server).unwrap());
        assert_eq!(self.unread.descriptors(), before - received);
        self.unread.descriptors()
    }

    fn really(&self) -> u32 {
        self.truth.iter().sum()
    }
}

#[test]
fn messages_of_a_byte_are_counted_exactly() {
    let mut line = Line::new();
    for read in 0..100 {
        while line.truth.len() < 50 {
            assert!(line.send(1, 1));
        }
        for _ in 0..read % 40 {
            line.read(1);
        }
        assert_eq!(line.settle(), line.really());
    }
}

#[test]
fn without_descriptors_nothing_is_recorded() {
    let mut unread = UnreadFds::default();
    unread.sent(1, 4096, 0);
    assert!(unread.runs.is_empty());
    unread.sent(3, 1, 1);
    unread.sent(1, 4096, 0);
    assert_eq!((unread.descriptors(), unread.runs.len()), (3, 2));
    assert_eq!(unread.settle(0), 3);
    assert!(unread.runs.is_empty());
}

#[test]
fn a_client_that_reads_steadily_is_never_far_behind() {
    let mut line = Line::new();
    // Like a batch of version 2: sixty-four descriptors on about four thousand bytes.
    for _ in 0..1000 {
        while line.truth.len() < 4 {
            assert!(line.send(3840, 64));
        }
        line.read(3840);
        let (counted, really) = (line.settle(), line.really());
        assert!((really..=really * 5 / 2).contains(&counted), "{counted} for {really}");
    }
}

#[test]
fn many_kinds_of_messages_take_little_memory() {
    let mut unread = UnreadFds::default();
    for bytes in 0..10_000 {
        unread.sent(1, bytes, 1);
    }
    assert_eq!((unread.descriptors(), unread.runs.len()), (10_000, MAX_RUNS));
    assert_eq!(unread.clear(), 10_000);
    assert_eq!(unread.clear(), 0);
}

proptest! {
    #[test]
    fn the_count_is_never_too_low(
        steps in prop::collection::vec((1usize..9000, 0usize..=64, 0usize..4), 1..120)
    ) {
        let mut line = Line::new();
        let mut lengths = VecDeque::new();
        for (bytes, descriptors, reads) in steps {
            if line.send(bytes, descriptors) {
                lengths.push_back(bytes);
            }
            for _ in 0..reads.min(lengths.len()) {
                line.read(lengths.pop_front().unwrap());
            }
            prop_assert!(line.settle() >= line.really());
        }
        while let Some(bytes) = lengths.pop_front() {
            line.read(bytes);
        }
        prop_assert_eq!(line.settle(), 0);
    }
}
