//! What clients receive: contents, pieces, errors, cookies.

use super::*;
use crate::udp::codec::COOKIE;

#[test]
fn a_small_object_comes_in_one_datagram() {
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
fn an_object_too_large_for_a_datagram_is_refused_with_the_reason() {
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
fn a_range_comes_in_pieces_of_the_requested_size() {
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
        assert!(client.receives_nothing());
    }
}

#[test]
fn a_pull_gets_at_most_thirty_two_pieces() {
    let served = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let client = served.client();
    assert_eq!(client.range("/large", 0, u32::MAX, 1, 32), content(300_000)[..32]);
    assert_eq!(client.range("/large", 5, 300_000, 1152, 32), content(300_000)[5..5 + 32 * 1152]);
    assert_eq!(client.plain(Mode::Copy, "/a"), Ok(content(1)));
    assert!(client.receives_nothing());
}

#[test]
fn an_empty_range_carries_version_and_size() {
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
fn on_loopback_a_cookie_is_neither_required_nor_checked() {
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
    assert!(client.receives_nothing());
    // The client may have a reply that the server has not counted yet.
    let counts = std::iter::repeat_with(|| served.engine.snapshot().datagrams.unwrap())
        .find(|counts| counts.bytes_sent_total > 0)
        .unwrap();
    assert_eq!((counts.noise_received_total, counts.plain_received_total), (6, 1));
    assert_eq!((counts.reply_sent_total, counts.bytes_sent_total), (1, 10));
    assert_eq!(counts.bytes_received_total, 1 + 4 + 4 + 60_000 + 3 + 5);
}

#[test]
fn a_reply_comes_from_the_address_of_the_request() {
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
fn ipv6_is_served_alike() {
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
