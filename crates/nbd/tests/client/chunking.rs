//! Property: the result does not depend on how the received bytes are split, nor on direct receives.

use export::Extent;
use nbd::client::{Request, Step};
use nbd::wire::errno::EIO;
use nbd::wire::meta::{STATE_HOLE, STATE_ZERO};
use nbd::wire::reply::DONE;
use proptest::prelude::*;

use crate::messages::{self, Form};
use crate::script::Scripted;

/// A completed request.
#[derive(Debug, PartialEq, Eq)]
struct Completed {
    tag: u32,
    /// Error value and offset.
    error: Option<(u32, Option<u64>)>,
    data: Vec<u8>,
    extents: Vec<Extent>,
}

const LEN: usize = 64 << 10;
const HALF: u32 = 32 << 10;

fn bytes(seed: u8) -> Vec<u8> {
    (0..LEN).map(|at| (at / 256).to_le_bytes()[0] ^ at.to_le_bytes()[0] ^ seed).collect()
}

/// Submits reads, a write and a block status request, all in flight at once. Returns their replies,
/// including an error.
fn submit_with_replies(form: Option<Form>) -> (Scripted, Vec<u8>) {
    let mut script = Scripted::in_transmission(form);
    let reads: Vec<u64> = (0..3).map(|at| script.read(at * LEN as u64, LEN)).collect();
    let (write, failed) = (script.write(0, 512), script.read(0, 512));
    let Some(form) = form else {
        let mut replies = messages::simple(reads[1], 0, &bytes(1));
        replies.extend(messages::simple(failed, EIO, &[]));
        replies.extend(messages::simple(reads[0], 0, &bytes(0)));
        replies.extend(messages::simple(write, 0, &[]));
        replies.extend(messages::simple(reads[2], 0, &bytes(2)));
        return (script, replies);
    };
    let status_request = script.submit(Request::Extents { offset: 0, len: 65536 });
    let with_offset = |offset| match form {
        Form::Structured => form,
        Form::Extended(_) => Form::Extended(offset),
    };
    let len = LEN as u64;
    let (half, whole) = (&bytes(1)[..LEN / 2], bytes(0));
    let mut replies = messages::data(with_offset(len), 0, reads[1], len, half);
    replies.extend(messages::data(with_offset(0), DONE, reads[0], 0, &whole));
    replies.extend(messages::error(with_offset(0), DONE, failed, EIO, Some(100)));
    replies.extend(messages::block_status(
        with_offset(0),
        DONE,
        status_request,
        &[(512, STATE_HOLE | STATE_ZERO), (1024, 0), (512, STATE_ZERO)],
    ));
    replies.extend(messages::hole(with_offset(len), DONE, reads[1], len + len / 2, HALF));
    replies.extend(messages::empty_reply(with_offset(0), write));
    replies.extend(messages::data(with_offset(2 * len), 0, reads[2], 2 * len, &bytes(2)));
    replies.extend(messages::empty_reply(with_offset(2 * len), reads[2]));
    (script, replies)
}

fn take_completed(script: &mut Scripted) -> Vec<Completed> {
    let steps = std::mem::take(&mut script.steps).into_iter();
    let done = steps.map(|step| match step {
        Step::Done(done) => {
            let error = done.result.err().map(|error| (error.errno, error.offset));
            let succeeded = error.is_none();
            let data = done.buffer.filter(|_| succeeded).map(|buffer| buffer.bytes().to_vec());
            Completed {
                tag: done.tag,
                error,
                data: data.unwrap_or_default(),
                extents: done.extents,
            }
        }
        other => panic!("{other:?}"),
    });
    done.collect()
}

/// Delivers the replies in pieces of these lengths, cyclically; with `direct`, by direct receives
/// where the client offers a buffer.
fn deliver_in_pieces(form: Option<Form>, pieces: &[usize], direct: bool) -> Vec<Completed> {
    let (mut script, replies) = submit_with_replies(form);
    let (mut position, mut pending) = (0, Vec::new());
    for piece in pieces.iter().cycle() {
        if position == replies.len() {
            break;
        }
        let end = (position + piece).min(replies.len());
        if let Some(mut direct_recv) =
            if direct && pending.is_empty() { script.client.direct_recv() } else { None }
        {
            let len = (end - position).min(direct_recv.end - direct_recv.start);
            let range = direct_recv.start..direct_recv.start + len;
            direct_recv.buffer.bytes_mut()[range]
                .copy_from_slice(&replies[position..position + len]);
            position += len;
            script.client.direct_received(direct_recv, len);
            script.drain();
            continue;
        }
        pending.extend_from_slice(&replies[position..end]);
        position = end;
        let taken = script.client.receive(&pending);
        pending.drain(..taken);
        script.drain();
    }
    assert!(pending.is_empty());
    assert_eq!(script.client.in_flight(), 0);
    take_completed(&mut script)
}

const FORMS: [Option<Form>; 3] = [None, Some(Form::Structured), Some(Form::Extended(0))];

#[test]
fn replies_in_one_piece_complete_all_requests() {
    let done = deliver_in_pieces(Some(Form::Structured), &[usize::MAX >> 1], false);
    let zeros = vec![0; LEN / 2];
    assert_eq!(done[0].data, bytes(0));
    assert_eq!(done[1].error, Some((EIO, Some(100))));
    assert_eq!(done[2].extents[..2], [Extent::hole(512), Extent::data(1024)]);
    assert_eq!(done[3].data, [&bytes(1)[..LEN / 2], &zeros].concat());
    assert_eq!(done[5].data, bytes(2));
}

#[test]
fn single_bytes_give_the_same_result() {
    for form in FORMS {
        assert_eq!(
            deliver_in_pieces(form, &[1], false),
            deliver_in_pieces(form, &[1 << 24], false)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_pieces_give_the_same_result(
        form in 0..3_usize,
        pieces in prop::collection::vec(prop_oneof![1..40_usize, 1..70_000_usize], 1..12),
        direct: bool,
    ) {
        let form = FORMS[form];
        prop_assert_eq!(deliver_in_pieces(form, &pieces, direct), deliver_in_pieces(form, &[1 << 24], false));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        form in 0..3_usize,
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        len in 0..2000_usize,
    ) {
        let (mut script, mut replies) = submit_with_replies(FORMS[form]);
        replies.truncate(len);
        script.deliver(&replies);
        script.deliver(&bytes);
    }
}
