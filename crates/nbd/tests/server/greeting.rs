//! The beginning in the clear, where TLS may or must follow.

use nbd::server::{Greeter, Next, greet};
use nbd::wire::option::{self, OptionHeader};
use zerocopy::IntoBytes;

use crate::says::{HELLO, flags, go, kinds, option};

/// A greeter that has said hello.
fn greeted(secured_only: bool, tls: bool) -> Greeter {
    let mut greeter = greet(secured_only, tls);
    let reaction = greeter.receive(&[]);
    assert_eq!((reaction.take, reaction.say.len()), (0, HELLO));
    assert_eq!(reaction.then, if tls { Next::Wait } else { Next::Plain });
    greeter
}

/// Feeds a greeter in pieces of `size`. Gives what it said, what it took and what became of it.
fn feed(greeter: &mut Greeter, bytes: &[u8], size: usize) -> (Vec<u8>, usize, Next) {
    let (mut said, mut taken, mut there) = (Vec::new(), 0, 0);
    loop {
        there = (there + size).min(bytes.len());
        let reaction = greeter.receive(&bytes[taken..there]);
        said.extend(&reaction.say);
        taken += reaction.take;
        assert!(taken <= there);
        if reaction.then != Next::Wait || there == bytes.len() {
            return (said, taken, reaction.then);
        }
    }
}

const SECURE: Next = Next::Secure { no_zeroes: true };

/// Case X02.
#[test]
fn x02_where_tls_must_come_nothing_else_is_answered() {
    let start_tls = option(option::STARTTLS, &[]);
    for size in [1, 7, 1000] {
        let mut greeter = greeted(true, true);
        let mut asked = flags().to_vec();
        for which in [option::LIST, option::INFO, option::STRUCTURED_REPLY, 11, 99] {
            asked.extend(option(which, b"some data"));
        }
        asked.extend(option(option::STARTTLS, b"x"));
        let (said, taken, then) = feed(&mut greeter, &asked, size);
        let mut expected = vec![option::ERR_TLS_REQD; 5];
        expected.push(option::ERR_INVALID);
        assert_eq!((kinds(&said), taken, then), (expected, asked.len(), Next::Wait));
        let (said, taken, then) = feed(&mut greeter, &start_tls, size);
        assert_eq!((kinds(&said), taken, then), (vec![option::ACK], 16, SECURE));
    }
}

#[test]
fn x02_export_name_ends_and_abort_ends_with_an_answer() {
    let end = |bytes: &[u8]| {
        let mut greeter = greeted(true, true);
        let reaction = greeter.receive(&[&flags()[..], bytes].concat());
        (kinds(&reaction.say), reaction.then)
    };
    assert_eq!(end(&option(option::EXPORT_NAME, b"sda")), (vec![], Next::Close));
    assert_eq!(end(&option(option::ABORT, &[])), (vec![option::ACK], Next::Close));
}

/// Case X03: nothing that was said before TLS is kept, for there is nothing to keep it in.
#[test]
fn x03_what_was_agreed_on_in_the_clear_counts_for_nothing() {
    let mut greeter = greeted(true, true);
    let asked = [&flags()[..], &option(option::STRUCTURED_REPLY, &[]), &go("sda")].concat();
    let (said, ..) = feed(&mut greeter, &asked, 1000);
    assert_eq!(kinds(&said), [option::ERR_TLS_REQD; 2]);
    let (_, _, then) = feed(&mut greeter, &option(option::STARTTLS, &[]), 1000);
    assert_eq!(then, SECURE);
}

/// Case X04.
#[test]
fn x04_bytes_behind_starttls_end_the_connection() {
    for secured_only in [true, false] {
        let mut greeter = greeted(secured_only, true);
        let asked = [&flags()[..], &option(option::STARTTLS, &[]), &go("sda")].concat();
        let reaction = greeter.receive(&asked);
        assert!(matches!(reaction.then, Next::Refuse(_)), "{reaction:?}");
        assert!(reaction.say.is_empty());
    }
}

#[test]
fn where_tls_may_come_the_first_option_decides_and_all_is_left_to_the_session() {
    for size in [1, 5, 1000] {
        let secured = [&flags()[..], &option(option::STARTTLS, &[])].concat();
        let (said, taken, then) = feed(&mut greeted(false, true), &secured, size);
        assert_eq!((kinds(&said), taken, then), (vec![option::ACK], 20, SECURE));
        let plain = [&flags()[..], &go("sda")].concat();
        let (said, taken, then) = feed(&mut greeted(false, true), &plain, size);
        assert_eq!((said, taken, then), (vec![], 0, Next::Plain));
    }
}

#[test]
fn wrong_flags_wrong_magic_and_too_much_are_the_end() {
    let end = |bytes: &[u8]| feed(&mut greeted(true, true), bytes, 4096).2;
    let flags = flags();
    assert!(matches!(end(&[0, 0, 0, 7]), Next::Refuse(_)));
    assert!(matches!(end(&[0, 0, 0, 0]), Next::Refuse(_)));
    assert!(matches!(end(&[&flags[..], b"GET / HTTP/1.1\r\n\r\n"].concat()), Next::Refuse(_)));
    let many = [&flags[..], &option(option::LIST, &[]).repeat(65)].concat();
    assert!(matches!(end(&many), Next::Refuse(_)));
    let long = OptionHeader::new(option::LIST, u32::MAX);
    assert!(matches!(end(&[&flags[..], long.as_bytes()].concat()), Next::Refuse(_)));
}
