//! Golden bytes of whole connections.

use export::Extent;
use nbd::client::{End, Headers, Options, Purpose, Reason, Request, Start, Step, SubmitError};
use nbd::wire::errno;
use nbd::wire::option;
use nbd::wire::reply::DONE;
use nbd::wire::request::flags;

use crate::messages::{self, ALL_FLAGS, Form};
use crate::script::{BYTES, Scripted};

/// Encodes an option.
fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn sent(script: &mut Scripted) -> Vec<u8> {
    std::mem::take(&mut script.sent)
}

#[test]
fn golden_connection_with_extended_headers() {
    let mut script = Scripted::new(Options::new("disk"));
    assert!(sent(&mut script).is_empty());
    script.deliver(b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(sent(&mut script), [&[0, 0, 0, 3][..], &option(11, &[])].concat());
    script.deliver(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0b\0\0\0\x01\0\0\0\0");
    assert_eq!(sent(&mut script), option(10, b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation"));
    script.deliver(
        b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x04\0\0\0\x13\0\0\0\x11base:allocation",
    );
    script.deliver(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x01\0\0\0\0");
    // GO with requests for block sizes, name and description.
    assert_eq!(sent(&mut script), option(7, b"\0\0\0\x04disk\0\x03\0\x03\0\x01\0\x02"));
    script.deliver(&messages::export(option::GO, BYTES, ALL_FLAGS));
    script.deliver(&messages::blocks(option::GO, 512, 4096, 1 << 25));
    script.deliver(&messages::option_reply(option::GO, option::REP_INFO, b"\0\x01disk"));
    script.deliver(&messages::option_reply(option::GO, option::REP_INFO, b"\0\x02of \x1ba test"));
    script.deliver(&messages::option_reply(option::GO, option::REP_INFO, b"\xff\xff what is this"));
    script.deliver(&messages::ack(option::GO));
    let Some(Step::Opened(info)) = script.steps.pop() else { panic!("{:?}", script.steps) };
    assert_eq!((info.bytes, info.minimum, info.maximum), (BYTES, 512, 32 << 20));
    assert_eq!((info.name.as_str(), info.description.as_str()), ("disk", "of a test"));
    assert_eq!((info.headers, info.extents), (Headers::Extended, true));
    // A write of 512 bytes at 1024 with FUA.
    script
        .client
        .submit(
            Request::Write {
                offset: 1024,
                buffer: std::rc::Rc::new(script.buffer(1024)),
                start: 512,
                len: 512,
                durable: true,
            },
            1,
        )
        .unwrap();
    script.drain();
    #[rustfmt::skip]
    let header: [u8; 32] = [
        0x21, 0xe4, 0x1c, 0x71,
        0x00, 0x21, // a payload of that length, FUA
        0x00, 0x01, // WRITE
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 4, 0,
        0, 0, 0, 0, 0, 0, 2, 0,
    ];
    assert_eq!(sent(&mut script), [&header[..], &[0; 512]].concat());
    script.deliver(&messages::empty_reply(Form::Extended(1024), 0));
    assert_eq!(script.done().result, Ok(()));
    script.client.disconnect();
    script.drain();
    assert_eq!(sent(&mut script)[..8], [0x21, 0xe4, 0x1c, 0x71, 0, 0, 0, 2]);
    assert!(matches!(script.steps[..], [Step::Close(End::Finished)]));
}

#[test]
fn unsupported_options_fall_back_to_older_ones() {
    let mut script = Scripted::new(Options::new(""));
    script.deliver(&messages::hello_with_zeros());
    assert_eq!(sent(&mut script)[..4], [0, 0, 0, 1]);
    script.deliver(&messages::option_reply(option::EXTENDED_HEADERS, option::ERR_UNSUP, b"what?"));
    assert_eq!(sent(&mut script), option(8, &[]));
    script.deliver(&messages::option_reply(option::STRUCTURED_REPLY, option::ERR_UNSUP, &[]));
    assert_eq!(sent(&mut script), option(7, b"\0\0\0\0\0\x03\0\x03\0\x01\0\x02"));
    script.deliver(&messages::option_reply(option::GO, option::ERR_UNSUP, &[]));
    assert_eq!(sent(&mut script), option(1, &[]));
    script.deliver(&[&BYTES.to_be_bytes()[..], &ALL_FLAGS.to_be_bytes(), &[0; 124]].concat());
    let Some(Step::Opened(info)) = script.steps.pop() else { panic!("{:?}", script.steps) };
    assert_eq!((info.bytes, info.headers, info.extents), (BYTES, Headers::Simple, false));
    assert_eq!((info.minimum, info.maximum), (1, 32 << 20));
    let cookie = script.read(4096, 512);
    script.deliver(&messages::simple(cookie, 0, &[5; 512]));
    assert_eq!(script.done().buffer.unwrap().bytes(), [5; 512]);
}

#[test]
fn contexts_before_an_error_are_not_selected() {
    let mut script = Scripted::new(Options { extended: false, ..Options::new("disk") });
    script.deliver(&messages::hello());
    script.deliver(&messages::ack(option::STRUCTURED_REPLY));
    script.deliver(&messages::context());
    script.deliver(&messages::option_reply(option::SET_META_CONTEXT, option::ERR_POLICY, &[]));
    script.deliver(&messages::export(option::GO, BYTES, ALL_FLAGS));
    script.deliver(&messages::ack(option::GO));
    let Some(Step::Opened(info)) = script.steps.pop() else { panic!("{:?}", script.steps) };
    assert!(!info.extents);
    let request = Request::Extents { offset: 0, len: 4096 };
    assert!(matches!(script.client.submit(request, 0), Err(SubmitError::Unsupported(_))));
}

#[test]
fn exports_are_listed() {
    let mut script = Scripted::new(Options::list());
    script.deliver(&messages::hello());
    assert_eq!(sent(&mut script)[4..], option(3, &[]));
    script.deliver(&messages::option_reply(
        option::LIST,
        option::SERVER,
        b"\0\0\0\x03sdaA \x07disk",
    ));
    script.deliver(&messages::option_reply(option::LIST, option::SERVER, b"\0\0\0\x03sdb"));
    script.deliver(&messages::ack(option::LIST));
    assert_eq!(sent(&mut script), option(2, &[]));
    let [Step::Listed(listed), Step::Close(End::Finished)] = &script.steps[..] else {
        panic!("{:?}", script.steps)
    };
    let listed: Vec<_> =
        listed.iter().map(|one| (one.name.as_str(), one.description.as_str())).collect();
    assert_eq!(listed, [("sda", "A disk"), ("sdb", "")]);
}

#[test]
fn info_queries_an_export_without_opening_it() {
    let options = Options {
        purpose: Purpose::Info,
        extended: false,
        structured: false,
        ..Options::new("sda")
    };
    let mut script = Scripted::new(options);
    script.deliver(&messages::hello());
    script.deliver(&messages::export(option::INFO, 4096, ALL_FLAGS | flags::READ_ONLY));
    script.deliver(&messages::ack(option::INFO));
    let [Step::Opened(info), Step::Close(End::Finished)] = &script.steps[..] else {
        panic!("{:?}", script.steps)
    };
    assert_eq!((info.bytes, info.is_writable()), (4096, false));
    assert!(sent(&mut script).ends_with(&option(2, &[])));
}

#[test]
fn refusal_reports_reason_and_closes() {
    let cases = [
        (option::ERR_UNKNOWN, Reason::Unknown),
        (option::ERR_TLS_REQD, Reason::TlsRequired),
        (option::ERR_POLICY, Reason::Policy),
        (option::ERR_SHUTDOWN, Reason::Shutdown),
        (option::ERR_TOO_BIG, Reason::Other(option::ERR_TOO_BIG)),
    ];
    for (error, reason) in cases {
        let mut script =
            Scripted::new(Options { extended: false, structured: false, ..Options::new("disk") });
        script.deliver(&messages::hello());
        script.deliver(&messages::option_reply(option::GO, error, b"go \x1baway"));
        let [Step::Refused(refusal), Step::Close(End::Finished)] = &script.steps[..] else {
            panic!("{:?}", script.steps)
        };
        assert_eq!((refusal.reason, refusal.message.as_str()), (reason, "go away"));
        assert!(sent(&mut script).ends_with(&option(2, &[])));
    }
}

#[test]
fn invalid_export_name_is_not_sent() {
    for name in ["a\0b", &"x".repeat(4097)] {
        let mut script = Scripted::new(Options::new(name));
        let [Step::Refused(refusal), Step::Close(_)] = &script.steps[..] else {
            panic!("{:?}", script.steps)
        };
        assert_eq!(refusal.reason, Reason::Name);
        script.deliver(&messages::hello());
        assert!(script.sent.is_empty());
    }
}

#[test]
fn starttls_is_the_first_option() {
    let mut script = Scripted::new(Options { start: Start::StartTls, ..Options::new("disk") });
    script.deliver(&messages::hello());
    assert_eq!(sent(&mut script)[4..], option(5, &[]));
    script.deliver(&messages::ack(option::STARTTLS));
    assert!(matches!(script.steps[..], [Step::StartTls]));
    assert!(sent(&mut script).is_empty());
    script.client.tls_established();
    script.drain();
    assert_eq!(sent(&mut script), option(11, &[]));
    // A client that starts inside TLS sends the same.
    let mut script = Scripted::new(Options { start: Start::InTls, ..Options::new("disk") });
    assert_eq!(sent(&mut script), option(11, &[]));
}

#[test]
fn client_requiring_tls_is_refused_without_tls() {
    let mut script = Scripted::new(Options { start: Start::StartTls, ..Options::new("disk") });
    script.deliver(&messages::hello());
    script.deliver(&messages::option_reply(option::STARTTLS, option::ERR_UNSUP, &[]));
    let [Step::Refused(refusal), Step::Close(End::Finished)] = &script.steps[..] else {
        panic!("{:?}", script.steps)
    };
    assert_eq!(refusal.reason, Reason::TlsUnavailable);
    assert!(sent(&mut script).ends_with(&option(2, &[])));
}

#[test]
fn golden_requests() {
    let mut script = Scripted::in_transmission(Some(Form::Structured));
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
        script.submit(request);
        let expected = [
            &[0x25, 0x60, 0x95, 0x13, 0, flags, 0, command][..],
            &at.to_be_bytes(),
            &offset.to_be_bytes(),
            &u32::try_from(len).unwrap().to_be_bytes(),
        ]
        .concat();
        assert_eq!(script.sent, expected, "{command}");
    }
}

#[test]
fn unsupported_and_invalid_requests_are_not_sent() {
    let mut script =
        Scripted::new(Options { extended: false, structured: false, ..Options::new("disk") });
    script.deliver(&messages::hello());
    script.deliver(&messages::export(option::GO, BYTES, flags::HAS_FLAGS));
    script.deliver(&messages::blocks(option::GO, 512, 4096, 8192));
    script.deliver(&messages::ack(option::GO));
    let (offset, durable) = (0, false);
    let wrong = [
        Request::Flush,
        Request::Trim { offset, len: 512, durable },
        Request::Cache { offset, len: 512 },
        Request::Zero { offset, len: 512, no_hole: false, fast: false, durable },
        Request::Extents { offset, len: 512 },
        Request::Read { offset: 1, buffer: script.buffer(512) },
        Request::Read { offset, buffer: script.buffer(513) },
        Request::Read { offset, buffer: script.buffer(8704) },
        Request::Read { offset: BYTES, buffer: script.buffer(512) },
        Request::Read { offset: u64::MAX - 511, buffer: script.buffer(1024) },
        Request::Read { offset, buffer: script.buffer(0) },
    ];
    for request in wrong {
        let name = format!("{request:?}");
        assert!(
            matches!(script.client.submit(request, 0), Err(SubmitError::Unsupported(_))),
            "{name}"
        );
    }
    let right = Request::Read { offset: BYTES - 8192, buffer: script.buffer(8192) };
    assert!(script.client.submit(right, 0).is_ok());
}

#[test]
fn requests_in_flight_are_bounded() {
    let mut script = Scripted::in_transmission(None);
    assert_eq!(script.client.free_slots(), 64);
    let cookies: Vec<u64> = (0..64).map(|at| script.write(at * 512, 512)).collect();
    let request = Request::Flush;
    assert!(matches!(script.client.submit(request, 0), Err(SubmitError::Full(Request::Flush))));
    for cookie in cookies.into_iter().rev() {
        script.deliver(&messages::simple(cookie, 0, &[]));
        assert_eq!(script.done().result, Ok(()));
    }
    assert_eq!((script.client.free_slots(), script.client.in_flight()), (64, 0));
}

#[test]
fn chunks_in_any_order_complete_a_read() {
    for form in [Form::Structured, Form::Extended(8192)] {
        let mut script = Scripted::in_transmission(Some(form));
        let cookie = script.read(8192, 4096);
        script.deliver(&messages::data(form, 0, cookie, 8192 + 3072, &[3; 1024]));
        script.deliver(&messages::hole(form, 0, cookie, 8192 + 1024, 2048));
        script.deliver(&messages::data(form, DONE, cookie, 8192, &[1; 1024]));
        let done = script.done();
        let expected = [vec![1; 1024], vec![0; 2048], vec![3; 1024]].concat();
        assert_eq!((done.tag, done.result), (7, Ok(())));
        assert_eq!(done.buffer.unwrap().bytes(), expected);
    }
}

#[test]
fn request_errors_keep_the_connection_open() {
    for form in [Form::Structured, Form::Extended(0)] {
        let mut script = Scripted::in_transmission(Some(form));
        let cookie = script.read(0, 4096);
        script.deliver(&messages::data(form, 0, cookie, 0, &[1; 512]));
        script.deliver(&messages::error(form, 0, cookie, errno::EIO, Some(512)));
        script.deliver(&messages::empty_reply(form, cookie));
        let error = script.done().result.unwrap_err();
        assert_eq!((error.errno, error.offset), (errno::EIO, Some(512)));
        let cookie = script.write(0, 512);
        script.deliver(&messages::error(form, DONE, cookie, errno::ENOSPC, None));
        let error = script.done().result.unwrap_err();
        assert_eq!((error.errno, error.offset), (errno::ENOSPC, None));
        // An error chunk of unknown type fails the request.
        let cookie = script.read(0, 512);
        let payload = [&errno::EINVAL.to_be_bytes()[..], &[0, 1, b'?'], &[9; 100]].concat();
        script.deliver(&messages::chunk(form, 0x8123, DONE, cookie, &payload));
        assert_eq!(script.done().result.unwrap_err().errno, errno::EINVAL);
    }
    let mut script = Scripted::in_transmission(None);
    let cookie = script.read(0, 4096);
    script.deliver(&messages::simple(cookie, errno::EPERM, &[]));
    assert_eq!(script.done().result.unwrap_err().errno, errno::EPERM);
}

#[test]
fn extents_of_both_lengths_are_parsed() {
    for form in [Form::Structured, Form::Extended(4096)] {
        let mut script = Scripted::in_transmission(Some(form));
        let cookie = script.submit(Request::Extents { offset: 4096, len: 65536 });
        let extents = [(4096, 0), (512, 0), (8192, 3), (1 << 20, 2)];
        script.deliver(&messages::block_status(form, DONE, cookie, &extents));
        let zero = Extent { len: 65536 - 4608 - 8192, hole: false, zero: true };
        let expected = [Extent::data(4608), Extent::hole(8192), zero];
        assert_eq!(script.done().extents, expected);
    }
}
