//! Real datagrams to a real engine on loopback, in every model that serves them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::engine::Engine;
use crate::model::Model;
use crate::net::transport::Transport;
use crate::protocol::{DecodedReply, Mode, ReplyDecoder, encode_request};
use crate::settings::{OptimizeFor, Settings};
use crate::udp::codec::{Answer, COOKIE, DATA_HEAD, Pull, checksum_of_uri, encode_pull};
use std::{collections::BTreeMap, net::SocketAddr, net::UdpSocket, path::Path, time::Duration};
use tempfile::TempDir;

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
        let mut room = vec![0; 1 << 16];
        let length = self.0.recv(&mut room).expect("an answer");
        room.truncate(length);
        room
    }

    fn hears_nothing(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let nothing = self.0.recv(&mut [0; 10]).is_err();
        self.0.set_nonblocking(false).unwrap();
        nothing
    }

    fn ask_plain(&self, mode: Mode, uri: &str) {
        let mut out = Vec::new();
        encode_request(&mut out, mode, uri);
        self.0.send(&out).unwrap();
    }

    /// Returns the content, or the status.
    fn plain(&self, mode: Mode, uri: &str) -> Result<Vec<u8>, u8> {
        self.ask_plain(mode, uri);
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
        match Answer::decode(checksum_of_uri(uri), &self.receive()) {
            Answer::Data { request_id: 77, version, total, offset, payload } => {
                Ok((version, total, offset, payload.to_vec()))
            }
            Answer::Error { request_id: 77, status, .. } => Err(status),
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

#[test]
fn what_fits_a_datagram_comes_in_one() {
    for model in MODELS {
        let served = serving(model, "127.0.0.1:0", |_| {});
        let client = served.client();
        for (name, size) in [("/empty", 0), ("/a", 1), ("small", 4096), ("/snug", 65_498)] {
            // Twice: from the file, and perhaps from memory.
            for _ in 0..2 {
                assert_eq!(client.plain(Mode::Copy, name), Ok(content(size)), "{model:?} {name}");
            }
        }
    }
}

#[test]
fn what_a_datagram_cannot_bring_is_refused_with_the_reason() {
    for model in MODELS {
        let served = serving(model, "127.0.0.1:0", |_| {});
        std::fs::write(served.root.path().join("tight"), content(65_499)).unwrap();
        let client = served.client();
        for (mode, uri, status) in [
            (Mode::FdPass, "/a", 0x03),
            (Mode::Splice, "/a", 0x03),
            (Mode::Copy, "/large", 0x05),
            (Mode::Copy, "/tight", 0x05),
            (Mode::Copy, "/none", 0x01),
            (Mode::Copy, "/../a", 0x02),
            (Mode::Copy, "/", 0x02),
        ] {
            assert_eq!(client.plain(mode, uri), Err(status), "{model:?} {uri}");
        }
        client.0.send(b"2\0\x02/a more").unwrap();
        assert_eq!(read_plain(&client.receive()), Err(0x20));
        client.0.send(&[b"2\xff\xff".to_vec(), vec![b'x'; 60_000]].concat()).unwrap();
        assert_eq!(read_plain(&client.receive()), Err(0x04));
    }
}

#[test]
fn a_range_comes_in_pieces_of_the_size_that_was_asked_for() {
    for model in MODELS {
        let served = serving(model, "127.0.0.1:0", |_| {});
        let client = served.client();
        let large = content(300_000);
        for (offset, length, chunk, pieces) in [
            (0, 10_000, 1152, 9),
            (17, 1000, 1000, 1),
            (17, 1001, 1000, 2),
            (0, 32 * 1152, 1152, 32),
            (100_000, 12 * 5000, 5000, 12),
            (250_000, 300_000, 16_384, 4),
            (299_999, 5000, 5000, 1),
            (200_000, u32::MAX, 65_535, 2),
        ] {
            let end = large.len().min(offset + length as usize);
            assert_eq!(
                client.range("/large", offset as u64, length, chunk, pieces),
                large[offset..end],
                "{model:?} {offset} {length} {chunk}"
            );
        }
        assert_eq!(client.range("/small", 4000, 96, 50, 2), content(4096)[4000..]);
        assert!(client.hears_nothing());
    }
}

#[test]
fn a_pull_brings_thirty_two_pieces_and_never_more() {
    let served = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let client = served.client();
    assert_eq!(client.range("/large", 0, u32::MAX, 1, 32), content(300_000)[..32]);
    assert_eq!(client.range("/large", 5, 300_000, 1152, 32), content(300_000)[5..5 + 32 * 1152]);
    assert_eq!(client.plain(Mode::Copy, "/a"), Ok(content(1)));
    assert!(client.hears_nothing());
}

#[test]
fn a_range_of_nothing_tells_version_and_size() {
    let served = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let client = served.client();
    for uri in ["/large", "/small", "/empty"] {
        let total = std::fs::metadata(served.root.path().join(&uri[1..])).unwrap().len();
        client.pull(uri, 0, 0, 1000);
        let (version, ..) = client.piece(uri).unwrap();
        for offset in [total, total + 1, u64::MAX] {
            client.pull(uri, offset, 1000, 1000);
            assert_eq!(client.piece(uri), Ok((version, total, offset, Vec::new())), "{uri} {offset}");
        }
    }
}

#[test]
fn an_object_that_changes_has_another_version() {
    let served = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let client = served.client();
    for (uri, size) in [("/small", 4096), ("/large", 300_000)] {
        let path = served.root.path().join(&uri[1..]);
        client.pull(uri, 0, 1, 1);
        let (before, ..) = client.piece(uri).unwrap();
        client.pull(uri, 0, 1, 1);
        assert_eq!(client.piece(uri).unwrap().0, before);
        let beside = served.root.path().join("beside");
        std::fs::write(&beside, vec![1; size]).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        client.pull(uri, 0, 1, 1);
        let (after, _, _, payload) = client.piece(uri).unwrap();
        assert_ne!(after, before);
        assert_eq!(payload, [1]);
        std::fs::remove_file(&path).unwrap();
        client.pull(uri, 0, 1, 1);
        assert_eq!(client.piece(uri), Err(0x01));
    }
}

#[test]
fn a_pull_that_cannot_be_served_gets_an_error_of_its_own() {
    let served = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let client = served.client();
    for (uri, chunk, status) in [("/none", 1, 0x01), ("/a/../a", 1, 0x02), ("/a", 0, 0x02)] {
        client.pull(uri, 0, 1000, chunk);
        assert_eq!(client.piece(uri), Err(status), "{uri}");
    }
    let long = "n".repeat(4097);
    client.pull(&long, 0, 1, 1);
    assert_eq!(client.piece(&long), Err(0x04));
}

#[test]
fn a_cookie_is_not_asked_for_on_loopback_and_any_will_do() {
    let served = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let client = served.client();
    let mut out = Vec::new();
    let cookie = Some([9; COOKIE]);
    let pull = Pull { request_id: 77, offset: 0, length: 1, chunk: 1, cookie, uri: Ok("/a") };
    encode_pull(&mut out, &pull, "/a");
    client.0.send(&out).unwrap();
    assert_eq!(client.piece("/a").unwrap().3, content(1));
}

#[test]
fn noise_is_counted_and_not_answered() {
    let served = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let client = served.client();
    for noise in [&b""[..], b"U", b"U\x01\x00\x00", b"HTTP", &[0; 60_000], b"\x01\0\0"] {
        client.0.send(noise).unwrap();
    }
    assert_eq!(client.plain(Mode::Copy, "/a"), Ok(content(1)));
    assert!(client.hears_nothing());
    // The client may have a reply that the server has not counted yet.
    let counts = std::iter::repeat_with(|| served.engine.snapshot().datagrams.unwrap())
        .find(|counts| counts.bytes_sent_total > 0)
        .unwrap();
    assert_eq!((counts.noise_received_total, counts.plain_received_total), (6, 1));
    assert_eq!((counts.reply_sent_total, counts.bytes_sent_total), (1, 10));
    assert_eq!(counts.bytes_received_total, 1 + 4 + 4 + 60_000 + 3 + 5);
}

#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    let served = serving(Model::Epoll, "0.0.0.0:0", |_| {});
    for ip in ["127.0.0.1", "127.0.0.2", "127.8.9.10"] {
        // A connected socket receives from its peer only.
        let client = Client::to(SocketAddr::new(ip.parse().unwrap(), served.address.port()));
        assert_eq!(client.plain(Mode::Copy, "/a"), Ok(content(1)), "{ip}");
        assert_eq!(client.range("/large", 0, 50_000, 1152, 32), content(300_000)[..32 * 1152]);
    }
    assert!(served.engine.notices().iter().any(|notice| notice.contains("not loopback")));
}

#[test]
fn it_is_the_same_over_ipv6() {
    for listen in ["[::1]:0", "[::]:0"] {
        let served = serving(Model::Epoll, listen, |_| {});
        let client = Client::to(format!("[::1]:{}", served.address.port()).parse().unwrap());
        assert_eq!(client.plain(Mode::Copy, "/small"), Ok(content(4096)));
        // Of the 65,536 bytes of a loopback frame 48 are headers.
        assert_eq!(client.plain(Mode::Copy, "/snug"), Err(0x05));
        std::fs::write(served.root.path().join("snug6"), content(65_488 - 9)).unwrap();
        assert_eq!(client.plain(Mode::Copy, "/snug6"), Ok(content(65_488 - 9)));
        assert_eq!(client.range("/large", 0, 100_000, 65_535, 2), content(300_000)[..100_000]);
        assert_eq!(client.range("/large", 7, 50_000, 1152, 32), content(300_000)[7..7 + 32 * 1152]);
        let notices = served.engine.notices();
        assert_eq!(notices.iter().any(|notice| notice.contains("not loopback")), listen == "[::]:0");
    }
}

#[test]
fn every_answer_is_counted_once() {
    let served = serving(Model::ThreadPool, "127.0.0.1:0", |_| {});
    let client = served.client();
    for _ in 0..10 {
        client.plain(Mode::Copy, "/small").unwrap();
        client.range("/large", 0, 10_000, 1000, 10);
    }
    client.plain(Mode::Copy, "/none").unwrap_err();
    // The client may have a reply that the server has not counted yet.
    let figures = std::iter::repeat_with(|| served.engine.snapshot().figures[0].clone())
        .find(|figures| figures.requests_total >= 21)
        .unwrap();
    assert_eq!(figures.requests_total, 21);
    assert_eq!(figures.bytes_total, 10 * 4096 + 10 * 10_000);
    assert_eq!(figures.errors_total, BTreeMap::from([(0x01, 1)]));
    let counts = served.engine.snapshot().datagrams.unwrap();
    assert_eq!((counts.plain_received_total, counts.reply_sent_total), (11, 11));
    assert_eq!((counts.pull_received_total, counts.data_sent_total), (10, 100));
    let bytes = 10 * (4096 + 9) + 10 * (10_000 + 10 * DATA_HEAD as u64) + (3 + 14);
    assert_eq!(counts.bytes_sent_total, bytes);
}

#[test]
fn storage_that_may_block_is_read_elsewhere() {
    for model in MODELS {
        let served = serving(model, "127.0.0.1:0", |settings| settings.async_storage = true);
        let client = served.client();
        let large = std::fs::File::open(served.root.path().join("large")).unwrap();
        large.sync_all().unwrap();
        for _ in 0..20 {
            // Drops the file from the page cache, where the file system has one.
            rustix::fs::fadvise(&large, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            assert_eq!(
                client.range("/large", 200_000, 60_000, 30_000, 2),
                content(300_000)[200_000..260_000]
            );
            assert_eq!(client.plain(Mode::Copy, "/a"), Ok(content(1)));
        }
    }
}

#[test]
fn a_full_queue_says_so_and_everybody_gets_an_answer() {
    for model in [Model::ThreadPool, Model::WorkStealing] {
        let served = serving(model, "127.0.0.1:0", |settings| {
            settings.max_queue_depth = 1;
            settings.pool_size = 1;
        });
        let client = served.client();
        let (mut served_well, mut refused) = (0, 0);
        while refused == 0 {
            for _ in 0..100 {
                client.ask_plain(Mode::Copy, "/small");
            }
            for _ in 0..100 {
                match read_plain(&client.receive()) {
                    Ok(bytes) => served_well += usize::from(bytes == content(4096)),
                    Err(status) => {
                        assert_eq!(status, 0x14);
                        refused += 1;
                    }
                }
            }
        }
        assert!(served_well > 0, "{model:?}");
        let state = &served.engine.snapshot().transports[0];
        assert_eq!(state.rejected_total, refused, "{model:?}");
    }
}

#[test]
fn questions_that_wait_for_storage_are_bounded_and_get_an_answer() {
    for model in MODELS {
        let served = serving(model, "127.0.0.1:0", |settings| {
            settings.async_storage = true;
            settings.max_queue_depth = 1;
            settings.storage_pool_size = 1;
        });
        let client = served.client();
        let (mut asked, mut refused) = (0, 0);
        while refused == 0 {
            for _ in 0..100 {
                // A name that the kernel has never looked up.
                client.ask_plain(Mode::Copy, &format!("/missing-{asked}"));
                asked += 1;
            }
            for _ in 0..100 {
                let status = read_plain(&client.receive()).expect_err("a refusal, or not found");
                assert!([0x01, 0x14].contains(&status), "{model:?} {status:#x}");
                refused += u32::from(status == 0x14);
            }
        }
    }
}

#[test]
fn the_model_changes_while_datagrams_come() {
    let served = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let client = served.client();
    for round in 0..60 {
        for _ in 0..20 {
            client.ask_plain(Mode::Copy, "/a");
        }
        assert!(served.engine.set_concurrency(Transport::Udp, MODELS[round % 3]).unwrap());
        for _ in 0..20 {
            assert_eq!(read_plain(&client.receive()), Ok(content(1)));
        }
    }
    assert!(client.hears_nothing());
    assert!(served.engine.set_concurrency(Transport::Udp, Model::ThreadPerConnection).is_err());
    assert_eq!(client.plain(Mode::Copy, "/a"), Ok(content(1)));
}

#[test]
fn a_thread_per_connection_is_refused_at_the_start() {
    let root = tempfile::tempdir().unwrap();
    let engine = Engine::new(settings(root.path(), Model::ThreadPerConnection, "127.0.0.1:0")).unwrap();
    let error = engine.start().unwrap_err();
    assert!(error.to_string().contains("UDP has none"), "{error}");
}

#[test]
fn a_drain_answers_what_has_come_and_ends() {
    for model in MODELS {
        let served = serving(model, "127.0.0.1:0", |_| {});
        let client = served.client();
        for _ in 0..200 {
            client.ask_plain(Mode::Copy, "/a");
        }
        assert!(served.engine.drain(Duration::from_secs(20)), "{model:?}");
        for _ in 0..200 {
            assert_eq!(read_plain(&client.receive()), Ok(content(1)));
        }
        client.ask_plain(Mode::Copy, "/a");
        assert!(client.hears_nothing());
        served.engine.stop();
        assert_eq!(served.engine.snapshot().transports.len(), 0);
    }
}

#[test]
fn a_taken_port_is_named() {
    let first = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let root = tempfile::tempdir().unwrap();
    let engine = Engine::new(settings(root.path(), Model::Epoll, &first.address.to_string())).unwrap();
    assert!(engine.start().unwrap_err().to_string().contains(&first.address.to_string()));
}
