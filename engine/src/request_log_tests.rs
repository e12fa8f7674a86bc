//! Tests of the request log: which requests are kept, and for which reader.
#![allow(clippy::unwrap_used)]

use super::*;

fn pass(request_log: &RequestLog, uri: &str, microseconds: u64) {
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    request_log.record(&CompletedRequest {
        shard: 0,
        uri: &UriTail::from_uri(uri),
        from: PeerRef::Connection(&socket.into()),
        transport: Transport::Unix,
        operation: "copy",
        model: "epoll",
        status: 0,
        bytes: 3,
        queue: Duration::from_micros(microseconds / 2),
        storage: Duration::from_micros(microseconds - microseconds / 2),
        send: Duration::ZERO,
    });
}

#[test]
fn the_slowest_come_first_and_are_bounded() {
    let request_log = RequestLog::default();
    for time in 0..1000 {
        pass(&request_log, &format!("/{time}"), time * 7919 % 1000);
    }
    let slowest = request_log.slowest();
    assert_eq!(slowest.len(), SLOWEST);
    let times: Vec<u64> = slowest.iter().map(|record| record.total_us as u64).collect();
    assert_eq!(times, (1000 - SLOWEST as u64..1000).rev().collect::<Vec<_>>());
}

#[test]
fn a_record_has_the_parts_of_the_time_and_the_peer() {
    let request_log = RequestLog::default();
    pass(&request_log, "/a", 10);
    let record = &request_log.slowest()[0];
    assert_eq!(
        (record.uri.as_str(), record.queue_us, record.storage_us, record.send_us),
        ("/a", 5.0, 5.0, 0.0)
    );
    let who = format!("pid {} uid {}", std::process::id(), rustix::process::getuid().as_raw());
    assert_eq!(record.peer, who);
}

#[test]
fn without_a_watcher_nothing_is_recorded() {
    let request_log = RequestLog::default();
    pass(&request_log, "/a", 1_000_000);
    assert_eq!(request_log.records(0).1.len(), 0);
    request_log.watch(Duration::from_millis(5), Duration::from_secs(60));
    pass(&request_log, "/fast", 100);
    pass(&request_log, "/slow", 5000);
    let (last, records) = request_log.records(0);
    assert_eq!((last, records.len(), records[0].uri.as_str()), (1, 1, "/slow"));
    assert_eq!(request_log.records(last).1.len(), 0);
}

#[test]
fn one_request_of_n_is_sampled() {
    let request_log = RequestLog::default();
    request_log.sample(10);
    for _ in 0..100 {
        pass(&request_log, "/a", 1);
    }
    assert_eq!(request_log.records(0).1.len(), 10);
}

#[test]
fn the_oldest_unread_records_are_lost() {
    let request_log = RequestLog::default();
    request_log.sample(1);
    for at in 0..MAX_KEPT + 100 {
        pass(&request_log, &format!("/{at}"), 1);
    }
    let (last, records) = request_log.records(0);
    assert_eq!((last, records.len()), (MAX_KEPT as u64 + 100, MAX_KEPT));
    assert_eq!(records[0].uri, "/100");
}

#[test]
fn a_long_uri_keeps_its_end() {
    let uri = format!("/{}é", "x".repeat(200));
    let text = UriTail::from_uri(&uri).text();
    assert!(text.starts_with('…') && text.ends_with("xé") && text.len() <= TAIL + 3, "{text}");
}
