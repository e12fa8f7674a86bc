//! The descriptors that were passed to a client and that it may not have received.
//!
//! What was sent and not read takes kernel memory, and SIOCOUTQ tells how much. A client reads in the order of the messages,
//! so what it has not read are the newest, and no more of them than fit into that memory: whatever went before has been
//! received. Of messages that are a byte long, those of version 1, this is the exact number; of longer ones the kernel
//! rounds the memory up, so up to about twice as many may be counted, never too few.

use crate::net::socket;
use std::collections::VecDeque;

/// Runs of messages that are told apart; of what came before, all is counted as one message.
const MAX_RUNS: usize = 64;

#[derive(Debug, Default)]
pub struct UnreadFds {
    /// The oldest first.
    runs: VecDeque<MessageRun>,
    /// In all of them together.
    descriptors: u32,
}

/// Messages that went out one behind the other and are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MessageRun {
    /// The least memory that one takes.
    memory: usize,
    /// Descriptors that each carries.
    descriptors: u32,
    messages: usize,
}

impl UnreadFds {
    /// Descriptors that may be unread, as far as is known.
    pub fn descriptors(&self) -> u32 {
        self.descriptors
    }

    /// So many messages were sent, each of so many bytes and with so many descriptors.
    pub fn sent(&mut self, messages: usize, bytes: usize, descriptors: u32) {
        // What lies before the first descriptor is of no interest.
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

    /// Settles what has been received where the unread messages take so much memory; returns how many descriptors.
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

    /// Forgets them all; returns how many there were.
    pub fn clear(&mut self) -> u32 {
        self.runs.clear();
        std::mem::take(&mut self.descriptors)
    }
}

#[cfg(test)]
#[path = "unread_tests.rs"]
mod tests;
