//! Servers that lie: each rule that one can break has a name, costs bounded memory, and ends the connection (X41).

use nbd::client::{NotNow, Options, Request, Start, Step, Violation};
use nbd::wire::errno::EIO;
use nbd::wire::option::{self, REP_INFO};
use nbd::wire::reply::{self, DONE};
use nbd::wire::request::flags;

use crate::says::{self, ABLE, Form};
use crate::talk::Talk;

fn plain() -> Options {
    Options { extended: false, structured: false, ..Options::new("disk") }
}

/// The rule that is broken when this is said to a client that has just connected.
fn said_first(bytes: &[u8]) -> Option<Violation> {
    let mut talk = Talk::new(plain());
    talk.hear(bytes);
    talk.violation()
}

/// The same to one that has asked for the export.
fn said_to_go(replies: &[Vec<u8>]) -> Option<Violation> {
    let mut talk = Talk::new(plain());
    talk.hear(&says::hello());
    replies.iter().for_each(|reply| talk.hear(reply));
    talk.violation()
}

#[test]
fn x41_what_is_no_nbd_is_told_by_name() {
    assert_eq!(said_first(b"HTTP/1.1 400 Bad Request"), Some(Violation::NotNbd));
    assert_eq!(said_first(b"HTTP/1.1"), Some(Violation::NotNbd));
    assert_eq!(said_first(b"NBDMAGICwhatever\0\0"), Some(Violation::NotNbd));
    let oldstyle = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0\0\0\0\0\0\0";
    assert_eq!(said_first(oldstyle), Some(Violation::Oldstyle));
    assert_eq!(said_first(b"NBDMAGICIHAVEOPT\0\x02"), Some(Violation::NotFixed));
}

/// X41; CVE-2023-5871.
#[test]
fn x41_an_export_that_cannot_be_is_refused() {
    let go = option::GO;
    let sizes = [1 << 63, u64::MAX, (1 << 63) + 1];
    for size in sizes {
        let violation = said_to_go(&[says::export(go, size, ABLE)]);
        assert_eq!(violation, Some(Violation::SizeImpossible), "{size:#x}");
    }
    assert_eq!(said_to_go(&[says::export(go, (1 << 63) - 1, ABLE), says::ack(go)]), None);
    let without = ABLE & !flags::HAS_FLAGS;
    assert_eq!(said_to_go(&[says::export(go, 512, without)]), Some(Violation::FlagsMissing));
    assert_eq!(said_to_go(&[says::ack(go)]), Some(Violation::ExportInfoMissing));
    let impossible = [(0, 512, 512), (3, 512, 512), (1 << 17, 1 << 17, 1 << 20), (512, 256, 4096)];
    for (minimum, preferred, maximum) in
        impossible.into_iter().chain([(1, 4096, 512), (1, 768, 768)])
    {
        let violation = said_to_go(&[says::blocks(go, minimum, preferred, maximum)]);
        assert_eq!(violation, Some(Violation::BlockSizesImpossible), "{minimum} {preferred}");
    }
    // The same by the option that has no error.
    let mut talk = Talk::new(plain());
    talk.hear(&says::hello());
    talk.hear(&says::replied(go, option::ERR_UNSUP, &[]));
    talk.hear(&[&u64::MAX.to_be_bytes()[..], &ABLE.to_be_bytes()].concat());
    assert_eq!(talk.violation(), Some(Violation::SizeImpossible));
}

#[test]
fn x41_replies_that_do_not_belong_to_the_option_end_it() {
    let go = option::GO;
    let huge = option::ReplyHeader::new(go, REP_INFO, u32::MAX);
    let huge = zerocopy::IntoBytes::as_bytes(&huge).to_vec();
    let cases: Vec<(Vec<u8>, Violation)> = vec![
        (vec![0; 20], Violation::ReplyMagicWrong),
        (says::ack(option::LIST), Violation::ReplyToOtherOption),
        (huge, Violation::ReplyTooLong),
        (says::replied(go, REP_INFO, &[0]), Violation::ReplyLengthWrong),
        (says::replied(go, REP_INFO, &[0; 13]), Violation::ReplyLengthWrong),
        (says::replied(go, REP_INFO, b"\0\x03abc"), Violation::ReplyLengthWrong),
        (says::replied(go, option::ACK, &[1]), Violation::ReplyLengthWrong),
        (says::replied(go, option::SERVER, b"\0\0\0\0"), Violation::ReplyUnexpected),
        (says::replied(go, 77, &[]), Violation::ReplyUnexpected),
        (says::replied(go, REP_INFO, b"\0\x01\xff\xfe"), Violation::TextWrong),
        (
            says::replied(go, REP_INFO, &[b"\0\x01", &[b'a'; 4097][..]].concat()),
            Violation::TextWrong,
        ),
    ];
    for (reply, violation) in cases {
        assert_eq!(said_to_go(&[reply]), Some(violation));
    }
}

#[test]
fn x41_endless_replies_and_lists_end() {
    let info = says::replied(option::GO, REP_INFO, b"\0\x02endless");
    assert_eq!(said_to_go(&vec![info; 100]), Some(Violation::RepliesEndless));
    let mut talk = Talk::new(Options::list());
    talk.hear(&says::hello());
    let entry = says::replied(option::LIST, option::SERVER, b"\0\0\0\x01a");
    (0..2000).for_each(|_| talk.hear(&entry));
    assert_eq!(talk.violation(), Some(Violation::RepliesEndless));
    let lies = says::replied(option::LIST, option::SERVER, b"\xff\xff\xff\xffa");
    let mut talk = Talk::new(Options::list());
    talk.hear(&says::hello());
    talk.hear(&lies);
    assert_eq!(talk.violation(), Some(Violation::TextWrong));
}

#[test]
fn x41_contexts_that_were_not_asked_for_or_come_twice_end_it() {
    let set = option::SET_META_CONTEXT;
    let other = says::replied(set, option::META_CONTEXT, b"\0\0\0\x01base:other");
    for (replies, violation) in [
        (vec![other], Violation::ContextUnknown),
        (vec![says::context(), says::context()], Violation::ContextRepeated),
    ] {
        let mut talk = Talk::new(Options { extended: false, ..Options::new("disk") });
        talk.hear(&says::hello());
        talk.hear(&says::ack(option::STRUCTURED_REPLY));
        replies.iter().for_each(|reply| talk.hear(reply));
        assert_eq!(talk.violation(), Some(violation));
    }
}

/// X03, X04: what comes behind the consent to TLS in the clear may come from anyone.
#[test]
fn x04_bytes_behind_the_consent_to_tls_end_it() {
    let secure = || Talk::new(Options { start: Start::Secure, ..Options::new("disk") });
    let mut talk = secure();
    talk.hear(&says::hello());
    talk.hear(&[says::ack(option::STARTTLS), says::ack(option::EXTENDED_HEADERS)].concat());
    assert_eq!(talk.violation(), Some(Violation::BytesBeforeSecured));
    let mut talk = secure();
    talk.hear(&says::hello());
    talk.hear(&says::ack(option::STARTTLS));
    talk.hear(&[0]);
    assert_eq!(talk.violation(), Some(Violation::BytesBeforeSecured));
    // An answer to what will be asked later is no answer now.
    let mut talk = secure();
    talk.hear(&[says::hello(), says::ack(option::EXTENDED_HEADERS)].concat());
    assert_eq!(talk.violation(), Some(Violation::ReplyToOtherOption));
    let mut talk = secure();
    talk.hear(&says::hello_with_zeros());
    assert_eq!(talk.violation(), Some(Violation::NoZeroesMissing));
}

/// The rule that is broken by these answers to a read of 4096 bytes at 8192.
fn answered(form: Option<Form>, answer: impl Fn(u64) -> Vec<u8>) -> Option<Violation> {
    let mut talk = Talk::live(form);
    let cookie = talk.read(8192, 4096);
    talk.hear(&answer(cookie));
    assert_eq!(talk.violation().is_some(), talk.client.room() == 0);
    talk.violation()
}

#[test]
fn x41_replies_to_nothing_or_twice_end_it() {
    let structured = Some(Form::Structured);
    let twice = |cookie| [says::simple(cookie, EIO, &[]), says::simple(cookie, EIO, &[])].concat();
    assert_eq!(answered(None, twice), Some(Violation::CookieUnknown));
    let other = |cookie: u64| says::simple(cookie ^ 1, 0, &[]);
    assert_eq!(answered(None, other), Some(Violation::CookieUnknown));
    assert_eq!(
        answered(None, |cookie| says::none(Form::Structured, cookie)),
        Some(Violation::HeaderMagicWrong)
    );
    assert_eq!(answered(structured, |_| vec![0; 20]), Some(Violation::HeaderMagicWrong));
    assert_eq!(
        answered(structured, |cookie| says::simple(cookie, EIO, &[])),
        Some(Violation::SimpleForRead)
    );
    let extended = Some(Form::Extended(8192));
    for wrong in [says::simple, |cookie, _, _| says::none(Form::Structured, cookie)]
        as [fn(u64, u32, &[u8]) -> Vec<u8>; 2]
    {
        assert_eq!(
            answered(extended, |cookie| [wrong(cookie, EIO, &[]), vec![0; 32]].concat()),
            Some(Violation::HeaderMagicWrong)
        );
    }
    assert_eq!(
        answered(extended, |cookie| says::none(Form::Extended(0), cookie)),
        Some(Violation::OffsetWrong)
    );
}

/// X41: a read is covered exactly once, or has failed.
#[test]
fn x41_content_is_what_was_asked_for_once_and_all_of_it() {
    for form in [Form::Structured, Form::Extended(8192)] {
        let data = |flags, offset, len| {
            move |cookie| says::data(form, flags, cookie, offset, &vec![1; len])
        };
        let cases: [(u64, usize); 6] =
            [(8191, 1), (8191, 4096), (12288, 1), (8193, 4096), (0, 4096), (u64::MAX, 4096)];
        for (offset, len) in cases {
            let violation = answered(Some(form), data(DONE, offset, len));
            assert_eq!(violation, Some(Violation::ContentBeyondRequest), "{offset} {len}");
        }
        let holes = [(8192, 4097), (8192, u32::MAX), (8192, 0), (u64::MAX, 1), (4096, 512)];
        for (offset, len) in holes {
            let violation =
                answered(Some(form), |cookie| says::hole(form, DONE, cookie, offset, len));
            assert_eq!(violation, Some(Violation::ContentBeyondRequest), "{offset} {len}");
        }
        let short = answered(Some(form), data(DONE, 8192, 4095));
        assert_eq!(short, Some(Violation::ContentMissing));
        let nothing = answered(Some(form), |cookie| says::none(form, cookie));
        assert_eq!(nothing, Some(Violation::ContentMissing));
        let twice = answered(Some(form), |cookie| {
            let first = says::data(form, 0, cookie, 8192, &[1; 4096]);
            [first, says::hole(form, DONE, cookie, 12287, 1)].concat()
        });
        assert_eq!(twice, Some(Violation::ContentRepeated));
        let scattered = answered(Some(form), |cookie| {
            let byte = |at: u64| says::data(form, 0, cookie, 8192 + at * 2, &[1]);
            (0..300).flat_map(byte).collect()
        });
        assert_eq!(scattered, Some(Violation::ContentScattered));
    }
}

#[test]
fn x41_chunks_of_the_wrong_length_or_kind_end_it() {
    for form in [Form::Structured, Form::Extended(8192)] {
        let chunk = |kind, flags, len| {
            answered(Some(form), |cookie| says::chunk(form, kind, flags, cookie, &vec![0; len]))
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
    // A length beyond 32 bits is not waited for.
    let header = reply::ExtendedChunk::new(reply::OFFSET_DATA, DONE, 0, 8192, u64::MAX);
    let header = zerocopy::IntoBytes::as_bytes(&header).to_vec();
    let place = 8192_u64.to_be_bytes();
    let violation = answered(Some(Form::Extended(8192)), |_| [&header[..], &place].concat());
    assert_eq!(violation, Some(Violation::ContentBeyondRequest));
}

#[test]
fn x41_errors_lie_in_the_request_and_are_not_endless() {
    for form in [Form::Structured, Form::Extended(8192)] {
        for at in [0, 8191, 12288, u64::MAX] {
            let violation =
                answered(Some(form), |cookie| says::error(form, DONE, cookie, EIO, Some(at)));
            assert_eq!(violation, Some(Violation::ErrorBeyondRequest), "{at}");
        }
        let endless = answered(Some(form), |cookie| {
            (0..100).flat_map(|_| says::error(form, 0, cookie, EIO, Some(8192))).collect()
        });
        assert_eq!(endless, Some(Violation::ErrorsEndless));
        // A message that is longer than its chunk.
        let long = answered(Some(form), |cookie| {
            says::chunk(form, reply::ERROR, DONE, cookie, b"\0\0\0\x05\0\x04abc")
        });
        assert_eq!(long, Some(Violation::ChunkLengthWrong));
    }
}

/// X26, X41: huge, empty, foreign and endless extents.
#[test]
fn x26_extents_are_those_that_were_asked_for() {
    let told = |form, answer: &dyn Fn(u64) -> Vec<u8>| {
        let mut talk = Talk::live(Some(form));
        let cookie = talk.ask(Request::Extents { offset: 8192, len: 4096 });
        talk.hear(&answer(cookie));
        (talk.violation(), talk)
    };
    for form in [Form::Structured, Form::Extended(8192)] {
        let status = |list: &'static [(u64, u32)]| {
            told(form, &move |cookie| says::status(form, DONE, cookie, list)).0
        };
        assert_eq!(status(&[(0, 0)]), Some(Violation::ExtentEmpty));
        assert_eq!(status(&[(4096, 0), (1, 0)]), Some(Violation::ExtentBeyondRequest));
        let (violation, mut talk) =
            told(form, &|cookie| says::status(form, DONE, cookie, &[(u32::MAX.into(), 0)]));
        assert_eq!((violation, talk.done().extents[0].len), (None, 4096));
        let twice = told(form, &|cookie| {
            let one = says::status(form, 0, cookie, &[(512, 0)]);
            [one.clone(), one].concat()
        });
        assert_eq!(twice.0, Some(Violation::ExtentsRepeated));
        let none = told(form, &|cookie| says::none(form, cookie));
        assert_eq!(none.0, Some(Violation::ExtentsMissing));
        let (kind, head): (_, &[u8]) = match form {
            Form::Structured => (reply::BLOCK_STATUS, &[0, 0, 0, 9]),
            Form::Extended(_) => (reply::BLOCK_STATUS_EXT, &[0, 0, 0, 9, 0, 0, 0, 1]),
        };
        let chunk = |len: usize| {
            let payload = [head, &vec![1; len]].concat();
            told(form, &|cookie| says::chunk(form, kind, DONE, cookie, &payload)).0
        };
        assert_eq!(chunk(16), Some(Violation::ContextUnknown));
        assert_eq!(chunk(0), Some(Violation::ChunkLengthWrong));
        assert_eq!(chunk(15), Some(Violation::ChunkLengthWrong));
        assert_eq!(chunk(32 << 20), Some(Violation::ExtentsEndless));
    }
    let wrong = told(Form::Extended(8192), &|cookie| {
        let payload = [0, 0, 0, 17, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        says::chunk(Form::Extended(8192), reply::BLOCK_STATUS_EXT, DONE, cookie, &payload)
    });
    assert_eq!(wrong.0, Some(Violation::ChunkLengthWrong));
    let form = Form::Extended(8192);
    let huge = told(form, &|cookie| says::status(form, DONE, cookie, &[(u64::MAX, 0)]));
    assert_eq!(huge.0, None);
    // A simple reply is no answer to the question.
    let simple = told(Form::Structured, &|cookie| says::simple(cookie, 0, &[]));
    assert_eq!(simple.0, Some(Violation::ExtentsMissing));
}

#[test]
fn content_for_what_is_no_read_ends_it() {
    for form in [Form::Structured, Form::Extended(0)] {
        let mut talk = Talk::live(Some(form));
        let cookie = talk.write(0, 512);
        talk.hear(&says::data(form, DONE, cookie, 0, &[1; 512]));
        assert_eq!(talk.violation(), Some(Violation::ChunkUnexpected));
    }
}

#[test]
fn nothing_comes_after_the_end() {
    let mut talk = Talk::live(None);
    talk.hear(b"what is this supposed to be");
    assert!(matches!(talk.steps[..], [Step::Close(_)]));
    talk.hear(&says::hello());
    talk.client.disconnect();
    talk.drain();
    assert_eq!(talk.steps.len(), 1);
    assert!(talk.said.is_empty());
    assert!(matches!(talk.client.submit(Request::Flush, 0), Err(NotNow::NotOpen(_))));
    assert_eq!(talk.client.room(), 0);
}
