//! The law that it does not matter in which pieces bytes come, nor whether data is received in place.

use export::Extent;
use nbd::client::{Request, Step};
use nbd::wire::errno::EIO;
use nbd::wire::reply::DONE;
use proptest::prelude::*;

use crate::says::{self, Form};
use crate::talk::Talk;

/// What became of requests: tag, error, data, extents.
type Outcome = Vec<(u32, Option<(u32, Option<u64>)>, Vec<u8>, Vec<Extent>)>;

const LEN: usize = 64 << 10;
const HALF: u32 = 32 << 10;

fn bytes(seed: u8) -> Vec<u8> {
    (0..LEN).map(|at| (at / 256).to_le_bytes()[0] ^ at.to_le_bytes()[0] ^ seed).collect()
}

/// Three reads, a write, a question and an error, all under way at once, and all that a server says to them.
fn conversation(form: Option<Form>) -> (Talk, Vec<u8>) {
    let mut talk = Talk::live(form);
    let reads: Vec<u64> = (0..3).map(|at| talk.read(at * LEN as u64, LEN)).collect();
    let (write, failed) = (talk.write(0, 512), talk.read(0, 512));
    let Some(form) = form else {
        let mut said = says::simple(reads[1], 0, &bytes(1));
        said.extend(says::simple(failed, EIO, &[]));
        said.extend(says::simple(reads[0], 0, &bytes(0)));
        said.extend(says::simple(write, 0, &[]));
        said.extend(says::simple(reads[2], 0, &bytes(2)));
        return (talk, said);
    };
    let question = talk.ask(Request::Extents { offset: 0, len: 65536 });
    let at = |offset| match form {
        Form::Structured => form,
        Form::Extended(_) => Form::Extended(offset),
    };
    let len = LEN as u64;
    let (half, whole) = (&bytes(1)[..LEN / 2], bytes(0));
    let mut said = says::data(at(len), 0, reads[1], len, half);
    said.extend(says::data(at(0), DONE, reads[0], 0, &whole));
    said.extend(says::error(at(0), DONE, failed, EIO, Some(100)));
    said.extend(says::status(at(0), DONE, question, &[(512, 3), (1024, 0), (512, 2)]));
    said.extend(says::hole(at(len), DONE, reads[1], len + len / 2, HALF));
    said.extend(says::none(at(0), write));
    said.extend(says::data(at(2 * len), 0, reads[2], 2 * len, &bytes(2)));
    said.extend(says::none(at(2 * len), reads[2]));
    (talk, said)
}

fn outcome(talk: &mut Talk) -> Outcome {
    let steps = std::mem::take(&mut talk.steps).into_iter();
    let done = steps.map(|step| match step {
        Step::Done(done) => {
            let error = done.result.err().map(|error| (error.errno, error.offset));
            let well = error.is_none();
            let data = done.buffer.filter(|_| well).map(|buffer| buffer.bytes().to_vec());
            (done.tag, error, data.unwrap_or_default(), done.extents)
        }
        other => panic!("{other:?}"),
    });
    done.collect()
}

/// Says it in pieces of these lengths, over and over; data is received in place wherever the client offers it.
fn play(form: Option<Form>, pieces: &[usize], in_place: bool) -> Outcome {
    let (mut talk, said) = conversation(form);
    let (mut at, mut stage) = (0, Vec::new());
    for piece in pieces.iter().cycle() {
        if at == said.len() {
            break;
        }
        let end = (at + piece).min(said.len());
        if let Some(mut landing) =
            if in_place && stage.is_empty() { talk.client.direct_recv() } else { None }
        {
            let got = (end - at).min(landing.end - landing.start);
            let place = landing.start..landing.start + got;
            landing.buffer.bytes_mut()[place].copy_from_slice(&said[at..at + got]);
            at += got;
            talk.client.direct_received(landing, got);
            talk.drain();
            continue;
        }
        stage.extend_from_slice(&said[at..end]);
        at = end;
        let taken = talk.client.receive(&stage);
        stage.drain(..taken);
        talk.drain();
    }
    assert!(stage.is_empty());
    assert_eq!(talk.client.under_way(), 0);
    outcome(&mut talk)
}

const FORMS: [Option<Form>; 3] = [None, Some(Form::Structured), Some(Form::Extended(0))];

#[test]
fn what_comes_at_once_is_what_was_said() {
    let done = play(FORMS[1], &[usize::MAX >> 1], false);
    let zeros = vec![0; LEN / 2];
    assert_eq!(done[0].2, bytes(0));
    assert_eq!(done[1].1, Some((EIO, Some(100))));
    assert_eq!(done[2].3[..2], [Extent::hole(512), Extent::data(1024)]);
    assert_eq!(done[3].2, [&bytes(1)[..LEN / 2], &zeros].concat());
    assert_eq!(done[5].2, bytes(2));
}

#[test]
fn one_byte_at_a_time_is_the_same() {
    for form in FORMS {
        assert_eq!(play(form, &[1], false), play(form, &[1 << 24], false));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_pieces_are_the_same(
        form in 0..3_usize,
        pieces in prop::collection::vec(prop_oneof![1..40_usize, 1..70_000_usize], 1..12),
        in_place: bool,
    ) {
        let form = FORMS[form];
        prop_assert_eq!(play(form, &pieces, in_place), play(form, &[1 << 24], false));
    }

    #[test]
    fn arbitrary_bytes_never_do_more_than_end_it(
        form in 0..3_usize,
        said in prop::collection::vec(any::<u8>(), 0..400),
        at in 0..2000_usize,
    ) {
        let (mut talk, mut right) = conversation(FORMS[form]);
        right.truncate(at);
        talk.hear(&right);
        talk.hear(&said);
    }
}
