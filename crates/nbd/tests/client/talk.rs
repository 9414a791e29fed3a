//! A client, and a test in the server's place.

use std::rc::Rc;

use export::{Account, Buffer, Pool};
use nbd::client::{Client, Done, End, Options, Request, Step, Violation};
use nbd::wire::option;
use nbd::wire::request::{ExtendedRequest, Request as Header};
use zerocopy::FromBytes;

use crate::says::{self, Form};

/// Bytes of the export.
pub(crate) const BYTES: u64 = 1 << 20;

/// A client and what it did.
pub(crate) struct Talk {
    pub(crate) client: Client,
    /// What it said and was not looked at yet.
    pub(crate) said: Vec<u8>,
    pub(crate) steps: Vec<Step>,
    memory: Account,
    /// What it was told and did not take.
    stage: Vec<u8>,
}

impl Talk {
    pub(crate) fn new(options: Options) -> Self {
        let memory = Pool::new(256 << 20).open();
        let client = Client::new(options);
        let mut talk =
            Self { client, said: Vec::new(), steps: Vec::new(), memory, stage: Vec::new() };
        talk.drain();
        talk
    }

    /// One that is at the export of [`BYTES`], with these headers, and has said nothing yet.
    pub(crate) fn live(form: Option<Form>) -> Self {
        let extended = matches!(form, Some(Form::Extended(_)));
        let options = Options { extended, structured: form.is_some(), ..Options::new("disk") };
        let mut talk = Self::new(options);
        talk.hear(&says::hello());
        if let Some(form) = form {
            let headers = match form {
                Form::Structured => option::STRUCTURED_REPLY,
                Form::Extended(_) => option::EXTENDED_HEADERS,
            };
            talk.hear(&says::ack(headers));
            talk.hear(&says::context());
            talk.hear(&says::ack(option::SET_META_CONTEXT));
        }
        talk.hear(&says::export(option::GO, BYTES, says::ABLE));
        talk.hear(&says::ack(option::GO));
        assert!(matches!(talk.steps.as_slice(), [Step::Opened(_)]), "{:?}", talk.steps);
        talk.steps.clear();
        talk.said.clear();
        talk
    }

    /// The server says this.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        self.stage.extend_from_slice(bytes);
        let taken = self.client.receive(&self.stage);
        self.stage.drain(..taken);
        assert!(self.stage.len() <= Client::LONGEST);
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        while let Some(step) = self.client.poll() {
            match step {
                Step::Send(segment) => self.said.extend(segment.parts().concat()),
                step => self.steps.push(step),
            }
        }
    }

    pub(crate) fn buffer(&self, len: usize) -> Buffer {
        self.memory.take(len).unwrap()
    }

    /// Submits a request, and gives its cookie.
    pub(crate) fn ask(&mut self, request: Request) -> u64 {
        self.said.clear();
        self.client.submit(request, 7).unwrap();
        self.drain();
        match Header::read_from_prefix(&self.said) {
            Ok((header, _)) if header.magic == nbd::wire::request::MAGIC => header.cookie.get(),
            _ => ExtendedRequest::read_from_prefix(&self.said).unwrap().0.cookie.get(),
        }
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut buffer = self.buffer(len);
        buffer.bytes_mut().fill(0xee);
        self.ask(Request::Read { offset, buffer })
    }

    pub(crate) fn write(&mut self, offset: u64, len: usize) -> u64 {
        let buffer = Rc::new(self.buffer(len));
        self.ask(Request::Write { offset, buffer, start: 0, len, durable: false })
    }

    /// The request that ended, the only thing that happened.
    pub(crate) fn done(&mut self) -> Done {
        let mut steps = std::mem::take(&mut self.steps);
        match (steps.pop(), steps.pop()) {
            (Some(Step::Done(done)), None) => done,
            other => panic!("{other:?}"),
        }
    }

    /// The rule that the server broke.
    pub(crate) fn violation(&self) -> Option<Violation> {
        match self.steps.last() {
            Some(Step::Close(End::Violation(violation))) => Some(*violation),
            _ => None,
        }
    }
}
