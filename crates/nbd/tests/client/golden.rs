//! Whole conversations, byte for byte.

use export::Extent;
use nbd::client::{End, Headers, NotNow, Options, Purpose, Reason, Request, Start, Step};
use nbd::wire::errno;
use nbd::wire::option;
use nbd::wire::reply::DONE;
use nbd::wire::request::flags;

use crate::says::{self, ABLE, Form};
use crate::talk::{BYTES, Talk};

/// The bytes of an option.
fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn said(talk: &mut Talk) -> Vec<u8> {
    std::mem::take(&mut talk.said)
}

#[test]
fn a_whole_conversation_with_extended_headers() {
    let mut talk = Talk::new(Options::new("disk"));
    assert!(said(&mut talk).is_empty());
    talk.hear(b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(said(&mut talk), [&[0, 0, 0, 3][..], &option(11, &[])].concat());
    talk.hear(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0b\0\0\0\x01\0\0\0\0");
    assert_eq!(said(&mut talk), option(10, b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation"));
    talk.hear(
        b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x04\0\0\0\x13\0\0\0\x11base:allocation",
    );
    talk.hear(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x01\0\0\0\0");
    // GO, asking for block sizes, name and description.
    assert_eq!(said(&mut talk), option(7, b"\0\0\0\x04disk\0\x03\0\x03\0\x01\0\x02"));
    talk.hear(&says::export(option::GO, BYTES, ABLE));
    talk.hear(&says::blocks(option::GO, 512, 4096, 1 << 25));
    talk.hear(&says::replied(option::GO, option::REP_INFO, b"\0\x01disk"));
    talk.hear(&says::replied(option::GO, option::REP_INFO, b"\0\x02of \x1ba test"));
    talk.hear(&says::replied(option::GO, option::REP_INFO, b"\xff\xff what is this"));
    talk.hear(&says::ack(option::GO));
    let Some(Step::Opened(opened)) = talk.steps.pop() else { panic!("{:?}", talk.steps) };
    assert_eq!((opened.bytes, opened.minimum, opened.largest), (BYTES, 512, 32 << 20));
    assert_eq!((opened.name.as_str(), opened.description.as_str()), ("disk", "of a test"));
    assert_eq!((opened.headers, opened.extents), (Headers::Extended, true));
    // A write of 512 bytes at 1024, on stable storage.
    talk.client
        .submit(
            Request::Write {
                offset: 1024,
                buffer: std::rc::Rc::new(talk.buffer(1024)),
                start: 512,
                len: 512,
                durable: true,
            },
            1,
        )
        .unwrap();
    talk.drain();
    #[rustfmt::skip]
    let header: [u8; 32] = [
        0x21, 0xe4, 0x1c, 0x71,
        0x00, 0x21, // a payload of that length, FUA
        0x00, 0x01, // WRITE
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 4, 0,
        0, 0, 0, 0, 0, 0, 2, 0,
    ];
    assert_eq!(said(&mut talk), [&header[..], &[0; 512]].concat());
    talk.hear(&says::none(Form::Extended(1024), 0));
    assert_eq!(talk.done().result, Ok(()));
    talk.client.disconnect();
    talk.drain();
    assert_eq!(said(&mut talk)[..8], [0x21, 0xe4, 0x1c, 0x71, 0, 0, 0, 2]);
    assert!(matches!(talk.steps[..], [Step::Close(End::Finished)]));
}

#[test]
fn what_the_server_does_not_know_is_done_without() {
    let mut talk = Talk::new(Options::new(""));
    talk.hear(&says::hello_with_zeros());
    assert_eq!(said(&mut talk)[..4], [0, 0, 0, 1]);
    talk.hear(&says::replied(option::EXTENDED_HEADERS, option::ERR_UNSUP, b"what?"));
    assert_eq!(said(&mut talk), option(8, &[]));
    talk.hear(&says::replied(option::STRUCTURED_REPLY, option::ERR_UNSUP, &[]));
    assert_eq!(said(&mut talk), option(7, b"\0\0\0\0\0\x03\0\x03\0\x01\0\x02"));
    talk.hear(&says::replied(option::GO, option::ERR_UNSUP, &[]));
    assert_eq!(said(&mut talk), option(1, &[]));
    talk.hear(&[&BYTES.to_be_bytes()[..], &ABLE.to_be_bytes(), &[0; 124]].concat());
    let Some(Step::Opened(opened)) = talk.steps.pop() else { panic!("{:?}", talk.steps) };
    assert_eq!((opened.bytes, opened.headers, opened.extents), (BYTES, Headers::Simple, false));
    assert_eq!((opened.minimum, opened.largest), (1, 32 << 20));
    let cookie = talk.read(4096, 512);
    talk.hear(&says::simple(cookie, 0, &[5; 512]));
    assert_eq!(talk.done().buffer.unwrap().bytes(), [5; 512]);
}

#[test]
fn contexts_that_are_taken_back_do_not_hold() {
    let mut talk = Talk::new(Options { extended: false, ..Options::new("disk") });
    talk.hear(&says::hello());
    talk.hear(&says::ack(option::STRUCTURED_REPLY));
    talk.hear(&says::context());
    talk.hear(&says::replied(option::SET_META_CONTEXT, option::ERR_POLICY, &[]));
    talk.hear(&says::export(option::GO, BYTES, ABLE));
    talk.hear(&says::ack(option::GO));
    let Some(Step::Opened(opened)) = talk.steps.pop() else { panic!("{:?}", talk.steps) };
    assert!(!opened.extents);
    let request = Request::Extents { offset: 0, len: 4096 };
    assert!(matches!(talk.client.submit(request, 0), Err(NotNow::Impossible(_))));
}

#[test]
fn the_exports_are_listed() {
    let mut talk = Talk::new(Options::list());
    talk.hear(&says::hello());
    assert_eq!(said(&mut talk)[4..], option(3, &[]));
    talk.hear(&says::replied(option::LIST, option::SERVER, b"\0\0\0\x03sdaA \x07disk"));
    talk.hear(&says::replied(option::LIST, option::SERVER, b"\0\0\0\x03sdb"));
    talk.hear(&says::ack(option::LIST));
    assert_eq!(said(&mut talk), option(2, &[]));
    let [Step::Listed(listed), Step::Close(End::Finished)] = &talk.steps[..] else {
        panic!("{:?}", talk.steps)
    };
    let listed: Vec<_> =
        listed.iter().map(|one| (one.name.as_str(), one.description.as_str())).collect();
    assert_eq!(listed, [("sda", "A disk"), ("sdb", "")]);
}

#[test]
fn an_export_is_looked_at_without_using_it() {
    let options = Options {
        purpose: Purpose::Look,
        extended: false,
        structured: false,
        ..Options::new("sda")
    };
    let mut talk = Talk::new(options);
    talk.hear(&says::hello());
    talk.hear(&says::export(option::INFO, 4096, ABLE | flags::READ_ONLY));
    talk.hear(&says::ack(option::INFO));
    let [Step::Opened(opened), Step::Close(End::Finished)] = &talk.steps[..] else {
        panic!("{:?}", talk.steps)
    };
    assert_eq!((opened.bytes, opened.is_writable()), (4096, false));
    assert!(said(&mut talk).ends_with(&option(2, &[])));
}

#[test]
fn refusals_say_why_and_the_client_leaves() {
    let cases = [
        (option::ERR_UNKNOWN, Reason::Unknown),
        (option::ERR_TLS_REQD, Reason::TlsRequired),
        (option::ERR_POLICY, Reason::Policy),
        (option::ERR_SHUTDOWN, Reason::Shutdown),
        (option::ERR_TOO_BIG, Reason::Other(option::ERR_TOO_BIG)),
    ];
    for (error, reason) in cases {
        let mut talk =
            Talk::new(Options { extended: false, structured: false, ..Options::new("disk") });
        talk.hear(&says::hello());
        talk.hear(&says::replied(option::GO, error, b"go \x1baway"));
        let [Step::Refused(refusal), Step::Close(End::Finished)] = &talk.steps[..] else {
            panic!("{:?}", talk.steps)
        };
        assert_eq!((refusal.reason, refusal.message.as_str()), (reason, "go away"));
        assert!(said(&mut talk).ends_with(&option(2, &[])));
    }
}

#[test]
fn a_name_that_no_export_can_have_is_not_even_asked_for() {
    for name in ["a\0b", &"x".repeat(4097)] {
        let mut talk = Talk::new(Options::new(name));
        let [Step::Refused(refusal), Step::Close(_)] = &talk.steps[..] else {
            panic!("{:?}", talk.steps)
        };
        assert_eq!(refusal.reason, Reason::Name);
        talk.hear(&says::hello());
        assert!(talk.said.is_empty());
    }
}

#[test]
fn tls_comes_before_everything_else() {
    let mut talk = Talk::new(Options { start: Start::Secure, ..Options::new("disk") });
    talk.hear(&says::hello());
    assert_eq!(said(&mut talk)[4..], option(5, &[]));
    talk.hear(&says::ack(option::STARTTLS));
    assert!(matches!(talk.steps[..], [Step::Secure]));
    assert!(said(&mut talk).is_empty());
    talk.client.secured();
    talk.drain();
    assert_eq!(said(&mut talk), option(11, &[]));
    // Who begins in TLS says the same.
    let mut talk = Talk::new(Options { start: Start::Secured, ..Options::new("disk") });
    assert_eq!(said(&mut talk), option(11, &[]));
}

#[test]
fn without_tls_there_is_nothing_for_who_wants_it() {
    let mut talk = Talk::new(Options { start: Start::Secure, ..Options::new("disk") });
    talk.hear(&says::hello());
    talk.hear(&says::replied(option::STARTTLS, option::ERR_UNSUP, &[]));
    let [Step::Refused(refusal), Step::Close(End::Finished)] = &talk.steps[..] else {
        panic!("{:?}", talk.steps)
    };
    assert_eq!(refusal.reason, Reason::TlsUnavailable);
    assert!(said(&mut talk).ends_with(&option(2, &[])));
}

#[test]
fn requests_stand_on_the_wire_as_they_are_written() {
    let mut talk = Talk::live(Some(Form::Structured));
    let (offset, len) = (512, 1024);
    let durable = true;
    let requests = [
        (Request::Flush, 3, 0, 0, 0),
        (Request::Trim { offset, len, durable }, 4, 1, offset, len),
        (Request::Cache { offset, len }, 5, 0, offset, len),
        (
            Request::Zero { offset, len, no_hole: true, fast: true, durable: false },
            6,
            0x12,
            offset,
            len,
        ),
        (Request::Extents { offset, len }, 7, 0, offset, len),
    ];
    for (at, (request, command, flags, offset, len)) in (0_u64..).zip(requests) {
        talk.ask(request);
        let expected = [
            &[0x25, 0x60, 0x95, 0x13, 0, flags, 0, command][..],
            &at.to_be_bytes(),
            &offset.to_be_bytes(),
            &u32::try_from(len).unwrap().to_be_bytes(),
        ]
        .concat();
        assert_eq!(talk.said, expected, "{command}");
    }
}

#[test]
fn what_an_export_does_not_offer_or_have_is_not_asked() {
    let mut talk =
        Talk::new(Options { extended: false, structured: false, ..Options::new("disk") });
    talk.hear(&says::hello());
    talk.hear(&says::export(option::GO, BYTES, flags::HAS_FLAGS));
    talk.hear(&says::blocks(option::GO, 512, 4096, 8192));
    talk.hear(&says::ack(option::GO));
    let (offset, durable) = (0, false);
    let wrong = [
        Request::Flush,
        Request::Trim { offset, len: 512, durable },
        Request::Cache { offset, len: 512 },
        Request::Zero { offset, len: 512, no_hole: false, fast: false, durable },
        Request::Extents { offset, len: 512 },
        Request::Read { offset: 1, buffer: talk.buffer(512) },
        Request::Read { offset, buffer: talk.buffer(513) },
        Request::Read { offset, buffer: talk.buffer(8704) },
        Request::Read { offset: BYTES, buffer: talk.buffer(512) },
        Request::Read { offset: u64::MAX - 511, buffer: talk.buffer(1024) },
        Request::Read { offset, buffer: talk.buffer(0) },
    ];
    for request in wrong {
        let name = format!("{request:?}");
        assert!(matches!(talk.client.submit(request, 0), Err(NotNow::Impossible(_))), "{name}");
    }
    let right = Request::Read { offset: BYTES - 8192, buffer: talk.buffer(8192) };
    assert!(talk.client.submit(right, 0).is_ok());
}

#[test]
fn there_is_room_for_so_many_requests() {
    let mut talk = Talk::live(None);
    assert_eq!(talk.client.room(), 64);
    let cookies: Vec<u64> = (0..64).map(|at| talk.write(at * 512, 512)).collect();
    let request = Request::Flush;
    assert!(matches!(talk.client.submit(request, 0), Err(NotNow::Full(Request::Flush))));
    for cookie in cookies.into_iter().rev() {
        talk.hear(&says::simple(cookie, 0, &[]));
        assert_eq!(talk.done().result, Ok(()));
    }
    assert_eq!((talk.client.room(), talk.client.under_way()), (64, 0));
}

#[test]
fn chunks_come_in_any_order_and_make_a_whole() {
    for form in [Form::Structured, Form::Extended(8192)] {
        let mut talk = Talk::live(Some(form));
        let cookie = talk.read(8192, 4096);
        talk.hear(&says::data(form, 0, cookie, 8192 + 3072, &[3; 1024]));
        talk.hear(&says::hole(form, 0, cookie, 8192 + 1024, 2048));
        talk.hear(&says::data(form, DONE, cookie, 8192, &[1; 1024]));
        let done = talk.done();
        let expected = [vec![1; 1024], vec![0; 2048], vec![3; 1024]].concat();
        assert_eq!((done.tag, done.result), (7, Ok(())));
        assert_eq!(done.buffer.unwrap().bytes(), expected);
    }
}

#[test]
fn errors_are_told_with_their_place_and_do_not_end_the_connection() {
    for form in [Form::Structured, Form::Extended(0)] {
        let mut talk = Talk::live(Some(form));
        let cookie = talk.read(0, 4096);
        talk.hear(&says::data(form, 0, cookie, 0, &[1; 512]));
        talk.hear(&says::error(form, 0, cookie, errno::EIO, Some(512)));
        talk.hear(&says::none(form, cookie));
        let error = talk.done().result.unwrap_err();
        assert_eq!((error.errno, error.offset), (errno::EIO, Some(512)));
        let cookie = talk.write(0, 512);
        talk.hear(&says::error(form, DONE, cookie, errno::ENOSPC, None));
        let error = talk.done().result.unwrap_err();
        assert_eq!((error.errno, error.offset), (errno::ENOSPC, None));
        // An error of a kind that nobody knows is an error all the same.
        let cookie = talk.read(0, 512);
        let payload = [&errno::EINVAL.to_be_bytes()[..], &[0, 1, b'?'], &[9; 100]].concat();
        talk.hear(&says::chunk(form, 0x8123, DONE, cookie, &payload));
        assert_eq!(talk.done().result.unwrap_err().errno, errno::EINVAL);
    }
    let mut talk = Talk::live(None);
    let cookie = talk.read(0, 4096);
    talk.hear(&says::simple(cookie, errno::EPERM, &[]));
    assert_eq!(talk.done().result.unwrap_err().errno, errno::EPERM);
}

#[test]
fn extents_are_told_in_both_lengths() {
    for form in [Form::Structured, Form::Extended(4096)] {
        let mut talk = Talk::live(Some(form));
        let cookie = talk.ask(Request::Extents { offset: 4096, len: 65536 });
        let told = [(4096, 0), (512, 0), (8192, 3), (1 << 20, 2)];
        talk.hear(&says::status(form, DONE, cookie, &told));
        let zero = Extent { len: 65536 - 4608 - 8192, hole: false, zero: true };
        let expected = [Extent::data(4608), Extent::hole(8192), zero];
        assert_eq!(talk.done().extents, expected);
    }
}
