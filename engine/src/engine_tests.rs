//! Faults of the server itself, in every model: they end one session, or one answer, and nothing else.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::protocol::{Mode, encode_request};
use crate::udp::serve_tests::settings_for;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket as Datagrams};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::channel;

fn serving(model: Model) -> (Engine, tempfile::TempDir, BTreeMap<&'static str, SocketAddr>) {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a"), b"a").unwrap();
    let by_datagrams = if model == Model::ThreadPerConnection { Model::Epoll } else { model };
    let settings = Settings {
        tcp: Some("127.0.0.1:0".parse().unwrap()),
        models: BTreeMap::from([(Transport::Tcp, model), (Transport::Udp, by_datagrams)]),
        ..settings_for(root.path())
    };
    let engine = Engine::new(settings).unwrap();
    engine.start().unwrap();
    let addresses = engine.addresses().into_iter();
    let addresses = addresses.map(|(name, at)| (name, at.split("//").nth(1).unwrap().parse().unwrap()));
    let addresses = addresses.collect();
    (engine, root, addresses)
}

fn encoded_request(uri: &str) -> Vec<u8> {
    let mut encoded_request = Vec::new();
    encode_request(&mut encoded_request, Mode::Copy, uri);
    encoded_request
}

fn exchange(client: &mut TcpStream) -> Option<u8> {
    exchange_uri(client, "/a")
}

fn exchange_uri(client: &mut TcpStream, uri: &str) -> Option<u8> {
    client.write_all(&encoded_request(uri)).ok()?;
    let mut answer = [0; 10];
    client.read_exact(&mut answer).ok().map(|()| answer[9])
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client
}

fn panics(engine: &Engine, transport: &str) -> u64 {
    let states = engine.snapshot().transports;
    states.iter().find(|state| state.transport == transport).unwrap().panics_total
}

#[test]
fn a_panic_ends_its_session_and_no_other_in_every_model() {
    for model in Model::ALL {
        let (engine, _root, addresses) = serving(model);
        let (mut one, mut other) = (connect(addresses["tcp"]), connect(addresses["tcp"]));
        assert_eq!((exchange(&mut one), exchange(&mut other)), (Some(b'a'), Some(b'a')), "{model:?}");
        // More panics than there are workers: each worker survives some.
        for round in 1..=10 {
            let mut victim = connect(addresses["tcp"]);
            assert_eq!(exchange(&mut victim), Some(b'a'), "{model:?}");
            assert_eq!(exchange_uri(&mut victim, "/panic"), None, "{model:?}");
            assert_eq!(panics(&engine, "tcp"), round, "{model:?}");
        }
        assert_eq!((exchange(&mut one), exchange(&mut other)), (Some(b'a'), Some(b'a')), "{model:?}");
        drop((one, other));
        let until = Instant::now() + Duration::from_secs(20);
        while engine.service.connections.load(Relaxed) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(engine.service.connections.load(Relaxed), 0, "{model:?}");
        assert!(engine.drain(Duration::from_secs(20)), "{model:?}");
    }
}

#[test]
fn a_panic_leaves_one_datagram_without_an_answer() {
    for model in [Model::Epoll, Model::ThreadPool, Model::WorkStealing] {
        let (engine, _root, addresses) = serving(model);
        let client = Datagrams::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for round in 1..=10 {
            client.send_to(&encoded_request("/panic"), addresses["udp"]).unwrap();
            let until = Instant::now() + Duration::from_secs(20);
            while panics(&engine, "udp") < round && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
            client.send_to(&encoded_request("/a"), addresses["udp"]).unwrap();
            assert_eq!(client.recv(&mut [0; 100]).unwrap(), 10, "{model:?}");
            assert_eq!(panics(&engine, "udp"), round, "{model:?}");
        }
    }
}

#[test]
fn a_drain_timeout_beyond_the_clocks_range_is_accepted() {
    let (engine, _root, _) = serving(Model::Epoll);
    assert!(engine.drain(Duration::MAX));
    assert!(engine.set_concurrency(Transport::Tcp, Model::ThreadPool).is_err(), "it drains");
}

/// Sends requests without end and reads the answers; counts the bytes that arrive.
fn keep_busy(address: SocketAddr) -> (Arc<AtomicU64>, [JoinHandle<()>; 2]) {
    let client = connect(address);
    let (mut reading, mut writing) = (client.try_clone().unwrap(), client);
    let bytes_received = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&bytes_received);
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(length @ 1..) = reading.read(&mut buffer) {
            counted.fetch_add(length as u64, Relaxed);
        }
    });
    let requests = encoded_request("/a").repeat(20_000);
    let writer = std::thread::spawn(move || while writing.write_all(&requests).is_ok() {});
    (bytes_received, [reader, writer])
}

#[test]
fn busy_clients_do_not_keep_a_server_from_stopping() {
    for model in Model::ALL {
        let (engine, _root, addresses) = serving(model);
        let busy: Vec<_> = (0..4).map(|_| keep_busy(addresses["tcp"])).collect();
        while busy.iter().any(|(bytes_received, _)| bytes_received.load(Relaxed) < 1_000_000) {
            std::thread::sleep(Duration::from_millis(5));
        }
        engine.stop();
        assert!(engine.snapshot().transports.is_empty(), "{model:?}: a thread serves on");
        busy.into_iter().flat_map(|(_, threads)| threads).for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn one_busy_address_leaves_storage_capacity_to_others() {
    let root = tempfile::tempdir().unwrap();
    let settings = Settings {
        udp: Some("0.0.0.0:0".parse().unwrap()),
        async_storage: true,
        storage_pool_size: 1,
        max_queue_depth: 100,
        ..settings_for(root.path())
    };
    let engine = Engine::new(settings).unwrap();
    engine.start().unwrap();
    let port = engine.addresses()[0].1.rsplit(':').next().unwrap().parse().unwrap();
    let client = |ip: &str| {
        let client = Datagrams::bind((ip, 0)).unwrap();
        client.connect(SocketAddr::new(ip.parse().unwrap(), port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    };
    // Block the only thread that may wait for storage.
    let (go_on, waits) = channel::<()>();
    let (started, has_begun) = channel();
    let other = crate::storage::pool::Client { user: crate::storage::pool::User::Unknown, connection: 0 };
    let pool = engine.service.storage_pool.as_ref().unwrap();
    pool.submit(other, crate::storage::pool::Kind::Short, move || {
        started.send(()).unwrap();
        let _ = waits.recv();
    });
    has_begun.recv().unwrap();
    // The kernel has not cached these names, so the server must ask storage.
    let greedy: Vec<_> = (0..20).map(|_| client("127.0.0.2")).collect();
    for (number, client) in greedy.iter().enumerate() {
        for total in 0..20 {
            client.send(&encoded_request(&format!("/unknown-{number}-{total}"))).unwrap();
        }
    }
    let refused = || engine.snapshot().transports[0].rejected_total;
    let until = Instant::now() + Duration::from_secs(20);
    while refused() < 300 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(refused() >= 300, "{}", refused());
    let honest = client("127.0.0.1");
    honest.send(&encoded_request("/unknown-to-all")).unwrap();
    go_on.send(()).unwrap();
    let mut answer = [0; 200];
    honest.recv(&mut answer).unwrap();
    assert_eq!(answer[0], crate::protocol::Status::NotFound as u8);
}
