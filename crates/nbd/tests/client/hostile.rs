//! Malicious servers: each violation has a name, uses bounded memory and closes the connection
//! (X41).

use nbd::client::{Options, Request, Start, Step, SubmitError, Violation};
use nbd::wire::errno::EIO;
use nbd::wire::option::{self, REP_INFO};
use nbd::wire::reply::{self, DONE};
use nbd::wire::request::flags;

use crate::messages::{self, ALL_FLAGS, Form};
use crate::script::Scripted;

fn plain() -> Options {
    Options { extended: false, structured: false, ..Options::new("disk") }
}

/// Returns the violation if a server sends this first.
fn violation_of_hello(bytes: &[u8]) -> Option<Violation> {
    let mut script = Scripted::new(plain());
    script.deliver(bytes);
    script.violation()
}

/// Returns the violation if a server sends this in reply to GO.
fn violation_of_go(replies: &[Vec<u8>]) -> Option<Violation> {
    let mut script = Scripted::new(plain());
    script.deliver(&messages::hello());
    replies.iter().for_each(|reply| script.deliver(reply));
    script.violation()
}

#[test]
fn x41_other_protocols_are_detected() {
    assert_eq!(violation_of_hello(b"HTTP/1.1 400 Bad Request"), Some(Violation::NotNbd));
    assert_eq!(violation_of_hello(b"HTTP/1.1"), Some(Violation::NotNbd));
    assert_eq!(violation_of_hello(b"NBDMAGICwhatever\0\0"), Some(Violation::NotNbd));
    let oldstyle = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0\0\0\0\0\0\0";
    assert_eq!(violation_of_hello(oldstyle), Some(Violation::Oldstyle));
    assert_eq!(violation_of_hello(b"NBDMAGICIHAVEOPT\0\x02"), Some(Violation::NotFixedNewstyle));
}

/// X41; CVE-2023-5871.
#[test]
fn x41_impossible_export_info_is_refused() {
    let go = option::GO;
    let sizes = [1 << 63, u64::MAX, (1 << 63) + 1];
    for size in sizes {
        let violation = violation_of_go(&[messages::export(go, size, ALL_FLAGS)]);
        assert_eq!(violation, Some(Violation::SizeImpossible), "{size:#x}");
    }
    assert_eq!(
        violation_of_go(&[messages::export(go, (1 << 63) - 1, ALL_FLAGS), messages::ack(go)]),
        None
    );
    let without = ALL_FLAGS & !flags::HAS_FLAGS;
    assert_eq!(
        violation_of_go(&[messages::export(go, 512, without)]),
        Some(Violation::FlagsMissing)
    );
    assert_eq!(violation_of_go(&[messages::ack(go)]), Some(Violation::ExportInfoMissing));
    let impossible = [(0, 512, 512), (3, 512, 512), (1 << 17, 1 << 17, 1 << 20), (512, 256, 4096)];
    for (minimum, preferred, maximum) in
        impossible.into_iter().chain([(1, 4096, 512), (1, 768, 768)])
    {
        let violation = violation_of_go(&[messages::blocks(go, minimum, preferred, maximum)]);
        assert_eq!(violation, Some(Violation::BlockSizesImpossible), "{minimum} {preferred}");
    }
    // The same in reply to EXPORT_NAME.
    let mut script = Scripted::new(plain());
    script.deliver(&messages::hello());
    script.deliver(&messages::option_reply(go, option::ERR_UNSUP, &[]));
    script.deliver(&[&u64::MAX.to_be_bytes()[..], &ALL_FLAGS.to_be_bytes()].concat());
    assert_eq!(script.violation(), Some(Violation::SizeImpossible));
}

#[test]
fn x41_mismatched_option_replies_close() {
    let go = option::GO;
    let huge = option::ReplyHeader::new(go, REP_INFO, u32::MAX);
    let huge = zerocopy::IntoBytes::as_bytes(&huge).to_vec();
    let cases: Vec<(Vec<u8>, Violation)> = vec![
        (vec![0; 20], Violation::ReplyMagicWrong),
        (messages::ack(option::LIST), Violation::ReplyToOtherOption),
        (huge, Violation::ReplyTooLong),
        (messages::option_reply(go, REP_INFO, &[0]), Violation::ReplyLengthWrong),
        (messages::option_reply(go, REP_INFO, &[0; 13]), Violation::ReplyLengthWrong),
        (messages::option_reply(go, REP_INFO, b"\0\x03abc"), Violation::ReplyLengthWrong),
        (messages::option_reply(go, option::ACK, &[1]), Violation::ReplyLengthWrong),
        (messages::option_reply(go, option::SERVER, b"\0\0\0\0"), Violation::ReplyUnexpected),
        (messages::option_reply(go, 77, &[]), Violation::ReplyUnexpected),
        (messages::option_reply(go, REP_INFO, b"\0\x01\xff\xfe"), Violation::TextWrong),
        (
            messages::option_reply(go, REP_INFO, &[b"\0\x01", &[b'a'; 4097][..]].concat()),
            Violation::TextWrong,
        ),
    ];
    for (reply, violation) in cases {
        assert_eq!(violation_of_go(&[reply]), Some(violation));
    }
}

#[test]
fn x41_endless_option_replies_close() {
    let info = messages::option_reply(option::GO, REP_INFO, b"\0\x02endless");
    assert_eq!(violation_of_go(&vec![info; 100]), Some(Violation::TooManyReplies));
    let mut script = Scripted::new(Options::list());
    script.deliver(&messages::hello());
    let entry = messages::option_reply(option::LIST, option::SERVER, b"\0\0\0\x01a");
    (0..2000).for_each(|_| script.deliver(&entry));
    assert_eq!(script.violation(), Some(Violation::TooManyReplies));
    let lies = messages::option_reply(option::LIST, option::SERVER, b"\xff\xff\xff\xffa");
    let mut script = Scripted::new(Options::list());
    script.deliver(&messages::hello());
    script.deliver(&lies);
    assert_eq!(script.violation(), Some(Violation::TextWrong));
}

#[test]
fn x41_unrequested_or_repeated_contexts_close() {
    let set = option::SET_META_CONTEXT;
    let other = messages::option_reply(set, option::META_CONTEXT, b"\0\0\0\x01base:other");
    for (replies, violation) in [
        (vec![other], Violation::ContextUnknown),
        (vec![messages::context(), messages::context()], Violation::ContextRepeated),
    ] {
        let mut script = Scripted::new(Options { extended: false, ..Options::new("disk") });
        script.deliver(&messages::hello());
        script.deliver(&messages::ack(option::STRUCTURED_REPLY));
        replies.iter().for_each(|reply| script.deliver(reply));
        assert_eq!(script.violation(), Some(violation));
    }
}

/// X03, X04: cleartext after the STARTTLS reply may be injected by an attacker.
#[test]
fn x04_cleartext_after_starttls_reply_closes() {
    let secure = || Scripted::new(Options { start: Start::StartTls, ..Options::new("disk") });
    let mut script = secure();
    script.deliver(&messages::hello());
    script.deliver(
        &[messages::ack(option::STARTTLS), messages::ack(option::EXTENDED_HEADERS)].concat(),
    );
    assert_eq!(script.violation(), Some(Violation::BytesBeforeTls));
    let mut script = secure();
    script.deliver(&messages::hello());
    script.deliver(&messages::ack(option::STARTTLS));
    script.deliver(&[0]);
    assert_eq!(script.violation(), Some(Violation::BytesBeforeTls));
    // A reply to an option not sent yet.
    let mut script = secure();
    script.deliver(&[messages::hello(), messages::ack(option::EXTENDED_HEADERS)].concat());
    assert_eq!(script.violation(), Some(Violation::ReplyToOtherOption));
    let mut script = secure();
    script.deliver(&messages::hello_with_zeros());
    assert_eq!(script.violation(), Some(Violation::NoZeroesMissing));
}

/// Returns the violation if a server sends this in reply to a read of 4096 bytes at 8192.
fn violation_of_read(form: Option<Form>, reply: impl Fn(u64) -> Vec<u8>) -> Option<Violation> {
    let mut script = Scripted::in_transmission(form);
    let cookie = script.read(8192, 4096);
    script.deliver(&reply(cookie));
    assert_eq!(script.violation().is_some(), script.client.free_slots() == 0);
    script.violation()
}

#[test]
fn x41_unknown_and_duplicate_cookies_close() {
    let structured = Some(Form::Structured);
    let twice =
        |cookie| [messages::simple(cookie, EIO, &[]), messages::simple(cookie, EIO, &[])].concat();
    assert_eq!(violation_of_read(None, twice), Some(Violation::CookieUnknown));
    let other = |cookie: u64| messages::simple(cookie ^ 1, 0, &[]);
    assert_eq!(violation_of_read(None, other), Some(Violation::CookieUnknown));
    assert_eq!(
        violation_of_read(None, |cookie| messages::empty_reply(Form::Structured, cookie)),
        Some(Violation::HeaderMagicWrong)
    );
    assert_eq!(violation_of_read(structured, |_| vec![0; 20]), Some(Violation::HeaderMagicWrong));
    assert_eq!(
        violation_of_read(structured, |cookie| messages::simple(cookie, EIO, &[])),
        Some(Violation::SimpleForRead)
    );
    let extended = Some(Form::Extended(8192));
    for wrong in [messages::simple, |cookie, _, _| messages::empty_reply(Form::Structured, cookie)]
        as [fn(u64, u32, &[u8]) -> Vec<u8>; 2]
    {
        assert_eq!(
            violation_of_read(extended, |cookie| [wrong(cookie, EIO, &[]), vec![0; 32]].concat()),
            Some(Violation::HeaderMagicWrong)
        );
    }
    assert_eq!(
        violation_of_read(extended, |cookie| messages::empty_reply(Form::Extended(0), cookie)),
        Some(Violation::OffsetWrong)
    );
}

/// X41: each byte of a successful read arrives exactly once.
#[test]
fn x41_wrong_repeated_or_missing_data_closes() {
    for form in [Form::Structured, Form::Extended(8192)] {
        let data = |flags, offset, len| {
            move |cookie| messages::data(form, flags, cookie, offset, &vec![1; len])
        };
        let cases: [(u64, usize); 6] =
            [(8191, 1), (8191, 4096), (12288, 1), (8193, 4096), (0, 4096), (u64::MAX, 4096)];
        for (offset, len) in cases {
            let violation = violation_of_read(Some(form), data(DONE, offset, len));
            assert_eq!(violation, Some(Violation::ContentBeyondRequest), "{offset} {len}");
        }
        let holes = [(8192, 4097), (8192, u32::MAX), (8192, 0), (u64::MAX, 1), (4096, 512)];
        for (offset, len) in holes {
            let violation = violation_of_read(Some(form), |cookie| {
                messages::hole(form, DONE, cookie, offset, len)
            });
            assert_eq!(violation, Some(Violation::ContentBeyondRequest), "{offset} {len}");
        }
        let short = violation_of_read(Some(form), data(DONE, 8192, 4095));
        assert_eq!(short, Some(Violation::ContentMissing));
        let nothing = violation_of_read(Some(form), |cookie| messages::empty_reply(form, cookie));
        assert_eq!(nothing, Some(Violation::ContentMissing));
        let twice = violation_of_read(Some(form), |cookie| {
            let first = messages::data(form, 0, cookie, 8192, &[1; 4096]);
            [first, messages::hole(form, DONE, cookie, 12287, 1)].concat()
        });
        assert_eq!(twice, Some(Violation::ContentRepeated));
        let scattered = violation_of_read(Some(form), |cookie| {
            let byte = |at: u64| messages::data(form, 0, cookie, 8192 + at * 2, &[1]);
            (0..300).flat_map(byte).collect()
        });
        assert_eq!(scattered, Some(Violation::TooManyFragments));
    }
}

#[test]
fn x41_chunks_of_wrong_length_or_type_close() {
    for form in [Form::Structured, Form::Extended(8192)] {
        let chunk = |kind, flags, len| {
            violation_of_read(Some(form), |cookie| {
                messages::chunk(form, kind, flags, cookie, &vec![0; len])
            })
        };
        for (kind, len) in [
            (reply::NONE, 1),
            (reply::OFFSET_DATA, 0),
            (reply::OFFSET_DATA, 8),
            (reply::OFFSET_HOLE, 11),
            (reply::OFFSET_HOLE, 13),
            (reply::ERROR, 5),
            (reply::ERROR_OFFSET, 13),
            (reply::ERROR, 100_000),
            (0x8777, 1 << 20),
        ] {
            assert_eq!(chunk(kind, DONE, len), Some(Violation::ChunkLengthWrong), "{kind} {len}");
        }
        assert_eq!(chunk(reply::NONE, 0, 0), Some(Violation::DoneMissing));
        assert_eq!(chunk(3, DONE, 8), Some(Violation::ChunkTypeUnknown));
        assert_eq!(chunk(reply::BLOCK_STATUS, DONE, 12), Some(Violation::ChunkUnexpected));
        assert_eq!(chunk(reply::ERROR, DONE, 6), Some(Violation::ErrorZero));
    }
    // A length beyond 32 bits is refused before its data arrive.
    let header = reply::ExtendedChunk::new(reply::OFFSET_DATA, DONE, 0, 8192, u64::MAX);
    let header = zerocopy::IntoBytes::as_bytes(&header).to_vec();
    let place = 8192_u64.to_be_bytes();
    let violation =
        violation_of_read(Some(Form::Extended(8192)), |_| [&header[..], &place].concat());
    assert_eq!(violation, Some(Violation::ContentBeyondRequest));
}

#[test]
fn x41_error_offsets_and_counts_are_bounded() {
    for form in [Form::Structured, Form::Extended(8192)] {
        for at in [0, 8191, 12288, u64::MAX] {
            let violation = violation_of_read(Some(form), |cookie| {
                messages::error(form, DONE, cookie, EIO, Some(at))
            });
            assert_eq!(violation, Some(Violation::ErrorBeyondRequest), "{at}");
        }
        let endless = violation_of_read(Some(form), |cookie| {
            (0..100).flat_map(|_| messages::error(form, 0, cookie, EIO, Some(8192))).collect()
        });
        assert_eq!(endless, Some(Violation::TooManyErrors));
        // A message longer than its chunk.
        let long = violation_of_read(Some(form), |cookie| {
            messages::chunk(form, reply::ERROR, DONE, cookie, b"\0\0\0\x05\0\x04abc")
        });
        assert_eq!(long, Some(Violation::ChunkLengthWrong));
    }
}

/// X26, X41: huge, empty, unrequested and too many extents.
#[test]
fn x26_invalid_extents_close() {
    let after_status_request = |form, reply: &dyn Fn(u64) -> Vec<u8>| {
        let mut script = Scripted::in_transmission(Some(form));
        let cookie = script.submit(Request::Extents { offset: 8192, len: 4096 });
        script.deliver(&reply(cookie));
        (script.violation(), script)
    };
    for form in [Form::Structured, Form::Extended(8192)] {
        let status = |list: &'static [(u64, u32)]| {
            after_status_request(form, &move |cookie| {
                messages::block_status(form, DONE, cookie, list)
            })
            .0
        };
        assert_eq!(status(&[(0, 0)]), Some(Violation::ExtentEmpty));
        assert_eq!(status(&[(4096, 0), (1, 0)]), Some(Violation::ExtentBeyondRequest));
        let (violation, mut script) = after_status_request(form, &|cookie| {
            messages::block_status(form, DONE, cookie, &[(u32::MAX.into(), 0)])
        });
        assert_eq!((violation, script.done().extents[0].len), (None, 4096));
        let twice = after_status_request(form, &|cookie| {
            let one = messages::block_status(form, 0, cookie, &[(512, 0)]);
            [one.clone(), one].concat()
        });
        assert_eq!(twice.0, Some(Violation::ExtentsRepeated));
        let none = after_status_request(form, &|cookie| messages::empty_reply(form, cookie));
        assert_eq!(none.0, Some(Violation::ExtentsMissing));
        let (kind, head): (_, &[u8]) = match form {
            Form::Structured => (reply::BLOCK_STATUS, &[0, 0, 0, 9]),
            Form::Extended(_) => (reply::BLOCK_STATUS_EXT, &[0, 0, 0, 9, 0, 0, 0, 1]),
        };
        let chunk = |len: usize| {
            let payload = [head, &vec![1; len]].concat();
            after_status_request(form, &|cookie| {
                messages::chunk(form, kind, DONE, cookie, &payload)
            })
            .0
        };
        assert_eq!(chunk(16), Some(Violation::ContextUnknown));
        assert_eq!(chunk(0), Some(Violation::ChunkLengthWrong));
        assert_eq!(chunk(15), Some(Violation::ChunkLengthWrong));
        assert_eq!(chunk(32 << 20), Some(Violation::TooManyExtents));
    }
    let wrong = after_status_request(Form::Extended(8192), &|cookie| {
        let payload = [0, 0, 0, 17, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        messages::chunk(Form::Extended(8192), reply::BLOCK_STATUS_EXT, DONE, cookie, &payload)
    });
    assert_eq!(wrong.0, Some(Violation::ChunkLengthWrong));
    let form = Form::Extended(8192);
    let huge = after_status_request(form, &|cookie| {
        messages::block_status(form, DONE, cookie, &[(u64::MAX, 0)])
    });
    assert_eq!(huge.0, None);
    // A simple reply carries no extents.
    let simple = after_status_request(Form::Structured, &|cookie| messages::simple(cookie, 0, &[]));
    assert_eq!(simple.0, Some(Violation::ExtentsMissing));
}

#[test]
fn data_in_reply_to_a_write_closes() {
    for form in [Form::Structured, Form::Extended(0)] {
        let mut script = Scripted::in_transmission(Some(form));
        let cookie = script.write(0, 512);
        script.deliver(&messages::data(form, DONE, cookie, 0, &[1; 512]));
        assert_eq!(script.violation(), Some(Violation::ChunkUnexpected));
    }
}

#[test]
fn closed_client_ignores_input() {
    let mut script = Scripted::in_transmission(None);
    script.deliver(b"not a reply of any kind either");
    assert!(matches!(script.steps[..], [Step::Close(_)]));
    script.deliver(&messages::hello());
    script.client.disconnect();
    script.drain();
    assert_eq!(script.steps.len(), 1);
    assert!(script.sent.is_empty());
    assert!(matches!(script.client.submit(Request::Flush, 0), Err(SubmitError::NotOpen(_))));
    assert_eq!(script.client.free_slots(), 0);
}
