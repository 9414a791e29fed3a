//! The initiator with a target that violates the protocol: every violation ends the session with its
//! name, no data that is incomplete or out of order counts as complete, and memory is bounded.

use std::rc::Rc;

use export::{Account, Pool};
use iscsi::chap::Algorithm;
use iscsi::host::disk;
use iscsi::host::{
    Command, Credentials, Data, DiscoveredTarget, Done, End, Initiator, Options, Refusal, Step,
    Violation,
};
use iscsi::wire::bhs::{self, Bhs, FINAL, OVERFLOW, ScsiCommand, UNDERFLOW, of_target};
use iscsi::wire::login::CONTINUE;
use iscsi::wire::{NO_TAG, opcode};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::rogue::{Counter, keys, pdu};
use crate::world::{credentials, options};

const SECRET: &[u8] = b"secretsecret";

/// An initiator, and the state of its target.
struct Rogue {
    initiator: Initiator,
    target: Counter,
    memory: Account,
    /// Sent since the last call of [`Rogue::sent`].
    wire: Vec<u8>,
    logged_in: bool,
    refused: Option<Refusal>,
    redirected: Option<String>,
    targets: Option<Vec<DiscoveredTarget>>,
    done: Vec<Done>,
    end: Option<End>,
}

impl Rogue {
    /// An initiator that has sent its first login request.
    fn new(options: Options) -> Self {
        let mut rogue = Self {
            initiator: Initiator::new(options),
            target: Counter { stat_sn: 0xffff_fffe },
            memory: Pool::new(8 << 20).open(),
            wire: Vec::new(),
            logged_in: false,
            refused: None,
            redirected: None,
            targets: None,
            done: Vec::new(),
            end: None,
        };
        rogue.drain();
        rogue
    }

    /// One that has logged in, with these keys of the target.
    fn with_keys(pairs: &[(&str, &str)]) -> Self {
        let mut rogue = Self::new(options());
        let login = rogue.target.last_login();
        rogue.send(&login, &keys(pairs));
        rogue
    }

    fn logged_in() -> Self {
        let rogue = Self::with_keys(&[]);
        assert!(rogue.logged_in && rogue.end.is_none());
        rogue
    }

    /// One that has sent its response to a challenge.
    fn challenged(credentials: Credentials) -> Self {
        let mut rogue = Self::new(Options { credentials: Some(credentials), ..options() });
        let header = rogue.target.security(false);
        rogue.send(&header, &keys(&[("AuthMethod", "CHAP")]));
        rogue.challenge(CHALLENGE);
        rogue
    }

    fn challenge(&mut self, challenge: &str) {
        let header = self.target.security(false);
        let chap = [("CHAP_A", "7"), ("CHAP_I", "1"), ("CHAP_C", challenge)];
        self.send(&header, &keys(&chap));
    }

    fn drain(&mut self) {
        while let Some(step) = self.initiator.poll() {
            assert_eq!(self.end, None, "no step after the close");
            match step {
                Step::Send(segment) => self.wire.extend(segment.parts().concat()),
                Step::LoggedIn => self.logged_in = true,
                Step::Targets(targets) => self.targets = Some(targets),
                Step::Refused(refusal) => self.refused = Some(refusal),
                Step::Redirected(address) => self.redirected = Some(address),
                Step::Done(done) => self.done.push(done),
                Step::Close(end) => self.end = Some(end),
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let taken = self.initiator.receive(bytes);
        assert!(bytes.len() - taken < bhs::LEN + 4, "only a header waits");
        self.drain();
    }

    fn send<H: IntoBytes + Immutable>(&mut self, header: &H, data: &[u8]) {
        self.receive(&pdu(header, data));
    }

    /// Returns what the initiator has sent since the last call.
    fn sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.wire)
    }

    /// Submits a command and returns its task tag.
    fn submit(&mut self, cdb: [u8; 16], data: Data) -> u32 {
        self.sent();
        self.initiator.submit(Command { cdb, lun: 0, data }, 9).unwrap();
        self.drain();
        let (command, _) = ScsiCommand::read_from_prefix(&self.wire).unwrap();
        command.itt.get()
    }

    fn read(&mut self, len: usize) -> u32 {
        let buffer = self.memory.take(len).unwrap();
        self.submit(disk::read(0, 1), Data::In(Some(buffer)))
    }

    fn write(&mut self, len: usize) -> u32 {
        let buffer = Rc::new(self.memory.take(len).unwrap());
        self.submit(disk::write(0, 1), Data::Out { buffer, start: 0, len })
    }

    /// Sends the response to a command.
    fn respond(&mut self, itt: u32) -> Done {
        let header = self.target.response(itt);
        self.send(&header, &[]);
        self.done.pop().expect("completed")
    }

    #[track_caller]
    fn assert_violated(&self, violation: Violation) {
        assert_eq!(self.end, Some(End::Violation(violation)));
        assert!(self.done.is_empty(), "no command completes");
    }
}

const CHALLENGE: &str = "0x000102030405060708090a0b0c0d0e0f";

/// Keys that make every write wait for R2T.
const R2T_ONLY: [(&str, &str); 2] = [("InitialR2T", "Yes"), ("ImmediateData", "No")];

// ---- login

#[test]
fn anything_but_a_login_response_ends_the_login() {
    let mut rogue = Rogue::new(options());
    let ping = rogue.target.ping(true);
    rogue.send(&ping, &[]);
    rogue.assert_violated(Violation::LoginExpected);
    // A web server.
    let mut rogue = Rogue::new(options());
    rogue.receive(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n");
    assert!(matches!(rogue.end, Some(End::Violation(_))), "{:?}", rogue.end);
}

#[test]
fn login_response_of_another_task_or_stage_is_refused() {
    let mut rogue = Rogue::new(options());
    let mut header = rogue.target.last_login();
    header.itt.set(1);
    rogue.send(&header, &[]);
    rogue.assert_violated(Violation::TagUnknown);
    for flags in [0x00, 0x81, 0x83, 0x86, 0x84, 0x8c, 0xff] {
        let mut rogue = Rogue::new(options());
        let header = rogue.target.login(flags);
        rogue.send(&header, &[]);
        rogue.assert_violated(Violation::LoginStageWrong);
    }
}

#[test]
fn endless_login_rounds_and_texts_are_ended() {
    for (flags, expected) in
        [(0x04, Violation::LoginTooLong), (CONTINUE | 0x04, Violation::LoginTooLong)]
    {
        let mut rogue = Rogue::new(options());
        for _ in 0..100 {
            if rogue.end.is_none() {
                let header = rogue.target.login(flags);
                rogue.send(&header, &keys(&[("X-a", "b")]));
            }
        }
        rogue.assert_violated(expected);
    }
    let mut rogue = Rogue::new(options());
    for _ in 0..9 {
        if rogue.end.is_none() {
            let header = rogue.target.login(CONTINUE | 0x04);
            rogue.send(&header, &[b'a'; 8192]);
        }
    }
    rogue.assert_violated(Violation::TextTooLong);
}

#[test]
fn malformed_and_impossible_keys_are_refused() {
    for text in [&b"HeaderDigest"[..], b"=x\0", b"HeaderDigest=None", b"a=\xff\0", b"a=\x07\0"] {
        let mut rogue = Rogue::new(options());
        let header = rogue.target.last_login();
        rogue.send(&header, text);
        rogue.assert_violated(Violation::TextMalformed);
    }
    for pair in [
        ("HeaderDigest", "MD5"),
        ("DataDigest", ""),
        ("InitialR2T", "Maybe"),
        ("ImmediateData", "1"),
        ("MaxRecvDataSegmentLength", "0"),
        ("MaxRecvDataSegmentLength", "511"),
        ("MaxRecvDataSegmentLength", "16777216"),
        ("MaxRecvDataSegmentLength", "99999999999999999999"),
        ("MaxRecvDataSegmentLength", "-1"),
        ("FirstBurstLength", "262145"),
        ("FirstBurstLength", "1"),
        ("MaxBurstLength", "1048577"),
        ("MaxConnections", "2"),
        ("MaxOutstandingR2T", "0"),
        ("ErrorRecoveryLevel", "1"),
    ] {
        Rogue::with_keys(&[pair]).assert_violated(Violation::KeyInvalid);
    }
}

#[test]
fn refused_login_has_its_status_and_no_session() {
    for status in [[2, 1], [3, 0], [1, 1], [0xff, 0xff]] {
        let mut rogue = Rogue::new(options());
        let mut header = rogue.target.last_login();
        header.status = status;
        rogue.send(&header, &[]);
        assert_eq!(rogue.refused, Some(Refusal::Status(status)));
        assert_eq!((rogue.end, rogue.logged_in), (Some(End::Finished), false));
    }
}

#[test]
fn redirection_names_a_valid_address() {
    let redirected = |address: &[u8], options: Options| {
        let mut rogue = Rogue::new(options);
        let mut header = rogue.target.last_login();
        header.status = [1, 1];
        rogue.send(&header, &[b"TargetAddress=", address, b"\0"].concat());
        assert_eq!((rogue.end, rogue.logged_in), (Some(End::Finished), false));
        let refused = Some(Refusal::Status([1, 1]));
        assert_eq!(rogue.refused, rogue.redirected.is_none().then_some(refused).flatten());
        rogue.redirected
    };
    for (address, expected) in [
        ("192.0.2.7:3261,1", "192.0.2.7:3261"),
        ("[2001:db8::1]:3260", "[2001:db8::1]:3260"),
        ("host", "host"),
    ] {
        assert_eq!(redirected(address.as_bytes(), options()).as_deref(), Some(expected));
    }
    for address in [&b""[..], b",1", b"a\nb", "é".as_bytes(), &[b'a'; 300], b"\xff"] {
        assert_eq!(redirected(address, options()), None);
    }
    // A discovery session is for what is at this address.
    let discovery = Options { target: None, ..options() };
    assert_eq!(redirected(b"192.0.2.7", discovery), None);
}

#[test]
fn failure_before_the_challenge_is_told_from_a_wrong_secret() {
    let failed = |mut rogue: Rogue| {
        let mut header = rogue.target.security(false);
        header.status = [2, 1];
        rogue.send(&header, &[]);
        rogue.refused
    };
    let own = || Options { credentials: Some(credentials(SECRET, None)), ..options() };
    let mut offered = Rogue::new(own());
    let header = offered.target.security(false);
    offered.send(&header, &keys(&[("AuthMethod", "CHAP")]));
    assert_eq!(failed(offered), Some(Refusal::NoChallenge));
    let answered = Rogue::challenged(credentials(SECRET, None));
    assert_eq!(failed(answered), Some(Refusal::Status([2, 1])));
}

#[test]
fn login_responses_are_numbered_in_order() {
    let mut rogue = Rogue::new(options());
    let header = rogue.target.login(0x04);
    rogue.send(&header, &[]);
    rogue.target.stat_sn = rogue.target.stat_sn.wrapping_add(1);
    let header = rogue.target.last_login();
    rogue.send(&header, &[]);
    rogue.assert_violated(Violation::StatSnWrong);
}

// ---- CHAP

#[test]
fn invalid_challenges_are_refused() {
    let long = format!("0x{}", "00".repeat(1025));
    for chap in [
        [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", CHALLENGE)],
        [("CHAP_A", "7"), ("CHAP_I", "256"), ("CHAP_C", CHALLENGE)],
        [("CHAP_A", "7"), ("CHAP_I", "x"), ("CHAP_C", CHALLENGE)],
        [("CHAP_A", "7"), ("CHAP_I", "1"), ("CHAP_C", "0xzz")],
        [("CHAP_A", "7"), ("CHAP_I", "1"), ("CHAP_C", "0x")],
        [("CHAP_A", "7"), ("CHAP_I", "1"), ("X-c", CHALLENGE)],
        [("CHAP_A", "7"), ("CHAP_I", "1"), ("CHAP_C", &long)],
    ] {
        let credentials = Some(credentials(SECRET, None));
        let mut rogue = Rogue::new(Options { credentials, ..options() });
        let header = rogue.target.security(false);
        rogue.send(&header, &keys(&[("AuthMethod", "CHAP")]));
        rogue.sent();
        let header = rogue.target.security(false);
        rogue.send(&header, &keys(&chap));
        let refused = [Violation::ChapInvalid, Violation::TextMalformed];
        assert!(refused.map(|it| Some(End::Violation(it))).contains(&rogue.end), "{chap:?}");
        assert!(rogue.sent().is_empty(), "no response to it");
    }
}

#[test]
fn target_that_authenticates_nobody_is_refused() {
    for answer in ["None", "Reject", "KRB5"] {
        let credentials = Some(credentials(SECRET, None));
        let mut rogue = Rogue::new(Options { credentials, ..options() });
        let header = rogue.target.security(true);
        rogue.send(&header, &keys(&[("AuthMethod", answer)]));
        assert_eq!((rogue.refused, rogue.logged_in), (Some(Refusal::NoChap), false));
    }
}

#[test]
fn x14_target_that_proves_nothing_is_refused() {
    let mutual = || credentials(SECRET, Some(b"anothersecret"));
    // The initiator's own response as the proof of the target.
    let mut rogue = Rogue::challenged(mutual());
    let sent = String::from_utf8_lossy(&rogue.sent()).into_owned();
    let response = sent.split("CHAP_R=").nth(1).and_then(|rest| rest.split('\0').next()).unwrap();
    let header = rogue.target.security(true);
    rogue.send(&header, &keys(&[("CHAP_N", "target"), ("CHAP_R", response)]));
    assert_eq!(rogue.refused, Some(Refusal::TargetUnproved));
    for proof in [vec![], keys(&[("CHAP_R", "0x")]), keys(&[("CHAP_R", "0x00")])] {
        let mut rogue = Rogue::challenged(mutual());
        let header = rogue.target.security(true);
        rogue.send(&header, &proof);
        assert_eq!((rogue.refused, rogue.logged_in), (Some(Refusal::TargetUnproved), false));
    }
    // Straight to the end of the login.
    let mut rogue = Rogue::challenged(mutual());
    let header = rogue.target.last_login();
    rogue.send(&header, &[]);
    rogue.assert_violated(Violation::LoginStageWrong);
}

#[test]
fn x14_reflected_challenge_is_not_answered() {
    // A challenge that equals that of the initiator.
    let mut mirrored = credentials(SECRET, Some(b"anothersecret"));
    mirrored.algorithms = vec![Algorithm::Sha256];
    let fixed: fn(&mut [u8]) -> bool = |bytes| {
        let count = (0_u8..=255).cycle().skip(255);
        bytes.iter_mut().zip(count).for_each(|(byte, value)| *byte = value);
        true
    };
    let credentials = Some(mirrored.clone());
    let mut rogue = Rogue::new(Options { credentials, random: fixed, ..options() });
    let header = rogue.target.security(false);
    rogue.send(&header, &keys(&[("AuthMethod", "CHAP")]));
    rogue.sent();
    rogue.challenge(CHALLENGE);
    rogue.assert_violated(Violation::ChapInvalid);
    assert!(rogue.sent().is_empty(), "no response to it");
    // One that comes after it, in place of a proof.
    let mut rogue = Rogue::challenged(mirrored);
    let sent = String::from_utf8_lossy(&rogue.sent()).into_owned();
    let ours = sent.split("CHAP_C=").nth(1).and_then(|rest| rest.split('\0').next()).unwrap();
    rogue.challenge(ours);
    assert_eq!(rogue.refused, Some(Refusal::TargetUnproved));
    assert!(rogue.sent().is_empty(), "no response to it");
}

// ---- numbers

#[test]
fn answers_to_no_command_are_refused() {
    let answers: [fn(&mut Rogue, u32); 3] = [
        |rogue, itt| {
            let header = rogue.target.response(itt);
            rogue.send(&header, &[]);
        },
        |rogue, itt| {
            let header = rogue.target.last_data(itt, 0, 0);
            rogue.send(&header, &[1; 512]);
        },
        |rogue, itt| {
            let header = rogue.target.r2t(itt, 0, 0, 512);
            rogue.send(&header, &[]);
        },
    ];
    for answer in answers {
        for wrong in [1, 0x1_0000, NO_TAG, 0x8000_0000] {
            let mut rogue = Rogue::logged_in();
            let itt = rogue.read(512);
            answer(&mut rogue, itt ^ wrong);
            rogue.assert_violated(Violation::TagUnknown);
        }
        // A second answer.
        let mut rogue = Rogue::logged_in();
        let itt = rogue.read(512);
        rogue.respond(itt);
        answer(&mut rogue, itt);
        rogue.assert_violated(Violation::TagUnknown);
    }
}

#[test]
fn command_that_was_not_sent_is_not_answered() {
    let mut rogue = Rogue::logged_in();
    let first = rogue.read(512);
    // The window ends with the 100th.
    let mut last = first;
    for _ in 0..63 {
        last = rogue.read(512);
    }
    let mut closed = rogue.target.response(first);
    closed.numbers.exp_cmd_sn.set(65);
    closed.numbers.max_cmd_sn.set(100);
    rogue.send(&closed, &[]);
    rogue.done.clear();
    for itt in (0..36).map(|at| first + at).collect::<Vec<_>>() {
        if itt != first {
            rogue.respond(itt);
        }
        rogue.read(512);
    }
    // All of the window is used: this one waits.
    rogue.respond(last);
    let buffer = rogue.memory.take(512).unwrap();
    let command = Command { cdb: disk::read(0, 1), lun: 0, data: Data::In(Some(buffer)) };
    rogue.sent();
    rogue.initiator.submit(command, 9).unwrap();
    rogue.drain();
    assert!(rogue.sent().is_empty());
    let header = rogue.target.response(last + 0x1_0000);
    rogue.send(&header, &[]);
    rogue.assert_violated(Violation::TagUnknown);
}

#[test]
fn status_numbers_must_be_in_order() {
    for step in [1_u32, u32::MAX, 0x8000_0000] {
        let mut rogue = Rogue::logged_in();
        let itt = rogue.read(512);
        rogue.target.stat_sn = rogue.target.stat_sn.wrapping_add(step);
        let header = rogue.target.response(itt);
        rogue.send(&header, &[]);
        rogue.assert_violated(Violation::StatSnWrong);
        let mut rogue = Rogue::logged_in();
        let itt = rogue.read(512);
        rogue.target.stat_sn = rogue.target.stat_sn.wrapping_add(step);
        let header = rogue.target.last_data(itt, 0, 0);
        rogue.send(&header, &[1; 512]);
        rogue.assert_violated(Violation::StatSnWrong);
        let mut rogue = Rogue::logged_in();
        rogue.target.stat_sn = rogue.target.stat_sn.wrapping_add(step);
        let header = rogue.target.message(0);
        rogue.send(&header, &[]);
        rogue.assert_violated(Violation::StatSnWrong);
    }
}

#[test]
fn data_numbers_must_be_in_order() {
    for number in [1, u32::MAX] {
        let mut rogue = Rogue::logged_in();
        let itt = rogue.read(1024);
        let header = rogue.target.data(itt, number, 0);
        rogue.send(&header, &[1; 512]);
        rogue.assert_violated(Violation::DataSnWrong);
    }
    let mut rogue = Rogue::logged_in();
    let itt = rogue.read(1024);
    let header = rogue.target.data(itt, 0, 0);
    rogue.send(&header, &[1; 512]);
    let header = rogue.target.data(itt, 0, 512);
    rogue.send(&header, &[1; 512]);
    rogue.assert_violated(Violation::DataSnWrong);
}

// ---- reads

#[test]
fn data_that_overlaps_or_leaves_a_gap_is_refused() {
    for offset in [0, 256, 511, 513, 1024, u32::MAX] {
        let mut rogue = Rogue::logged_in();
        let itt = rogue.read(2048);
        let header = rogue.target.data(itt, 0, 0);
        rogue.send(&header, &[1; 512]);
        let header = rogue.target.data(itt, 1, offset);
        rogue.send(&header, &[2; 512]);
        rogue.assert_violated(Violation::DataOffsetWrong);
    }
}

#[test]
fn data_beyond_the_expected_length_is_refused() {
    let mut rogue = Rogue::logged_in();
    let itt = rogue.read(512);
    let header = rogue.target.last_data(itt, 0, 0);
    rogue.send(&header, &[1; 516]);
    rogue.assert_violated(Violation::DataTooLong);
    let mut rogue = Rogue::logged_in();
    let itt = rogue.read(512);
    let header = rogue.target.data(itt, 0, 0);
    rogue.send(&header, &[1; 512]);
    let header = rogue.target.data(itt, 1, 512);
    rogue.send(&header, &[1; 4]);
    rogue.assert_violated(Violation::DataTooLong);
}

#[test]
fn data_of_a_write_or_of_no_length_is_refused() {
    let mut rogue = Rogue::logged_in();
    let itt = rogue.write(512);
    let header = rogue.target.data(itt, 0, 0);
    rogue.send(&header, &[1; 512]);
    rogue.assert_violated(Violation::DataNotExpected);
    let mut rogue = Rogue::logged_in();
    let itt = rogue.read(512);
    let header = rogue.target.data(itt, 0, 0);
    rogue.send(&header, &[]);
    rogue.assert_violated(Violation::DataEmpty);
}

#[test]
fn good_status_without_all_data_reports_what_arrived() {
    let mut rogue = Rogue::logged_in();
    let itt = rogue.read(2048);
    let done = rogue.respond(itt);
    assert_eq!((done.status, done.len), (0, 0));
    let itt = rogue.read(2048);
    let header = rogue.target.data(itt, 0, 0);
    rogue.send(&header, &[1; 512]);
    assert_eq!(rogue.respond(itt).len, 512);
    // The residual contradicts what arrived.
    let itt = rogue.read(2048);
    let mut header = rogue.target.last_data(itt, 0, 0);
    header.flags |= UNDERFLOW;
    header.residual.set(1024);
    rogue.send(&header, &[1; 2048]);
    assert_eq!(rogue.done.pop().unwrap().len, 1024);
}

#[test]
fn command_with_more_data_than_expected_fails() {
    let mut rogue = Rogue::logged_in();
    let itt = rogue.read(512);
    let mut header = rogue.target.last_data(itt, 0, 0);
    header.flags |= OVERFLOW;
    rogue.send(&header, &[1; 512]);
    assert_eq!(rogue.done.pop().unwrap().status, u8::MAX);
    let itt = rogue.write(512);
    let mut header = rogue.target.response(itt);
    header.flags |= OVERFLOW;
    rogue.send(&header, &[]);
    assert_eq!(rogue.done.pop().unwrap().status, u8::MAX);
}

#[test]
fn failed_command_is_no_success() {
    for response in [1, 0x80, 0xff] {
        let mut rogue = Rogue::logged_in();
        let itt = rogue.read(512);
        let mut header = rogue.target.response(itt);
        header.response = response;
        rogue.send(&header, &[]);
        assert_eq!(rogue.done.pop().unwrap().status, u8::MAX);
    }
}

// ---- writes

#[test]
fn good_status_without_all_requests_for_data_is_short() {
    let mut rogue = Rogue::with_keys(&R2T_ONLY);
    let itt = rogue.write(2048);
    assert_eq!(rogue.respond(itt).len, 0);
    let itt = rogue.write(2048);
    let header = rogue.target.r2t(itt, 0, 0, 512);
    rogue.send(&header, &[]);
    assert_eq!(rogue.respond(itt).len, 512);
    let itt = rogue.write(2048);
    let header = rogue.target.r2t(itt, 0, 0, 2048);
    rogue.send(&header, &[]);
    let mut header = rogue.target.response(itt);
    header.flags |= UNDERFLOW;
    header.residual.set(512);
    rogue.send(&header, &[]);
    assert_eq!(rogue.done.pop().unwrap().len, 1536);
}

#[test]
fn requests_for_single_bytes_are_ended() {
    let mut rogue = Rogue::with_keys(&R2T_ONLY);
    let itt = rogue.write(2048);
    let mut requests = 0;
    while rogue.end.is_none() {
        let header = rogue.target.r2t(itt, requests, requests, 1);
        rogue.send(&header, &[]);
        requests += 1;
    }
    rogue.assert_violated(Violation::R2tsTooMany);
    assert!((4..=21).contains(&requests), "{requests}");
    // The shortest burst that can be negotiated.
    let mut rogue = Rogue::with_keys(&R2T_ONLY);
    let itt = rogue.write(64 << 10);
    for number in 0..128 {
        let header = rogue.target.r2t(itt, number, number * 512, 512);
        rogue.send(&header, &[]);
    }
    assert_eq!(rogue.respond(itt).len, 64 << 10);
}

#[test]
fn requests_for_data_must_be_in_order_and_within_it() {
    for (number, offset, len, violation) in [
        (1, 0, 512, Violation::R2tSnWrong),
        (0, 512, 512, Violation::R2tInvalid),
        (0, 0, 0, Violation::R2tInvalid),
        (0, 0, 2049, Violation::R2tInvalid),
        (0, 0, u32::MAX, Violation::R2tInvalid),
        (0, u32::MAX, 1, Violation::R2tInvalid),
    ] {
        let mut rogue = Rogue::with_keys(&R2T_ONLY);
        let itt = rogue.write(2048);
        rogue.sent();
        let header = rogue.target.r2t(itt, number, offset, len);
        rogue.send(&header, &[]);
        rogue.assert_violated(violation);
        assert!(rogue.sent().is_empty(), "no data");
    }
    // A second request for the same data, and one without a tag.
    let mut rogue = Rogue::with_keys(&R2T_ONLY);
    let itt = rogue.write(2048);
    let header = rogue.target.r2t(itt, 0, 0, 1024);
    rogue.send(&header, &[]);
    let header = rogue.target.r2t(itt, 1, 0, 1024);
    rogue.send(&header, &[]);
    rogue.assert_violated(Violation::R2tInvalid);
    let mut rogue = Rogue::with_keys(&R2T_ONLY);
    let itt = rogue.write(2048);
    let mut header = rogue.target.r2t(itt, 0, 0, 1024);
    header.ttt.set(NO_TAG);
    rogue.send(&header, &[]);
    rogue.assert_violated(Violation::R2tInvalid);
    // For a read.
    let mut rogue = Rogue::logged_in();
    let itt = rogue.read(512);
    let header = rogue.target.r2t(itt, 0, 0, 512);
    rogue.send(&header, &[]);
    rogue.assert_violated(Violation::R2tInvalid);
}

#[test]
fn unsolicited_data_is_within_the_shorter_burst() {
    let mut rogue = Rogue::with_keys(&[("InitialR2T", "No"), ("MaxBurstLength", "1024")]);
    rogue.write(4096);
    let bytes = rogue.sent();
    let (command, _) = Bhs::read_from_prefix(&bytes).unwrap();
    assert_eq!(command.data_len.get(), 1024);
    assert_eq!(bytes.len(), bhs::LEN + 1024);
}

// ---- sense data, PDUs of other types

#[test]
fn sense_data_of_a_wrong_length_is_refused() {
    for data in [&[0][..], &[0, 1], &[0xff, 0xff, 0x70], &[0, 19, 0x70, 0, 5]] {
        let mut rogue = Rogue::logged_in();
        let itt = rogue.read(512);
        let mut header = rogue.target.response(itt);
        header.status = 2;
        rogue.send(&header, data);
        rogue.assert_violated(Violation::SenseInvalid);
    }
    // Short sense data has no code.
    for (data, key) in [(&[][..], 0), (&[0, 0], 0), (&[0, 1, 0x70], 0), (&[0, 3, 0x70, 0, 3], 3)] {
        let mut rogue = Rogue::logged_in();
        let itt = rogue.read(512);
        let mut header = rogue.target.response(itt);
        header.status = 2;
        rogue.send(&header, data);
        let done = rogue.done.pop().unwrap();
        assert_eq!((done.status, done.sense.key, done.sense.code), (2, key, (0, 0)));
    }
}

#[test]
fn endless_pings_are_ended() {
    for answer in [true, false] {
        let mut rogue = Rogue::logged_in();
        rogue.read(512);
        let ping = pdu(&rogue.target.ping(answer), &[]);
        let many = ping.repeat(1000);
        for _ in 0..200 {
            rogue.receive(&many);
        }
        rogue.assert_violated(Violation::PingsTooMany);
    }
    let mut rogue = Rogue::logged_in();
    for _ in 0..200_000 {
        let message = rogue.target.message(0);
        if rogue.end.is_none() {
            rogue.send(&message, &[]);
        }
    }
    rogue.assert_violated(Violation::PingsTooMany);
}

#[test]
fn pings_and_messages_do_not_count_as_progress() {
    let mut rogue = Rogue::logged_in();
    let itt = rogue.read(512);
    let before = rogue.initiator.received();
    let ping = rogue.target.ping(true);
    rogue.send(&ping, &[7; 100]);
    // With sense data, and of the vendor.
    for event in [0, 255] {
        let message = rogue.target.message(event);
        rogue.send(&message, &[0, 0]);
    }
    assert_eq!(rogue.initiator.received(), before);
    rogue.respond(itt);
    assert!(rogue.initiator.received() > before);
}

#[test]
fn pdu_of_another_type_or_length_ends_the_session() {
    for code in [0x00, 0x01, 0x05, 0x22, 0x23, 0x27, 0x30, 0x3e] {
        let mut rogue = Rogue::logged_in();
        let mut header = of_target(code);
        header.itt.set(NO_TAG);
        rogue.send(&header, &[]);
        rogue.assert_violated(Violation::OpcodeUnexpected);
    }
    let mut rogue = Rogue::logged_in();
    let header = Bhs { ahs_len: 1, ..of_target(opcode::NOP_IN) };
    rogue.receive(header.as_bytes());
    rogue.assert_violated(Violation::AhsUnexpected);
    for len in [(256 << 10) + 1, (1 << 24) - 1] {
        let mut rogue = Rogue::logged_in();
        let mut header = of_target(opcode::NOP_IN);
        header.data_len = len.into();
        rogue.receive(header.as_bytes());
        rogue.assert_violated(Violation::SegmentTooLong);
    }
    // Before the login, no text is longer than 8 KiB.
    let mut rogue = Rogue::new(options());
    let mut header = rogue.target.last_login();
    header.data_len = 8193.into();
    rogue.receive(header.as_bytes());
    rogue.assert_violated(Violation::SegmentTooLong);
}

#[test]
fn wrong_digests_end_the_session() {
    let mut rogue = Rogue::with_keys(&[("HeaderDigest", "CRC32C")]);
    let ping = pdu(&rogue.target.ping(true), &[0; 4]);
    rogue.receive(&ping);
    rogue.assert_violated(Violation::HeaderDigestWrong);
    let mut rogue = Rogue::with_keys(&[("DataDigest", "CRC32C")]);
    let itt = rogue.read(512);
    let header = rogue.target.last_data(itt, 0, 0);
    let bytes = [pdu(&header, &[1; 512]), vec![0; 4]].concat();
    rogue.receive(&bytes);
    rogue.assert_violated(Violation::DataDigestWrong);
}

#[test]
fn end_that_the_target_asks_for_is_reported() {
    for event in [1, 2, 3, 4, 5] {
        let mut rogue = Rogue::logged_in();
        let message = rogue.target.message(event);
        rogue.send(&message, &[]);
        assert_eq!(rogue.end, Some(End::Dropped));
    }
    let mut rogue = Rogue::logged_in();
    let mut header = of_target(opcode::REJECT);
    header.flags = FINAL;
    header.specific[0] = 4;
    let numbers = rogue.target.message(0).numbers;
    header.rest[4..16].copy_from_slice(numbers.as_bytes());
    rogue.send(&header, &[0; 48]);
    assert_eq!(rogue.end, Some(End::Rejected(4)));
}

// ---- discovery

#[test]
fn endless_or_malformed_discovery_is_ended() {
    let discovery = || {
        let mut rogue = Rogue::new(Options { target: None, ..options() });
        let login = rogue.target.last_login();
        rogue.send(&login, &[]);
        rogue
    };
    let mut rogue = discovery();
    for _ in 0..10_000 {
        if rogue.end.is_none() {
            let header = rogue.target.targets(false);
            rogue.send(&header, &[]);
        }
    }
    rogue.assert_violated(Violation::TextTooLong);
    let mut rogue = discovery();
    for _ in 0..20 {
        if rogue.end.is_none() {
            let header = rogue.target.targets(false);
            rogue.send(&header, &vec![b'a'; 256 << 10]);
        }
    }
    rogue.assert_violated(Violation::TextTooLong);
    let mut rogue = discovery();
    let header = rogue.target.targets(true);
    rogue.send(&header, b"TargetName");
    rogue.assert_violated(Violation::TextMalformed);
    // An address before any name.
    let mut rogue = discovery();
    let header = rogue.target.targets(true);
    rogue.send(&header, &keys(&[("TargetAddress", "192.0.2.1:3260,1")]));
    assert_eq!(rogue.targets.as_deref(), Some(&[][..]));
    // In a session with a disk there is no discovery.
    let mut rogue = Rogue::logged_in();
    let header = rogue.target.targets(true);
    rogue.send(&header, &[]);
    rogue.assert_violated(Violation::TagUnknown);
}
