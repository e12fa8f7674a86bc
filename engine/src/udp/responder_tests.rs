//! The charge of a reply to its address's rate, on whichever thread makes it.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::settings::Settings;
use crate::udp::codec::encode_pull;
use std::path::Path;

const RATE: u64 = 40_000;

fn responder(root: &Path) -> Responder {
    let settings = Settings { udp_rate_limit: RATE, ..crate::udp::serve_tests::settings_for(root) };
    let (address, limit) = (settings.udp.unwrap(), settings.udp_rate_limit);
    let socket = UdpSocket::bind(address, Vec::new(), limit, &mut Vec::new()).unwrap();
    let service = Arc::new(Service::new(settings).unwrap());
    Responder::new(&Arc::new(socket), &service, Model::Epoll)
}

fn context(storage: DiskWait, charged: usize) -> RequestContext {
    // TEST-NET-1: the test never flushes the outbox, so nothing is sent there.
    let from = Peer::from_address("192.0.2.1:5".parse().unwrap());
    RequestContext { from, arrived: Instant::now(), waited: None, storage, charged }
}

fn answer(responder: &mut Responder, context: RequestContext) -> Disposition {
    let mut datagram = Vec::new();
    let pull =
        Pull { request_id: 1, offset: 0, length: 30_000, chunk: 1152, cookie: None, uri: Ok("/large") };
    encode_pull(&mut datagram, &pull, "/large");
    responder.answer(&UdpRequest::decode(&datagram), context)
}

#[test]
fn a_reply_after_a_disk_wait_is_charged_to_the_rate() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("large"), vec![7; 300_000]).unwrap();
    let mut responder = responder(root.path());
    for _ in 0..50 {
        assert_eq!(answer(&mut responder, context(DiskWait::Wait, 0)), Disposition::Now);
    }
    let sent = responder.outbox.bytes.len();
    assert!((30_000..2 * RATE as usize).contains(&sent), "{sent}");
    assert!(responder.admission().counts.limited_dropped.load(Relaxed) >= 40);
    assert!(responder.is_over_its_rate(context(DiskWait::Wait, 0).from));
}

#[test]
fn bytes_charged_before_a_disk_wait_are_charged_once() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("large"), vec![7; 300_000]).unwrap();
    let mut responder = responder(root.path());
    // The charge made before exceeds the cost of each reply, headers included: nothing more is charged.
    for _ in 0..5 {
        assert_eq!(answer(&mut responder, context(DiskWait::Wait, 40_000)), Disposition::Now);
    }
    assert!(responder.outbox.bytes.len() >= 150_000);
    assert!(!responder.is_over_its_rate(context(DiskWait::Wait, 0).from));
    assert_eq!(responder.admission().counts.limited_dropped.load(Relaxed), 0);
}
