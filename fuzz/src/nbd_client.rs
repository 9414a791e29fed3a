//! The NBD client with a hostile server: valid and invalid replies to options and requests, chunks
//! of every type, and arbitrary bytes. Checks that every request completes at most once and returns
//! its buffer, that successful reads are filled, that buffered input is bounded, and that nothing
//! follows the close.

use std::collections::BTreeMap;
use std::rc::Rc;

use export::{Account, Extent, Pool};
use nbd::client::{Client, Done, Headers, Options, Purpose, Request, Start, Step};
use nbd::wire::option;
use nbd::wire::request::{self, ExtendedRequest};
use zerocopy::FromBytes;

use crate::input::Input;
use crate::nbd_client_messages::{self as messages, ALL_FLAGS, Form};

/// Size of the export in bytes.
const BYTES: u64 = 1 << 20;

/// Fills buffers before a read; never sent by the server.
const POISON: u8 = 0xee;

struct Harness<'a> {
    input: Input<'a>,
    client: Client,
    memory: Account,
    form: Option<Form>,
    pending: Vec<u8>,
    sent: Vec<u8>,
    closed: bool,
    live: bool,
    /// Whether the server has sent other sizes and flags for the export.
    over: bool,
    /// Requests in flight: tag, buffer length, requested length.
    waiting: BTreeMap<u32, (usize, u64)>,
    /// Requests sent, newest last: cookie, offset, length.
    asked: Vec<(u64, u64, u64)>,
    next: u32,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    let form = match settings & 3 {
        0 => None,
        1 => Some(Form::Structured),
        _ => Some(Form::Extended(0)),
    };
    let mut options = Options {
        extended: settings & 2 != 0,
        structured: form.is_some(),
        depth: u16::from(settings >> 5) + 1,
        ..Options::new("disk")
    };
    if settings & 8 != 0 {
        (options.start, options.purpose) = starts(input.byte());
    }
    let mut harness = Harness {
        input,
        client: Client::new(options),
        memory: Pool::new(8 << 20).open(),
        form,
        pending: Vec::new(),
        sent: Vec::new(),
        closed: false,
        live: false,
        over: false,
        waiting: BTreeMap::new(),
        asked: Vec::new(),
        next: 0,
    };
    harness.drain();
    if settings & 12 == 0 {
        harness.open();
    }
    for _ in 0..400 {
        if harness.input.is_over() || harness.closed || harness.over {
            break;
        }
        harness.step();
    }
}

fn starts(choice: u8) -> (Start, Purpose) {
    let start = [Start::Cleartext, Start::StartTls, Start::InTls][usize::from(choice) % 3];
    let purpose = [Purpose::Go, Purpose::Info, Purpose::List][usize::from(choice / 3) % 3];
    (start, purpose)
}

impl Harness<'_> {
    /// Completes the negotiation.
    fn open(&mut self) {
        self.come(&messages::hello());
        if let Some(form) = self.form {
            let headers = match form {
                Form::Structured => option::STRUCTURED_REPLY,
                Form::Extended(_) => option::EXTENDED_HEADERS,
            };
            self.come(&messages::ack(headers));
            self.come(&messages::context());
            self.come(&messages::ack(option::SET_META_CONTEXT));
        }
        self.come(&messages::export(option::GO, BYTES, ALL_FLAGS));
        self.come(&messages::ack(option::GO));
        assert!(self.live);
    }

    fn step(&mut self) {
        match self.input.byte() % 10 {
            0 => {
                let len = self.input.byte();
                let bytes = self.input.take(len.into()).to_vec();
                self.come(&bytes);
            }
            1 | 2 => self.submit(),
            3..=5 => self.answer(),
            6 => self.reply(),
            7 => self.land(),
            8 => {
                self.client.tls_established();
                self.drain();
            }
            _ => self.greet(),
        }
    }

    fn greet(&mut self) {
        let hello = if self.input.bit() { messages::hello() } else { messages::hello_with_zeros() };
        self.come(&hello);
    }

    /// Sends a reply to any option.
    fn reply(&mut self) {
        let option = u32::from(self.input.byte() % 13);
        let reply = match self.input.byte() % 7 {
            0 => messages::ack(option),
            1 => messages::context(),
            2 => messages::export(option, self.input.dword().into(), ALL_FLAGS ^ self.input.word()),
            3 => messages::blocks(option, 1 << (self.input.byte() % 20), 4096, self.input.dword()),
            4 => {
                let error = option::ERROR + u32::from(self.input.byte() % 12);
                messages::option_reply(option, error, b"why not")
            }
            _ => {
                let (kind, len) = (self.input.byte() % 6, self.input.byte());
                messages::option_reply(option, kind.into(), self.input.take(len.into()))
            }
        };
        self.come(&reply);
    }

    fn submit(&mut self) {
        let (kind, at, blocks) = (self.input.byte(), self.input.byte(), self.input.byte());
        let (offset, len) = (u64::from(at) * 512, usize::from(blocks % 64) * 512);
        let durable = kind & 0x80 != 0;
        let long = len as u64;
        let Some(mut buffer) = self.memory.take(len) else { return };
        buffer.bytes_mut().fill(POISON);
        let (request, held) = match kind % 7 {
            0..=2 => (Request::Read { offset, buffer }, len),
            3 => {
                let buffer = Rc::new(buffer);
                (Request::Write { offset, buffer, start: 0, len, durable }, 0)
            }
            4 => (Request::Extents { offset, len: long }, 0),
            5 => {
                let (no_hole, fast) = (kind & 0x40 != 0, kind & 0x20 != 0);
                (Request::Zero { offset, len: long, no_hole, fast, durable }, 0)
            }
            _ => (Request::Flush, 0),
        };
        self.sent.clear();
        if self.client.submit(request, self.next).is_ok() {
            assert!(self.live, "request before the export is open");
            self.waiting.insert(self.next, (held, long));
            self.next += 1;
            self.drain();
            self.note();
        }
    }

    /// Records requests sent by the client, and checks that they are well-formed.
    fn note(&mut self) {
        let (cookie, offset, len) = match self.form {
            Some(Form::Extended(_)) => {
                let (header, _) = ExtendedRequest::read_from_prefix(&self.sent).unwrap();
                assert_eq!(header.magic, request::EXTENDED_MAGIC);
                (header.cookie.get(), header.offset.get(), header.len.get())
            }
            _ => {
                let (header, _) = request::Request::read_from_prefix(&self.sent).unwrap();
                assert_eq!(header.magic, request::MAGIC);
                (header.cookie.get(), header.offset.get(), header.len.get().into())
            }
        };
        assert!(offset + len <= BYTES, "request beyond the end");
        self.asked.push((cookie, offset, len));
    }

    /// Chooses a request, mostly one that was sent.
    fn some(&mut self) -> (u64, u64, u64) {
        let choice = usize::from(self.input.byte());
        match self.asked.len() {
            0 => (choice as u64, 0, 512),
            count if choice != 255 => self.asked[count - 1 - choice % count.min(8)],
            _ => (self.input.dword().into(), 0, 512),
        }
    }

    /// Sends a reply or a chunk to any request.
    fn answer(&mut self) {
        let (cookie, offset, len) = self.some();
        let (kind, flags) = (self.input.byte(), u16::from(self.input.bit()));
        let Some(form) = self.form.filter(|_| kind & 0xf0 != 0xf0) else {
            let error = u32::from(kind & 1) * 5;
            let data = vec![1; if kind & 2 == 0 { len.min(65536) as usize } else { 0 }];
            return self.come_in_parts(&messages::simple(cookie, error, &data));
        };
        let form = match form {
            Form::Structured => form,
            Form::Extended(_) => Form::Extended(offset),
        };
        let at = offset + u64::from(self.input.byte() % 4) * len / 4;
        let part = len.min(65536) * u64::from(self.input.byte() % 5) / 4;
        let part = u32::try_from(part).unwrap_or(0);
        let chunk = match kind % 7 {
            0 | 1 => messages::data(form, flags, cookie, at, &vec![1; part as usize]),
            2 => messages::hole(form, flags, cookie, at, part),
            3 => messages::empty_reply(form, cookie),
            4 => messages::error(form, flags, cookie, 5, (kind & 8 != 0).then_some(at)),
            5 => {
                let told: Vec<(u64, u32)> = (0..self.input.byte() % 9)
                    .map(|_| (u64::from(self.input.word()), u32::from(self.input.byte())))
                    .collect();
                messages::block_status(form, flags, cookie, &told)
            }
            _ => {
                let kind = self.input.word();
                let len = self.input.byte();
                let payload = self.input.take(len.into()).to_vec();
                messages::chunk(form, kind, flags, cookie, &payload)
            }
        };
        self.come_in_parts(&chunk);
    }

    fn come_in_parts(&mut self, bytes: &[u8]) {
        let cut = if self.input.bit() { self.input.below(bytes.len()) } else { bytes.len() };
        self.come(&bytes[..cut]);
        self.come(&bytes[cut..]);
    }

    fn land(&mut self) {
        if !self.pending.is_empty() || self.closed {
            return;
        }
        let Some(mut landing) = self.client.direct_recv() else { return };
        assert!(landing.start < landing.end && landing.end <= landing.buffer.len());
        let got = self.input.below(landing.end - landing.start + 1);
        landing.buffer.bytes_mut()[landing.start..landing.start + got].fill(1);
        self.client.direct_received(landing, got);
        self.drain();
    }

    fn come(&mut self, bytes: &[u8]) {
        if self.closed {
            return;
        }
        let harmless = bytes.iter().map(|&byte| if byte == POISON { POISON + 1 } else { byte });
        self.pending.extend(harmless);
        let taken = self.client.receive(&self.pending);
        assert!(taken <= self.pending.len());
        self.pending.drain(..taken);
        assert!(self.pending.len() <= Client::MAX_UNCONSUMED, "too much input unconsumed");
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(step) = self.client.poll() {
            assert!(!self.closed, "step after the close");
            match step {
                Step::Send(segment) => self.sent.extend(segment.parts().concat()),
                Step::Done(done) => self.done(&done),
                Step::Opened(opened) => {
                    assert!(i64::try_from(opened.bytes).is_ok());
                    assert!(opened.maximum.is_multiple_of(opened.minimum));
                    self.live = true;
                    self.over = opened.bytes != BYTES;
                    self.form = match opened.headers {
                        Headers::Simple => None,
                        Headers::Structured => Some(Form::Structured),
                        Headers::Extended => Some(Form::Extended(0)),
                    };
                }
                Step::Listed(listed) => assert!(listed.len() <= 1025),
                Step::Close(_) => self.closed = true,
                Step::Refused(_) | Step::StartTls => {}
            }
        }
    }

    fn done(&mut self, done: &Done) {
        let (held, wanted) = self.waiting.remove(&done.tag).expect("request in flight");
        let buffer = done.buffer.as_ref();
        assert_eq!(buffer.map_or(0, |buffer| buffer.len()), held, "its own buffer");
        if done.result.is_ok() {
            let filled = buffer.is_none_or(|buffer| !buffer.bytes().contains(&POISON));
            assert!(filled, "successful read not filled");
        }
        let told: u64 = done.extents.iter().map(|extent: &Extent| extent.len).sum();
        assert!(told <= wanted && done.extents.iter().all(|extent| extent.len != 0));
    }
}
