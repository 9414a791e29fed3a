//! Where the next bytes of a read come from.

use export::{Fault, Op, RescueState, Source};

use super::backing::zeros;
use super::{Answer, Answered, Job, Phase, overlay, rescue};

impl Job {
    /// Finds out how the next bytes of a read are read. Those of a failing disk are fetched by a [`BlockingOp`],
    /// unless they are kept in the image. A block that is known to be bad fails the request.
    pub(super) fn prepare_read(&mut self) {
        self.skip_zeros();
        if self.phase != Phase::Transfer || self.admitted.op() != Op::Read {
            return;
        }
        let (start, end) = self.left();
        match rescue::state(&self.admitted, start, end) {
            Some((RescueState::Unknown, len)) => self.phase = Phase::Fetch { len },
            Some((RescueState::Bad, _)) => self.end(Err(Fault::Io)),
            Some((RescueState::Kept, _)) | None => {}
        }
    }

    /// Returns the bytes of the export that have not been read or written.
    pub(super) fn left(&self) -> (u64, u64) {
        let (offset, len) = (self.admitted.offset(), self.admitted.len());
        (offset.saturating_add(self.done), offset.saturating_add(len))
    }

    /// Takes bytes that were read from a failing disk.
    pub(super) fn fetched(&mut self, answer: Answer) {
        let data = match answer {
            Ok(Answered::Data(data)) => data,
            Ok(Answered::Done | Answered::Extents(_)) => return self.end(Err(Fault::Io)),
            Err(fault) => return self.end(Err(fault)),
        };
        self.phase = Phase::Transfer;
        if !data.is_empty() {
            let done = usize::try_from(self.done).unwrap_or(usize::MAX);
            let into = self.admitted.bytes_mut().get_mut(done..).unwrap_or_default();
            let len = data.len().min(into.len());
            into.iter_mut().zip(data).for_each(|(into, byte)| *into = byte);
            self.progress(len as u64);
        }
        self.prepare_read();
    }

    /// Skips the blocks of a read that are zeros which no file holds.
    fn skip_zeros(&mut self) {
        while self.phase == Phase::Transfer && self.admitted.op() == Op::Read {
            let (start, end) = self.left();
            let len = zeros(&self.admitted, start, end);
            if len == 0 {
                return;
            }
            let done = usize::try_from(self.done).unwrap_or(usize::MAX);
            let bytes = self.admitted.bytes_mut().get_mut(done..).unwrap_or_default();
            let len = usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len()));
            bytes.get_mut(..len).unwrap_or_default().fill(0);
            self.progress(len as u64);
        }
    }

    /// Returns the source of the byte at `at`, and for how many of the bytes up to `end` it is the same.
    fn run_of(&self, at: u64, end: u64) -> (Source, u64) {
        overlay::run(self.admitted.export(), self.admitted.state(), at, end)
    }

    /// Returns whether the request reads blocks of the disk itself, under an overlay.
    pub(crate) fn reads_base(&self) -> bool {
        let (mut at, len) = (self.admitted.offset(), self.admitted.len());
        let end = at + len;
        while at < end {
            let (source, run) = self.run_of(at, end);
            if source == Source::Base {
                return true;
            }
            at += run;
        }
        false
    }
}
