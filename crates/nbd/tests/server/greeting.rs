//! The start of a connection in the clear, where TLS may or must follow.

use nbd::server::{Greeter, Next, greet};
use nbd::wire::option::{self, OptionHeader};
use zerocopy::IntoBytes;

use crate::messages::{HELLO, flags, go, kinds, option};

/// Creates a greeter that has sent the hello.
fn greeter_after_hello(require_tls: bool, tls: bool) -> Greeter {
    let mut greeter = greet(require_tls, tls);
    let reaction = greeter.receive(&[]);
    assert_eq!((reaction.consumed, reaction.reply.len()), (0, HELLO));
    assert_eq!(reaction.next, if tls { Next::Wait } else { Next::Plain });
    greeter
}

/// Passes bytes to a greeter in pieces of `size`. Returns its reply, the number of bytes consumed
/// and the last step.
fn feed(greeter: &mut Greeter, bytes: &[u8], size: usize) -> (Vec<u8>, usize, Next) {
    let (mut sent, mut taken, mut there) = (Vec::new(), 0, 0);
    loop {
        there = (there + size).min(bytes.len());
        let reaction = greeter.receive(&bytes[taken..there]);
        sent.extend(&reaction.reply);
        taken += reaction.consumed;
        assert!(taken <= there);
        if reaction.next != Next::Wait || there == bytes.len() {
            return (sent, taken, reaction.next);
        }
    }
}

const SECURE: Next = Next::StartTls { no_zeroes: true };

/// Case X02.
#[test]
fn x02_required_tls_refuses_every_other_option() {
    let start_tls = option(option::STARTTLS, &[]);
    for size in [1, 7, 1000] {
        let mut greeter = greeter_after_hello(true, true);
        let mut request = flags().to_vec();
        for which in [option::LIST, option::INFO, option::STRUCTURED_REPLY, 11, 99] {
            request.extend(option(which, b"some data"));
        }
        request.extend(option(option::STARTTLS, b"x"));
        let (sent, taken, then) = feed(&mut greeter, &request, size);
        let mut expected = vec![option::ERR_TLS_REQD; 5];
        expected.push(option::ERR_INVALID);
        assert_eq!((kinds(&sent), taken, then), (expected, request.len(), Next::Wait));
        let (sent, taken, then) = feed(&mut greeter, &start_tls, size);
        assert_eq!((kinds(&sent), taken, then), (vec![option::ACK], 16, SECURE));
    }
}

#[test]
fn x02_export_name_and_abort_close_before_tls() {
    let end = |bytes: &[u8]| {
        let mut greeter = greeter_after_hello(true, true);
        let reaction = greeter.receive(&[&flags()[..], bytes].concat());
        (kinds(&reaction.reply), reaction.next)
    };
    assert_eq!(end(&option(option::EXPORT_NAME, b"sda")), (vec![], Next::Close));
    assert_eq!(end(&option(option::ABORT, &[])), (vec![option::ACK], Next::Close));
}

/// Case X03: no state is kept from before TLS.
#[test]
fn x03_options_before_tls_are_not_kept() {
    let mut greeter = greeter_after_hello(true, true);
    let request = [&flags()[..], &option(option::STRUCTURED_REPLY, &[]), &go("sda")].concat();
    let (sent, ..) = feed(&mut greeter, &request, 1000);
    assert_eq!(kinds(&sent), [option::ERR_TLS_REQD; 2]);
    let (_, _, then) = feed(&mut greeter, &option(option::STARTTLS, &[]), 1000);
    assert_eq!(then, SECURE);
}

/// Case X04.
#[test]
fn x04_cleartext_after_starttls_closes() {
    for require_tls in [true, false] {
        let mut greeter = greeter_after_hello(require_tls, true);
        let request = [&flags()[..], &option(option::STARTTLS, &[]), &go("sda")].concat();
        let reaction = greeter.receive(&request);
        assert!(matches!(reaction.next, Next::Refuse(_)), "{reaction:?}");
        assert!(reaction.reply.is_empty());
    }
}

#[test]
fn optional_tls_is_decided_by_the_first_option() {
    for size in [1, 5, 1000] {
        let secured = [&flags()[..], &option(option::STARTTLS, &[])].concat();
        let (sent, taken, then) = feed(&mut greeter_after_hello(false, true), &secured, size);
        assert_eq!((kinds(&sent), taken, then), (vec![option::ACK], 20, SECURE));
        let plain = [&flags()[..], &go("sda")].concat();
        let (sent, taken, then) = feed(&mut greeter_after_hello(false, true), &plain, size);
        assert_eq!((sent, taken, then), (vec![], 0, Next::Plain));
    }
}

#[test]
fn wrong_flags_wrong_magic_and_excess_close() {
    let end = |bytes: &[u8]| feed(&mut greeter_after_hello(true, true), bytes, 4096).2;
    let flags = flags();
    assert!(matches!(end(&[0, 0, 0, 7]), Next::Refuse(_)));
    assert!(matches!(end(&[0, 0, 0, 0]), Next::Refuse(_)));
    assert!(matches!(end(&[&flags[..], b"GET / HTTP/1.1\r\n\r\n"].concat()), Next::Refuse(_)));
    let many = [&flags[..], &option(option::LIST, &[]).repeat(65)].concat();
    assert!(matches!(end(&many), Next::Refuse(_)));
    let long = OptionHeader::new(option::LIST, u32::MAX);
    assert!(matches!(end(&[&flags[..], long.as_bytes()].concat()), Next::Refuse(_)));
}
