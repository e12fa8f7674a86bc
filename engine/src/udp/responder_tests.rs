//! The charge of a reply to its address's rate, on whichever thread makes it.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::settings::Settings;
use crate::udp::codec::encode_pull;
use std::path::Path;

const RATE: u64 = 40_000;

fn answerer(root: &Path) -> Responder {
    let settings = Settings { udp_rate_limit: RATE, ..crate::udp::serve_tests::settings_for(root) };
    let (address, limit) = (settings.udp.unwrap(), settings.udp_rate_limit);
    let socket = UdpSocket::bind(address, Vec::new(), limit, &mut Vec::new()).unwrap();
    let service = Arc::new(Service::new(settings).unwrap());
    Responder::new(&Arc::new(socket), &service, Model::Epoll)
}

fn turn(storage: DiskWait, counted: usize) -> RequestContext {
    // TEST-NET-1: the test never flushes the outbox, so nothing is sent there.
    let from = Peer::of("192.0.2.1:5".parse().unwrap());
    RequestContext { from, arrived: Instant::now(), waited: None, storage, counted }
}

fn ask(answerer: &mut Responder, turn: RequestContext) -> Disposition {
    let mut datagram = Vec::new();
    let pull =
        Pull { request_id: 1, offset: 0, length: 30_000, chunk: 1152, cookie: None, uri: Ok("/large") };
    encode_pull(&mut datagram, &pull, "/large");
    answerer.answer(&UdpRequest::decode(&datagram), turn)
}

#[test]
fn what_is_answered_after_a_wait_counts_as_well() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("large"), vec![7; 300_000]).unwrap();
    let mut answerer = answerer(root.path());
    for _ in 0..50 {
        assert_eq!(ask(&mut answerer, turn(DiskWait::Wait, 0)), Disposition::Now);
    }
    let sent = answerer.outbox.bytes.len();
    assert!((30_000..2 * RATE as usize).contains(&sent), "{sent}");
    assert!(answerer.gate().counts.limited_dropped.load(Relaxed) >= 40);
    assert!(answerer.is_over_its_rate(turn(DiskWait::Wait, 0).from));
}

#[test]
fn what_was_counted_before_the_wait_is_not_counted_again() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("large"), vec![7; 300_000]).unwrap();
    let mut answerer = answerer(root.path());
    // The charge made before exceeds the cost of each reply, headers included: nothing more is charged.
    for _ in 0..5 {
        assert_eq!(ask(&mut answerer, turn(DiskWait::Wait, 40_000)), Disposition::Now);
    }
    assert!(answerer.outbox.bytes.len() >= 150_000);
    assert!(!answerer.is_over_its_rate(turn(DiskWait::Wait, 0).from));
    assert_eq!(answerer.gate().counts.limited_dropped.load(Relaxed), 0);
}
