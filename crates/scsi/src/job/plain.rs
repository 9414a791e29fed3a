//! Commands of at most one disk request, without data of blocks.

use std::rc::Rc;

use export::{Buffer, Fault, Grant, Op};

use super::work::{Action, DiskRequest, Work};
use crate::limits;
use crate::mode;
use crate::range::Blocks;
use crate::response::Response;
use crate::settings::Settings;

/// SYNCHRONIZE CACHE, PRE-FETCH.
#[derive(Debug)]
pub(super) struct Plain {
    /// The request, until it is made.
    request: Option<DiskRequest>,
    op: Op,
}

impl Plain {
    fn new(op: Op, range: Blocks) -> Self {
        Self { request: Some(DiskRequest::new(op, range)), op }
    }

    /// Flushes the disk.
    pub(super) fn flush() -> Self {
        Self::new(Op::Flush, Blocks { lba: 0, blocks: 0 })
    }

    /// SYNCHRONIZE CACHE flushes more than the range (SBC-3).
    pub(super) fn synchronize(grant: &Grant, range: Blocks) -> Result<Self, Response> {
        range.check_up_to(grant, Op::Read, u32::MAX)?;
        Ok(Self::flush())
    }

    /// PRE-FETCH of no blocks is one to the end of the disk (SBC-3).
    pub(super) fn pre_fetch(grant: &Grant, range: Blocks) -> Result<Self, Response> {
        range.check(grant, Op::Prefetch)?;
        if range.blocks != 0 {
            return Ok(Self::new(Op::Prefetch, range));
        }
        let rest = grant.export().blocks().saturating_sub(range.lba);
        let limit = limits::transfer(grant.export().geometry);
        let blocks = u32::try_from(rest).map_or(limit, |rest| rest.min(limit));
        Ok(Self::new(Op::Prefetch, Blocks { blocks, ..range }))
    }
}

impl Work for Plain {
    fn next(&mut self, _grant: &Grant) -> Action {
        self.request.take().map_or_else(|| Action::End(Response::good()), Action::Request)
    }

    fn tolerates(&mut self, fault: Fault) -> bool {
        self.op == Op::Prefetch && fault == Fault::Unsupported
    }
}

/// Ejection: a flush first.
#[derive(Debug)]
pub(super) struct Eject {
    flush: Plain,
    settings: Rc<Settings>,
}

impl Eject {
    pub(super) fn new(settings: Rc<Settings>) -> Self {
        Self { flush: Plain::flush(), settings }
    }
}

impl Work for Eject {
    fn next(&mut self, grant: &Grant) -> Action {
        let action = self.flush.next(grant);
        if matches!(action, Action::End(_)) {
            self.settings.ejected.set(true);
        }
        action
    }
}

/// MODE SELECT.
#[derive(Debug)]
pub(super) struct ModeSelect {
    ten: bool,
    length: u32,
    list: Option<Buffer>,
    settings: Rc<Settings>,
}

impl ModeSelect {
    pub(super) fn new(ten: bool, length: u32, settings: Rc<Settings>) -> Self {
        Self { ten, length, list: None, settings }
    }
}

impl Work for ModeSelect {
    fn data_out(&self) -> u64 {
        self.length.into()
    }

    fn next(&mut self, grant: &Grant) -> Action {
        match (&self.list, self.length) {
            (None, 0) => Action::End(Response::good()),
            (None, length) => Action::Receive(usize::try_from(length).unwrap_or(usize::MAX)),
            (Some(list), _) => {
                let result =
                    mode::select(grant, self.ten, list.bytes(), self.settings.protected.get());
                let result = result.map(|protected| self.settings.protected.set(protected));
                Action::End(result.map_or_else(Response::check, |()| Response::good()))
            }
        }
    }

    fn received(&mut self, buffer: Buffer) {
        self.list = Some(buffer);
    }
}
