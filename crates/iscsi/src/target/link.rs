//! Sequence numbers of a connection, and the encoding of what it sends (RFC 7143 §4.2.2).

use std::rc::Rc;
use std::sync::Arc;

use export::{Body, Buffer, Head, Segment};
use zerocopy::{FromBytes, IntoBytes};

use super::outbox::Outbox;
use crate::wire::bhs::{Bhs, DataIn, FINAL, LEN, Numbers, Reject, STATUS, U24, of_target};
use crate::wire::digest::crc32c;
use crate::wire::text::MAX_TEXT;
use crate::wire::{NO_TAG, opcode, padding};

/// One direction of a connection: from the target to the initiator.
#[derive(Debug)]
pub(super) struct Link {
    stat_sn: u32,
    /// The next command of the initiator.
    pub(super) exp_cmd_sn: u32,
    /// How many commands may follow the one before `exp_cmd_sn`.
    pub(super) window: u32,
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    /// The longest data segment that the initiator receives; a multiple of four.
    pub(super) max_send: usize,
    /// The longest sequence of Data-In PDUs; a multiple of four.
    pub(super) max_burst: u32,
}

/// Data of a PDU: a body, and which bytes of it.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) body: Body,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Data {
    pub(super) const NONE: Self = Self { body: Body::None, start: 0, len: 0 };

    /// Returns all of `bytes`.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self { body: Body::Shared(padded(bytes)), start: 0, len }
    }
}

/// Returns `bytes`, with padding behind them.
pub(super) fn padded(mut bytes: Vec<u8>) -> Arc<[u8]> {
    bytes.resize(bytes.len() + padding(bytes.len()), 0);
    bytes.into()
}

impl Link {
    /// Returns the state at the first request of a login.
    pub(super) fn new(cmd_sn: u32, exp_stat_sn: u32, window: u32) -> Self {
        Self {
            stat_sn: exp_stat_sn,
            exp_cmd_sn: cmd_sn,
            window,
            header_digest: false,
            data_digest: false,
            max_send: MAX_TEXT,
            max_burst: 1 << 18,
        }
    }

    /// Sets the longest data segment that the initiator receives.
    pub(super) fn set_max_send(&mut self, len: u32) {
        self.max_send = len as usize & !3;
    }

    /// Returns the numbers of a PDU without a status.
    pub(super) fn numbers(&self) -> Numbers {
        Numbers {
            stat_sn: self.stat_sn.into(),
            exp_cmd_sn: self.exp_cmd_sn.into(),
            max_cmd_sn: self.exp_cmd_sn.wrapping_add(self.window).wrapping_sub(1).into(),
        }
    }

    /// Returns the numbers of a PDU with a status.
    pub(super) fn next_numbers(&mut self) -> Numbers {
        let numbers = self.numbers();
        self.stat_sn = self.stat_sn.wrapping_add(1);
        numbers
    }

    /// Sends a PDU. `data` is at most [`Link::max_send`] bytes, with its padding behind it.
    pub(super) fn send(&self, header: &impl PduHeader, data: Data, out: &mut Outbox) {
        let Data { body, start, len } = data;
        let mut bytes = *header.as_array();
        // DataSegmentLength.
        bytes[5..8].copy_from_slice(U24::from(u32::try_from(len).unwrap_or(0)).as_bytes());
        let mut head = Head::new(&bytes);
        if self.header_digest {
            out.send(Segment::head(head));
            head = Head::new(&crc32c(&[&bytes]));
        }
        let segment = Segment::with_body(head, body, start, len + padding(len));
        out.send(match self.data_digest && len != 0 {
            true => {
                let digest = crc32c(&[segment.body()]);
                segment.with_tail(digest)
            }
            false => segment,
        });
    }

    /// Rejects a PDU (RFC 7143 §11.17).
    pub(super) fn reject(&mut self, header: &Bhs, reason: u8, out: &mut Outbox) {
        let mut reject = Reject::of(&of_target(opcode::REJECT));
        (reject.reason, reject.numbers) = (reason, self.next_numbers());
        self.send(&reject, Data::of(header.as_bytes().to_vec()), out);
    }

    /// Sends the first `len` bytes of `source` as Data-In PDUs. `end` is set if they are the last of
    /// the task, and comes with the last PDU.
    pub(super) fn send_data(
        &mut self,
        progress: &mut DataInProgress,
        source: Source,
        len: usize,
        end: Option<End>,
        out: &mut Outbox,
    ) {
        let mut source = source.split_if(len > self.next_len(progress, len));
        let mut at = 0;
        loop {
            let piece = self.next_len(progress, len - at);
            let is_last = at + piece >= len;
            let next = progress.offset.wrapping_add(u32::try_from(piece).unwrap_or(0));
            let mut header = DataIn::of(&of_target(opcode::DATA_IN));
            header.flags = if next % self.max_burst == 0 { FINAL } else { 0 };
            (header.itt, header.ttt) = (progress.itt.into(), NO_TAG.into());
            (header.data_sn, header.offset) = (progress.data_sn.into(), progress.offset.into());
            header.numbers = self.numbers();
            if let Some(end) = end.filter(|_| is_last) {
                header.flags = FINAL | end.flags;
                (header.status, header.residual) = (end.status, end.residual.into());
                if end.flags & STATUS != 0 {
                    header.numbers = self.next_numbers();
                }
            }
            self.send(&header, source.part(at, piece), out);
            (progress.data_sn, progress.offset) = (progress.data_sn.wrapping_add(1), next);
            at += piece;
            if is_last {
                return;
            }
        }
    }

    /// Returns the length of the next Data-In PDU if `left` bytes are to be sent. No PDU crosses the
    /// end of a sequence of MaxBurstLength.
    fn next_len(&self, progress: &DataInProgress, left: usize) -> usize {
        let burst = self.max_burst - progress.offset % self.max_burst;
        left.min(self.max_send).min(burst as usize)
    }
}

/// How much of the data of a task has been sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DataInProgress {
    pub(super) itt: u32,
    pub(super) data_sn: u32,
    pub(super) offset: u32,
}

/// What comes with the last Data-In PDU of a task.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// [`STATUS`] and the flags of the residual.
    pub(super) flags: u8,
    pub(super) status: u8,
    pub(super) residual: u32,
}

/// Data of several PDUs.
#[derive(Debug)]
pub(super) enum Source {
    /// A buffer that is sent as a whole.
    Whole(Option<Buffer>),
    /// A buffer that is sent in parts.
    Parts(Rc<Buffer>),
    /// Bytes with padding behind them.
    Bytes(Arc<[u8]>),
}

impl Source {
    fn split_if(self, split: bool) -> Self {
        match self {
            Self::Whole(Some(buffer)) if split => Self::Parts(Rc::new(buffer)),
            source => source,
        }
    }

    fn part(&mut self, start: usize, len: usize) -> Data {
        let body = match self {
            Self::Whole(buffer) => buffer.take().map_or(Body::None, Body::Whole),
            Self::Parts(buffer) => Body::Part(buffer.clone()),
            Self::Bytes(bytes) => Body::Shared(bytes.clone()),
        };
        Data { body, start, len }
    }
}

/// A header of 48 bytes.
pub(super) trait PduHeader: IntoBytes + zerocopy::Immutable {
    fn as_array(&self) -> &[u8; LEN] {
        // All headers have this length.
        const ZEROS: &[u8; LEN] = &[0; LEN];
        <[u8; LEN]>::ref_from_bytes(self.as_bytes()).unwrap_or(ZEROS)
    }
}

impl<T: IntoBytes + zerocopy::Immutable> PduHeader for T {}
