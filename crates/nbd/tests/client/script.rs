//! A client connected to a scripted server.

use std::rc::Rc;

use export::{Account, Buffer, Pool};
use nbd::client::{Client, Done, End, Options, Request, Step, Violation};
use nbd::wire::option;
use nbd::wire::request::{ExtendedRequest, Request as Header};
use zerocopy::FromBytes;

use crate::messages::{self, Form};

/// Size of the export in bytes.
pub(crate) const BYTES: u64 = 1 << 20;

/// A client and its output.
pub(crate) struct Scripted {
    pub(crate) client: Client,
    /// Bytes sent and not checked yet.
    pub(crate) sent: Vec<u8>,
    pub(crate) steps: Vec<Step>,
    memory: Account,
    /// Bytes received and not consumed yet.
    pending: Vec<u8>,
}

impl Scripted {
    pub(crate) fn new(options: Options) -> Self {
        let memory = Pool::new(256 << 20).open();
        let client = Client::new(options);
        let mut script =
            Self { client, sent: Vec::new(), steps: Vec::new(), memory, pending: Vec::new() };
        script.drain();
        script
    }

    /// Creates a client in the transmission phase with these headers, without requests.
    pub(crate) fn in_transmission(form: Option<Form>) -> Self {
        let extended = matches!(form, Some(Form::Extended(_)));
        let options = Options { extended, structured: form.is_some(), ..Options::new("disk") };
        let mut script = Self::new(options);
        script.deliver(&messages::hello());
        if let Some(form) = form {
            let headers = match form {
                Form::Structured => option::STRUCTURED_REPLY,
                Form::Extended(_) => option::EXTENDED_HEADERS,
            };
            script.deliver(&messages::ack(headers));
            script.deliver(&messages::context());
            script.deliver(&messages::ack(option::SET_META_CONTEXT));
        }
        script.deliver(&messages::export(option::GO, BYTES, messages::ALL_FLAGS));
        script.deliver(&messages::ack(option::GO));
        assert!(matches!(script.steps.as_slice(), [Step::Opened(_)]), "{:?}", script.steps);
        script.steps.clear();
        script.sent.clear();
        script
    }

    /// Delivers bytes from the server.
    pub(crate) fn deliver(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let taken = self.client.receive(&self.pending);
        self.pending.drain(..taken);
        assert!(self.pending.len() <= Client::MAX_UNCONSUMED);
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        while let Some(step) = self.client.poll() {
            match step {
                Step::Send(segment) => self.sent.extend(segment.parts().concat()),
                step => self.steps.push(step),
            }
        }
    }

    pub(crate) fn buffer(&self, len: usize) -> Buffer {
        self.memory.take(len).unwrap()
    }

    /// Submits a request and returns its cookie.
    pub(crate) fn submit(&mut self, request: Request) -> u64 {
        self.sent.clear();
        self.client.submit(request, 7).unwrap();
        self.drain();
        match Header::read_from_prefix(&self.sent) {
            Ok((header, _)) if header.magic == nbd::wire::request::MAGIC => header.cookie.get(),
            _ => ExtendedRequest::read_from_prefix(&self.sent).unwrap().0.cookie.get(),
        }
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut buffer = self.buffer(len);
        buffer.bytes_mut().fill(0xee);
        self.submit(Request::Read { offset, buffer })
    }

    pub(crate) fn write(&mut self, offset: u64, len: usize) -> u64 {
        let buffer = Rc::new(self.buffer(len));
        self.submit(Request::Write { offset, buffer, start: 0, len, durable: false })
    }

    /// Returns the completed request, which must be the only step.
    pub(crate) fn done(&mut self) -> Done {
        let mut steps = std::mem::take(&mut self.steps);
        match (steps.pop(), steps.pop()) {
            (Some(Step::Done(done)), None) => done,
            other => panic!("{other:?}"),
        }
    }

    /// Returns the violation that closed the connection.
    pub(crate) fn violation(&self) -> Option<Violation> {
        match self.steps.last() {
            Some(Step::Close(End::Violation(violation))) => Some(*violation),
            _ => None,
        }
    }
}
