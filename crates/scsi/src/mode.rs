//! MODE SENSE and MODE SELECT (SPC-4 §6.9 to §6.12, §7.5; SBC-3). The only parameter that can be
//! changed is SWP, by which an initiator protects the disk from its own writes.

use export::{Access, Cache, Grant};
use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::capacity::{block_length, short};
use crate::cdb::ModeSense;
use crate::wire::mode::{
    ALL_SUBPAGES, BlockDescriptor, DEXCPT, DPOFUA, GLTSD, Header6, Header10, REORDERED, SWP,
    SWP_AT, WCE, WP, page,
};
use crate::wire::sense::Sense;

/// Page control: current values.
const CURRENT: u8 = 0;
/// Page control: changeable values.
const CHANGEABLE: u8 = 1;
/// Page control: saved values.
const SAVED: u8 = 3;

/// All mode pages, in ascending order.
const PAGES: [u8; 3] = [page::CACHING, page::CONTROL, page::EXCEPTIONS];

/// Returns a page with its current values. With SWP unset, those are the defaults.
fn current(grant: &Grant, code: u8, protected: bool) -> Vec<u8> {
    match code {
        page::CACHING => {
            let mut page = [0; 20];
            let wce = if grant.export().cache == Cache::Volatile { WCE } else { 0 };
            page[..3].copy_from_slice(&[code, 18, wce]);
            page.to_vec()
        }
        page::CONTROL => {
            let swp = if protected { SWP } else { 0 };
            vec![code, 10, GLTSD, REORDERED, swp, 0, 0, 0, 0, 0, 0, 0]
        }
        _ => vec![code, 10, DEXCPT, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    }
}

/// Returns the data of MODE SENSE. `protected`: SWP is set.
pub(crate) fn sense(grant: &Grant, mode: ModeSense, protected: bool) -> Result<Vec<u8>, Sense> {
    let all = mode.page == page::ALL;
    let subpages = mode.subpage == 0 || all && mode.subpage == ALL_SUBPAGES;
    if !(all || PAGES.contains(&mode.page)) || !subpages {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    if mode.control == SAVED {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    let mut body = if mode.descriptors { descriptor(grant).to_vec() } else { Vec::new() };
    let descriptors = body.len();
    for code in PAGES.into_iter().filter(|&code| all || code == mode.page) {
        let mut page = current(grant, code, protected && mode.control == CURRENT);
        if mode.control == CHANGEABLE {
            page[2..].fill(0);
            page[SWP_AT] = if code == page::CONTROL { SWP } else { 0 };
        }
        body.extend_from_slice(&page);
    }
    let mut data = header(grant, mode.ten, descriptors, body.len(), protected);
    data.extend_from_slice(&body);
    Ok(data)
}

fn header(grant: &Grant, ten: bool, descriptors: usize, body: usize, protected: bool) -> Vec<u8> {
    let protected = protected || grant.access() == Access::ReadOnly;
    let device_specific = if protected { WP | DPOFUA } else { DPOFUA };
    if ten {
        let mut header = Header10::new_zeroed();
        let length = size_of::<Header10>() - size_of::<U16>() + body;
        header.length.set(u16::try_from(length).unwrap_or(u16::MAX));
        header.device_specific = device_specific;
        header.descriptors.set(u16::try_from(descriptors).unwrap_or(u16::MAX));
        return header.as_bytes().to_vec();
    }
    let length = u8::try_from(size_of::<Header6>() - 1 + body).unwrap_or(u8::MAX);
    let descriptors = u8::try_from(descriptors).unwrap_or(u8::MAX);
    Header6 { length, medium: 0, device_specific, descriptors }.as_bytes().to_vec()
}

fn descriptor(grant: &Grant) -> [u8; size_of::<BlockDescriptor>()] {
    let export = grant.export();
    let (blocks, block) = (short(export.blocks()), block_length(export));
    zerocopy::transmute!(BlockDescriptor { blocks, reserved: 0, block })
}

/// Checks the parameter list of MODE SELECT: apart from SWP, it may only set what is set already.
/// Returns SWP, which is `protected` now.
pub(crate) fn select(
    grant: &Grant,
    ten: bool,
    list: &[u8],
    protected: bool,
) -> Result<bool, Sense> {
    if list.is_empty() {
        return Ok(protected);
    }
    let (descriptors, rest) = if ten {
        let (header, rest) =
            Header10::ref_from_prefix(list).map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
        (usize::from(header.descriptors.get()), rest)
    } else {
        let (header, rest) =
            Header6::ref_from_prefix(list).map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
        (usize::from(header.descriptors), rest)
    };
    let (given, mut pages) =
        rest.split_at_checked(descriptors).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    if !given.is_empty() && !is_current_descriptor(grant, given) {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    let mut new = protected;
    while let Some((&code, after)) = pages.split_first() {
        let length = after.first().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let (page, rest) =
            pages.split_at_checked(usize::from(*length) + 2).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        if code == page::CONTROL {
            new = page.get(SWP_AT).is_some_and(|byte| byte & SWP != 0);
        }
        if !PAGES.contains(&code) || current(grant, code, new) != page {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
        pages = rest;
    }
    Ok(new)
}

/// Returns whether a block descriptor has the current block length, and the current number of blocks
/// or zero.
fn is_current_descriptor(grant: &Grant, bytes: &[u8]) -> bool {
    let Ok(given) = BlockDescriptor::ref_from_bytes(bytes) else { return false };
    let export = grant.export();
    let same = given.blocks == short(export.blocks()) || given.blocks.get() == 0;
    same && given.block == block_length(export)
}
