//! Real datagrams to a real engine on loopback, in every model that serves them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::engine::Engine;
use crate::model::Model;
use crate::net::transport::Transport;
use crate::protocol::{DecodedReply, Mode, ReplyDecoder, encode_request};
use crate::settings::{OptimizeFor, Settings};
use crate::udp::codec::{Pull, UdpReply, checksum_of_uri, encode_pull};
use std::{collections::BTreeMap, net::SocketAddr, net::UdpSocket, path::Path, time::Duration};
use tempfile::TempDir;

mod queues_and_models;
mod replies;

const MODELS: [Model; 3] = [Model::Epoll, Model::ThreadPool, Model::WorkStealing];

struct Served {
    engine: Engine,
    root: TempDir,
    address: SocketAddr,
}

fn settings(root: &Path, model: Model, listen: &str) -> Settings {
    Settings {
        root: root.to_owned(),
        unix: None,
        unix_mode: 0o600,
        tcp: None,
        udp: Some(listen.parse().unwrap()),
        udp_trusted: Vec::new(),
        udp_rate_limit: 0,
        models: BTreeMap::from([(Transport::Udp, model)]),
        pool_size: 2,
        max_queue_depth: 1000,
        max_threads: 10,
        max_connections: 10,
        optimize_for: OptimizeFor::Throughput,
        async_storage: false,
        storage_pool_size: 2,
        cache_size: 1 << 20,
        cache_max_age: Duration::from_secs(60),
        max_output_buffer: 4 << 20,
        max_output_memory: 256 << 20,
        follow_symlinks: false,
        writable: false,
        max_object_size: 0,
        min_upload_rate: 0,
        upload_timeout: Duration::from_secs(60),
        max_uploads_per_uid: 0,
        max_reserved_per_uid: 0,
        inherited: Vec::new(),
        idle_timeout: Duration::from_secs(60).into(),
        header_timeout: Duration::from_secs(10).into(),
        request_timeout: Duration::from_secs(30).into(),
        origins: Vec::new(),
        disk_cache: None,
        disk_cache_size: 0,
    }
}

pub(crate) fn settings_for(root: &Path) -> Settings {
    settings(root, Model::Epoll, "127.0.0.1:0")
}

fn serving(model: Model, listen: &str, change: impl FnOnce(&mut Settings)) -> Served {
    let root = tempfile::tempdir().unwrap();
    for (name, size) in [("empty", 0), ("a", 1), ("small", 4096), ("snug", 65_498), ("large", 300_000)] {
        std::fs::write(root.path().join(name), content(size)).unwrap();
    }
    let mut settings = settings(root.path(), model, listen);
    change(&mut settings);
    let engine = Engine::new(settings).unwrap();
    engine.start().unwrap();
    let address = engine.addresses()[0].1.strip_prefix("udp://").unwrap().parse().unwrap();
    Served { engine, root, address }
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 + at / 251) as u8).collect()
}

impl Served {
    fn client(&self) -> Client {
        Client::to(self.address)
    }
}

/// A connected socket, which receives from one server only. Replies fit its default buffer size.
struct Client(UdpSocket);

impl Client {
    fn to(server: SocketAddr) -> Self {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client(socket)
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 16];
        let length = self.0.recv(&mut buffer).expect("an answer");
        buffer.truncate(length);
        buffer
    }

    fn receives_nothing(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let nothing = self.0.recv(&mut [0; 10]).is_err();
        self.0.set_nonblocking(false).unwrap();
        nothing
    }

    fn send_plain(&self, mode: Mode, uri: &str) {
        let mut out = Vec::new();
        encode_request(&mut out, mode, uri);
        self.0.send(&out).unwrap();
    }

    /// Returns the content, or the status.
    fn plain(&self, mode: Mode, uri: &str) -> Result<Vec<u8>, u8> {
        self.send_plain(mode, uri);
        read_plain(&self.receive())
    }

    fn pull(&self, uri: &str, offset: u64, length: u32, chunk: u16) {
        let mut out = Vec::new();
        let pull = Pull { request_id: 77, offset, length, chunk, cookie: None, uri: Ok(uri) };
        encode_pull(&mut out, &pull, uri);
        self.0.send(&out).unwrap();
    }

    /// The next piece: version, total, offset, payload; or the status of an error.
    fn piece(&self, uri: &str) -> Result<(u64, u64, u64, Vec<u8>), u8> {
        match UdpReply::decode(checksum_of_uri(uri), &self.receive()) {
            UdpReply::Data { request_id: 77, version, total, offset, payload } => {
                Ok((version, total, offset, payload.to_vec()))
            }
            UdpReply::Error { request_id: 77, status, .. } => Err(status),
            other => panic!("{other:?}"),
        }
    }

    /// A range, put together from `pieces` pieces.
    fn range(&self, uri: &str, offset: u64, length: u32, chunk: u16, pieces: usize) -> Vec<u8> {
        self.pull(uri, offset, length, chunk);
        let mut found: Vec<_> = (0..pieces).map(|_| self.piece(uri).unwrap()).collect();
        found.sort_by_key(|(_, _, offset, _)| *offset);
        let mut bytes = Vec::new();
        for (_, _, at, payload) in found {
            assert_eq!(at, offset + bytes.len() as u64);
            bytes.extend(payload);
        }
        bytes
    }
}

fn read_plain(reply: &[u8]) -> Result<Vec<u8>, u8> {
    let mut rest = reply;
    let found = match ReplyDecoder::default().decode(Some(Mode::Copy), &mut rest) {
        DecodedReply::Content { bytes, last: true } => Ok(bytes.to_vec()),
        DecodedReply::Error { status, message } => {
            assert!(!message.is_empty());
            Err(status)
        }
        other => panic!("{other:?}"),
    };
    assert!(rest.is_empty());
    found
}
