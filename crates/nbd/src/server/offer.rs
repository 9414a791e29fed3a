//! How an export is described to clients: size, flags, block sizes, names.

use export::{Access, Export, Grant};
use zerocopy::IntoBytes;

use super::MAX_PAYLOAD;
use super::reply::Mode;
use crate::wire::description;
use crate::wire::option::{InfoBlockSize, InfoExport, ServerEntry, info};
use crate::wire::request::flags::{
    CAN_MULTI_CONN, HAS_FLAGS, READ_ONLY, ROTATIONAL, SEND_CACHE, SEND_DF, SEND_FAST_ZERO,
    SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES,
};

/// Minimum for the preferred block size, in bytes (NBD, Block size constraints).
const PREFERRED: u32 = 4096;

/// Maximum number of characters of the export name in its description.
const NAME: usize = 512;

/// Returns the transmission flags (NBD, Transmission flags). CAN_MULTI_CONN holds because all
/// connections share one descriptor.
pub(super) fn flags(grant: &Grant, mode: Mode) -> u16 {
    let export = grant.export();
    let when = |is: bool, flag: u16| if is { flag } else { 0 };
    let writable = grant.access() == Access::Writable && export.access == Access::Writable;
    HAS_FLAGS
        | SEND_FLUSH
        | SEND_FUA
        | CAN_MULTI_CONN
        | SEND_CACHE
        | when(!writable, READ_ONLY)
        | when(export.rotational, ROTATIONAL)
        | when(writable && export.discard, SEND_TRIM)
        | when(writable, SEND_WRITE_ZEROES | SEND_FAST_ZERO)
        | when(mode != Mode::Simple, SEND_DF)
}

/// Encodes the information of that `kind`. Returns `None` if the type is unknown.
pub(super) fn information(grant: &Grant, mode: Mode, kind: u16) -> Option<Vec<u8>> {
    let export = grant.export();
    match kind {
        info::EXPORT => {
            Some(InfoExport::new(export.bytes(), flags(grant, mode)).as_bytes().to_vec())
        }
        info::NAME => Some(string_info(kind, &export.short)),
        info::DESCRIPTION => Some(string_info(kind, &describe(export))),
        info::BLOCK_SIZE => Some(block_size(export).as_bytes().to_vec()),
        _ => None,
    }
}

/// Encodes the list entry of an export.
pub(super) fn entry(export: &Export) -> Vec<u8> {
    ServerEntry { name: &export.short, details: &export.name }.emit()
}

/// Formats the description: name and UUID, as `/dev/sda urn:uuid:6d1c3b02-…` (RFC 9562 §4). A
/// client that reconnects recognizes the disk by the UUID.
fn describe(export: &Export) -> String {
    let urn = description::urn(&export.identity.uuid);
    let name: String = export.name.chars().take(NAME).collect();
    format!("{name} {urn}")
}

fn string_info(kind: u16, string: &str) -> Vec<u8> {
    [&kind.to_be_bytes(), crate::wire::cut(string).as_bytes()].concat()
}

fn block_size(export: &Export) -> InfoBlockSize {
    let geometry = export.geometry;
    // QEMU rejects a size that is not a multiple of the minimum block size.
    let whole = export.bytes().is_multiple_of(geometry.block().into());
    let smallest = if whole { geometry.block() } else { 1 };
    InfoBlockSize::new(smallest, geometry.physical.max(PREFERRED), MAX_PAYLOAD)
}
