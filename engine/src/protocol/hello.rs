//! The start of a version 2 connection: client and server send their capabilities, and the common ones are in force.
//!
//! The client sends `"OBJM" 02 capabilities(2) max_pipeline(2)`; the server answers with the same and
//! `backend_parallelism(1)` behind it.

use std::ops::{BitAnd, BitOr};

use super::Status;

pub const MAGIC: [u8; 4] = *b"OBJM";
pub const VERSION: u8 = 2;
/// The length of a client's first message.
#[cfg(test)]
pub const HELLO: usize = 9;
/// The length of the server's answer.
pub const HELLO_ACK: usize = 10;
/// The most requests under way on one connection.
pub const MAX_PIPELINE: u16 = 1000;

/// The capabilities of one side; those of both sides are in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities(u16);

impl Capabilities {
    /// The server sends responses as they are ready.
    pub const OUT_OF_ORDER: Capabilities = Capabilities(0x0001);
    /// The client sends requests without waiting for responses.
    pub const PIPELINING: Capabilities = Capabilities(0x0002);
    /// The descriptor on the response's first byte, parameters, and operations beside the modes.
    pub const EXTENDED: Capabilities = Capabilities(0x0100);

    #[cfg(test)]
    pub fn from_bits(bits: u16) -> Self {
        Capabilities(bits)
    }

    pub fn bits(self) -> u16 {
        self.0
    }

    pub fn contains(self, other: Capabilities) -> bool {
        self & other == other
    }
}

impl BitAnd for Capabilities {
    type Output = Capabilities;

    fn bitand(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & other.0)
    }
}

impl BitOr for Capabilities {
    type Output = Capabilities;

    fn bitor(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }
}

/// The client's capabilities, and how many requests it wants under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub capabilities: Capabilities,
    pub max_pipeline: u16,
}

impl Hello {
    /// The hello in force between this client and a server with these capabilities and this `max_pipeline`.
    pub fn agree(self, capabilities: Capabilities, max_pipeline: u16) -> Hello {
        Hello {
            capabilities: self.capabilities & capabilities,
            max_pipeline: self.max_pipeline.min(max_pipeline).clamp(1, MAX_PIPELINE),
        }
    }
}

/// How a server decodes the start of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodedHello {
    Hello(Hello),
    /// The input ends inside the hello.
    More,
    /// A hello of another version.
    WrongVersion,
    /// Not a hello.
    Broken,
}

/// Decodes a client's hello, and moves `input` behind it.
pub fn decode_hello(input: &mut &[u8]) -> DecodedHello {
    match greeting(input) {
        Greeting::Known => {}
        Greeting::More => return DecodedHello::More,
        Greeting::WrongVersion => return DecodedHello::WrongVersion,
        Greeting::Broken => return DecodedHello::Broken,
    }
    let &[_, _, _, _, _, c0, c1, p0, p1, ref rest @ ..] = *input else {
        return DecodedHello::More;
    };
    *input = rest;
    DecodedHello::Hello(Hello {
        capabilities: Capabilities(u16::from_be_bytes([c0, c1])),
        max_pipeline: u16::from_be_bytes([p0, p1]),
    })
}

/// Appends a client's first message.
pub fn encode_hello(out: &mut Vec<u8>, capabilities: Capabilities, max_pipeline: u16) {
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    out.extend_from_slice(&capabilities.bits().to_be_bytes());
    out.extend_from_slice(&max_pipeline.to_be_bytes());
}

/// Appends the server's answer to a hello: the values in force, and how many requests the server works on at a time.
pub fn encode_hello_ack(
    out: &mut Vec<u8>,
    capabilities: Capabilities,
    max_pipeline: u16,
    backend_parallelism: u8,
) {
    encode_hello(out, capabilities, max_pipeline);
    out.push(backend_parallelism);
}

/// How a client decodes the answer to its hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodedHelloAck<'a> {
    Ack {
        capabilities: Capabilities,
        max_pipeline: u16,
        backend_parallelism: u8,
    },
    /// Before it has answered a hello, a server refuses in the form of version 1.
    Refused {
        status: Status,
        message: &'a [u8],
    },
    WrongVersion,
    /// The peer does not speak this protocol.
    Broken,
    More,
}

/// Decodes the answer to a hello, and moves `input` behind it.
pub fn decode_hello_ack<'a>(input: &mut &'a [u8]) -> DecodedHelloAck<'a> {
    let refused =
        input.first().and_then(|byte| Status::from_byte(*byte)).filter(|status| *status != Status::Ok);
    if let Some(status) = refused {
        let &[_, high, low, ref rest @ ..] = *input else {
            return DecodedHelloAck::More;
        };
        let Some((message, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))
        else {
            return DecodedHelloAck::More;
        };
        *input = rest;
        return DecodedHelloAck::Refused { status, message };
    }
    match greeting(input) {
        Greeting::Known => {}
        Greeting::More => return DecodedHelloAck::More,
        Greeting::WrongVersion => return DecodedHelloAck::WrongVersion,
        Greeting::Broken => return DecodedHelloAck::Broken,
    }
    let &[_, _, _, _, _, c0, c1, p0, p1, backend_parallelism, ref rest @ ..] = *input else {
        return DecodedHelloAck::More;
    };
    *input = rest;
    DecodedHelloAck::Ack {
        capabilities: Capabilities(u16::from_be_bytes([c0, c1])),
        max_pipeline: u16::from_be_bytes([p0, p1]),
        backend_parallelism,
    }
}

enum Greeting {
    Known,
    More,
    WrongVersion,
    Broken,
}

fn greeting(input: &[u8]) -> Greeting {
    let available = input.len().min(MAGIC.len());
    if input[..available] != MAGIC[..available] {
        return Greeting::Broken;
    }
    match input.get(MAGIC.len()) {
        None => Greeting::More,
        Some(&VERSION) => Greeting::Known,
        Some(_) => Greeting::WrongVersion,
    }
}
