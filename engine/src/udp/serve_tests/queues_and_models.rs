//! Counts, storage threads, full queues, and the change and end of models.

use super::*;
use crate::udp::codec::DATA_HEAD;

#[test]
fn every_reply_is_counted_once() {
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
fn reads_that_may_block_run_on_the_storage_pool() {
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
fn a_full_queue_refuses_and_every_request_gets_a_reply() {
    for model in [Model::ThreadPool, Model::WorkStealing] {
        let served = serving(model, "127.0.0.1:0", |settings| {
            settings.max_queue_depth = 1;
            settings.pool_size = 1;
        });
        let client = served.client();
        let (mut served_well, mut refused) = (0, 0);
        while refused == 0 {
            for _ in 0..100 {
                client.send_plain(Mode::Copy, "/small");
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
fn requests_that_wait_for_storage_are_bounded_and_get_a_reply() {
    for model in MODELS {
        let served = serving(model, "127.0.0.1:0", |settings| {
            settings.async_storage = true;
            settings.max_queue_depth = 1;
            settings.storage_pool_size = 1;
        });
        let client = served.client();
        let (mut requested, mut refused) = (0, 0);
        while refused == 0 {
            for _ in 0..100 {
                // A name that the kernel has never looked up.
                client.send_plain(Mode::Copy, &format!("/missing-{requested}"));
                requested += 1;
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
fn the_model_changes_while_datagrams_arrive() {
    let served = serving(Model::Epoll, "127.0.0.1:0", |_| {});
    let client = served.client();
    for round in 0..60 {
        for _ in 0..20 {
            client.send_plain(Mode::Copy, "/a");
        }
        assert!(served.engine.set_concurrency(Transport::Udp, MODELS[round % 3]).unwrap());
        for _ in 0..20 {
            assert_eq!(read_plain(&client.receive()), Ok(content(1)));
        }
    }
    assert!(client.receives_nothing());
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
fn a_drain_answers_received_datagrams_and_ends() {
    for model in MODELS {
        let served = serving(model, "127.0.0.1:0", |_| {});
        let client = served.client();
        for _ in 0..200 {
            client.send_plain(Mode::Copy, "/a");
        }
        assert!(served.engine.drain(Duration::from_secs(20)), "{model:?}");
        for _ in 0..200 {
            assert_eq!(read_plain(&client.receive()), Ok(content(1)));
        }
        client.send_plain(Mode::Copy, "/a");
        assert!(client.receives_nothing());
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
