//! Property: the result does not depend on how the received bytes are split, nor on direct
//! receives.

use export::Extent;
use nbd::client::{Request, Step};
use nbd::wire::errno::EIO;
use nbd::wire::reply::DONE;
use proptest::prelude::*;

use crate::messages::{self, Form};
use crate::script::Scripted;

/// Completed requests: tag, error, data, extents.
type Completions = Vec<(u32, Option<(u32, Option<u64>)>, Vec<u8>, Vec<Extent>)>;

const LEN: usize = 64 << 10;
const HALF: u32 = 32 << 10;

fn bytes(seed: u8) -> Vec<u8> {
    (0..LEN).map(|at| (at / 256).to_le_bytes()[0] ^ at.to_le_bytes()[0] ^ seed).collect()
}

/// Submits reads, a write and a block status request, all in flight at once. Returns the replies,
/// including an error.
fn submit_all(form: Option<Form>) -> (Scripted, Vec<u8>) {
    let mut script = Scripted::in_transmission(form);
    let reads: Vec<u64> = (0..3).map(|at| script.read(at * LEN as u64, LEN)).collect();
    let (write, failed) = (script.write(0, 512), script.read(0, 512));
    let Some(form) = form else {
        let mut sent = messages::simple(reads[1], 0, &bytes(1));
        sent.extend(messages::simple(failed, EIO, &[]));
        sent.extend(messages::simple(reads[0], 0, &bytes(0)));
        sent.extend(messages::simple(write, 0, &[]));
        sent.extend(messages::simple(reads[2], 0, &bytes(2)));
        return (script, sent);
    };
    let status_request = script.submit(Request::Extents { offset: 0, len: 65536 });
    let at = |offset| match form {
        Form::Structured => form,
        Form::Extended(_) => Form::Extended(offset),
    };
    let len = LEN as u64;
    let (half, whole) = (&bytes(1)[..LEN / 2], bytes(0));
    let mut sent = messages::data(at(len), 0, reads[1], len, half);
    sent.extend(messages::data(at(0), DONE, reads[0], 0, &whole));
    sent.extend(messages::error(at(0), DONE, failed, EIO, Some(100)));
    sent.extend(messages::status(at(0), DONE, status_request, &[(512, 3), (1024, 0), (512, 2)]));
    sent.extend(messages::hole(at(len), DONE, reads[1], len + len / 2, HALF));
    sent.extend(messages::none(at(0), write));
    sent.extend(messages::data(at(2 * len), 0, reads[2], 2 * len, &bytes(2)));
    sent.extend(messages::none(at(2 * len), reads[2]));
    (script, sent)
}

fn outcome(script: &mut Scripted) -> Completions {
    let steps = std::mem::take(&mut script.steps).into_iter();
    let done = steps.map(|step| match step {
        Step::Done(done) => {
            let error = done.result.err().map(|error| (error.errno, error.offset));
            let succeeded = error.is_none();
            let data = done.buffer.filter(|_| succeeded).map(|buffer| buffer.bytes().to_vec());
            (done.tag, error, data.unwrap_or_default(), done.extents)
        }
        other => panic!("{other:?}"),
    });
    done.collect()
}

/// Delivers the replies in pieces of these lengths, cyclically; with `direct`, by direct receives
/// where the client offers a buffer.
fn play(form: Option<Form>, pieces: &[usize], direct: bool) -> Completions {
    let (mut script, sent) = submit_all(form);
    let (mut at, mut pending) = (0, Vec::new());
    for piece in pieces.iter().cycle() {
        if at == sent.len() {
            break;
        }
        let end = (at + piece).min(sent.len());
        if let Some(mut window) =
            if direct && pending.is_empty() { script.client.direct_recv() } else { None }
        {
            let got = (end - at).min(window.end - window.start);
            let place = window.start..window.start + got;
            window.buffer.bytes_mut()[place].copy_from_slice(&sent[at..at + got]);
            at += got;
            script.client.direct_received(window, got);
            script.drain();
            continue;
        }
        pending.extend_from_slice(&sent[at..end]);
        at = end;
        let taken = script.client.receive(&pending);
        pending.drain(..taken);
        script.drain();
    }
    assert!(pending.is_empty());
    assert_eq!(script.client.in_flight(), 0);
    outcome(&mut script)
}

const FORMS: [Option<Form>; 3] = [None, Some(Form::Structured), Some(Form::Extended(0))];

#[test]
fn replies_in_one_piece_complete_all_requests() {
    let done = play(FORMS[1], &[usize::MAX >> 1], false);
    let zeros = vec![0; LEN / 2];
    assert_eq!(done[0].2, bytes(0));
    assert_eq!(done[1].1, Some((EIO, Some(100))));
    assert_eq!(done[2].3[..2], [Extent::hole(512), Extent::data(1024)]);
    assert_eq!(done[3].2, [&bytes(1)[..LEN / 2], &zeros].concat());
    assert_eq!(done[5].2, bytes(2));
}

#[test]
fn single_bytes_give_the_same_result() {
    for form in FORMS {
        assert_eq!(play(form, &[1], false), play(form, &[1 << 24], false));
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
        prop_assert_eq!(play(form, &pieces, direct), play(form, &[1 << 24], false));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        form in 0..3_usize,
        sent in prop::collection::vec(any::<u8>(), 0..400),
        at in 0..2000_usize,
    ) {
        let (mut script, mut right) = submit_all(FORMS[form]);
        right.truncate(at);
        script.deliver(&right);
        script.deliver(&sent);
    }
}
