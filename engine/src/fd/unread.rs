//! Counts the descriptors that were passed to a client and that it may not have received.
//!
//! Unread messages take kernel memory, and SIOCOUTQ reports how much. A client reads messages in order, so the newest
//! are unread, and only as many as fit into that memory; the client has received all earlier ones. For messages of
//! one byte, those of version 1, this count is exact. For longer ones the kernel rounds the memory up, so the count
//! may be up to about twice the real number, and never too low.

use crate::net::socket;
use std::collections::VecDeque;

/// Runs kept apart; all earlier messages count as one.
const MAX_RUNS: usize = 64;

#[derive(Debug, Default)]
pub struct UnreadFds {
    /// The oldest first.
    runs: VecDeque<MessageRun>,
    /// The sum over all runs.
    descriptors: u32,
}

/// Consecutive messages that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MessageRun {
    /// The least kernel memory that one message takes.
    memory: usize,
    /// Descriptors in each message.
    descriptors: u32,
    messages: usize,
}

impl UnreadFds {
    /// Descriptors that may be unread, as far as the server knows.
    pub fn descriptors(&self) -> u32 {
        self.descriptors
    }

    /// Records sent messages: how many, and the bytes and descriptors of each.
    pub fn sent(&mut self, messages: usize, bytes: usize, descriptors: u32) {
        // Messages before the first descriptor do not matter.
        if messages == 0 || (self.descriptors == 0 && descriptors == 0) {
            return;
        }
        let memory = bytes.max(socket::min_message_cost());
        self.descriptors += descriptors * messages as u32;
        match self.runs.back_mut() {
            Some(last) if last.memory == memory && last.descriptors == descriptors => {
                last.messages += messages;
            }
            _ => self.runs.push_back(MessageRun { memory, descriptors, messages }),
        }
        if self.runs.len() > MAX_RUNS
            && let (Some(first), Some(second)) = (self.runs.pop_front(), self.runs.pop_front())
        {
            self.runs.push_front(MessageRun {
                memory: first.memory * first.messages + second.memory * second.messages,
                descriptors: first.descriptors * first.messages as u32
                    + second.descriptors * second.messages as u32,
                messages: 1,
            });
        }
    }

    /// Settles received messages, given the memory of the unread ones; returns how many descriptors were received.
    pub fn settle(&mut self, mut memory: usize) -> u32 {
        let before = self.descriptors;
        self.descriptors = 0;
        let mut kept = 0;
        for run in self.runs.iter_mut().rev() {
            let unread = run.messages.min(memory / run.memory);
            self.descriptors += run.descriptors * unread as u32;
            kept += usize::from(unread > 0);
            if unread < run.messages {
                run.messages = unread;
                break;
            }
            memory -= run.memory * unread;
        }
        self.runs.drain(..self.runs.len() - kept);
        before - self.descriptors
    }

    /// Forgets all messages; returns how many descriptors there were.
    pub fn clear(&mut self) -> u32 {
        self.runs.clear();
        std::mem::take(&mut self.descriptors)
    }
}

#[cfg(test)]
#[path = "unread_tests.rs"]
mod tests;
