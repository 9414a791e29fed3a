//! INQUIRY: standard data and vital product data pages (SPC-4 §6.6, §7.8; SBC-3).

use export::{Cache, Export, Grant, Identity};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

use crate::limits;
use crate::port::Port;
use crate::wire::inquiry::{
    CMDQUE, Characteristics, DISK, DesignatorHeader, Extended, FORMAT, Limits, NON_ROTATING, PIV,
    PageHeader, Provisioning, REMOVABLE, SIMPSUP, STANDARDS, Standard, THIN, THIRD_PARTY_COPY,
    UGAVALID, V_SUP, VERSION_SPC_4, association, code_set, designator, page, provisioning,
};

/// T10 vendor identification.
const VENDOR: [u8; 8] = *b"STORAGTM";

/// The longest SCSI name in a designator, in bytes.
const MAX_NAME: usize = 255;

/// Returns the standard INQUIRY data of a disk.
pub(crate) fn of_disk(export: &Export, port: &Port) -> Vec<u8> {
    let mut data = standard_data(&export.identity, port, DISK);
    data.removable = if export.removable { REMOVABLE } else { 0 };
    data.as_bytes().to_vec()
}

/// Returns the standard INQUIRY data, with this peripheral qualifier and device type.
pub(crate) fn standard(identity: &Identity, port: &Port, peripheral: u8) -> Vec<u8> {
    standard_data(identity, port, peripheral).as_bytes().to_vec()
}

fn standard_data(identity: &Identity, port: &Port, peripheral: u8) -> Standard {
    let mut data = Standard::new_zeroed();
    data.peripheral = peripheral;
    (data.version, data.format) = (VERSION_SPC_4, FORMAT);
    data.additional_length = 91;
    data.flags = [THIRD_PARTY_COPY, 0, CMDQUE];
    data.vendor = VENDOR;
    data.product = text(&identity.model);
    data.revision = text(&identity.firmware);
    let standards = STANDARDS.into_iter().chain([port.standard]);
    data.versions.iter_mut().zip(standards).for_each(|(version, standard)| version.set(standard));
    data
}

/// Returns a vital product data page, or `None` if it is not supported.
pub(crate) fn vital(grant: &Grant, port: &Port, code: u8) -> Option<Vec<u8>> {
    let export = &**grant.export();
    Some(match code {
        page::SUPPORTED => variable(code, &page::ALL),
        page::SERIAL => variable(code, ascii(&export.identity.serial, 255).as_bytes()),
        page::IDENTIFICATION => variable(code, &designators(&export.identity, port)),
        page::EXTENDED => extended(export).as_bytes().to_vec(),
        page::LIMITS => block_limits(export).as_bytes().to_vec(),
        page::CHARACTERISTICS => characteristics(export).as_bytes().to_vec(),
        page::PROVISIONING => provisioning_page(export).as_bytes().to_vec(),
        _ => return None,
    })
}

/// Returns a page of any length.
fn variable(code: u8, body: &[u8]) -> Vec<u8> {
    let length = U16::new(u16::try_from(body.len()).unwrap_or(u16::MAX));
    let mut page = PageHeader { peripheral: DISK, code, length }.as_bytes().to_vec();
    page.extend_from_slice(body);
    page
}

/// Returns the header of a page of the type `T`.
fn header<T>(code: u8) -> PageHeader {
    let length = size_of::<T>() - size_of::<PageHeader>();
    let length = U16::new(u16::try_from(length).unwrap_or(u16::MAX));
    PageHeader { peripheral: DISK, code, length }
}

/// Replaces what is not printable ASCII by spaces, and cuts off what exceeds `max` bytes.
fn ascii(string: &str, max: usize) -> String {
    let printable = |c: char| if c.is_ascii_graphic() { c } else { ' ' };
    string.chars().map(printable).take(max).collect()
}

/// Returns a text field, padded with spaces (SPC-4 §4.3.1).
fn text<const N: usize>(string: &str) -> [u8; N] {
    let mut field = [b' '; N];
    field.iter_mut().zip(ascii(string, N).bytes()).for_each(|(to, byte)| *to = byte);
    field
}

/// Returns a locally assigned NAA designator (SPC-4 §7.8): 60 bits of the UUID, without the
/// bits that are the same in all UUIDs.
pub(crate) fn naa(identity: &Identity) -> [u8; 8] {
    let [a, b, c, d, e, f, _, g, _, h, ..] = identity.uuid;
    [0x30 | a & 0x0f, b, c, d, e, f, g, h]
}

/// Returns the designators of page 83h. Windows and clusters need the NAA.
fn designators(identity: &Identity, port: &Port) -> Vec<u8> {
    let mut list = Vec::new();
    let binary = code_set::BINARY;
    push(&mut list, binary, association::UNIT | designator::NAA, &naa(identity));
    // Serial numbers are not unique.
    let uuid: String = identity.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let vendor = [&VENDOR[..], uuid.as_bytes()].concat();
    push(&mut list, code_set::ASCII, association::UNIT | designator::VENDOR, &vendor);
    let (protocol, piv) = port.protocol.map_or((0, 0), |protocol| (protocol << 4, PIV));
    if port.relative != 0 {
        let [high, low] = port.relative.to_be_bytes();
        let kind = piv | association::PORT | designator::RELATIVE_PORT;
        push(&mut list, protocol | binary, kind, &[0, 0, high, low]);
    }
    let name = piv | association::PORT | designator::NAME;
    push_name(&mut list, protocol | code_set::UTF_8, name, &port.name);
    let name = piv | association::DEVICE | designator::NAME;
    push_name(&mut list, protocol | code_set::UTF_8, name, &port.device);
    list
}

fn push(list: &mut Vec<u8>, protocol_and_code_set: u8, kind: u8, designator: &[u8]) {
    let length = u8::try_from(designator.len()).unwrap_or(u8::MAX);
    let header = DesignatorHeader { protocol_and_code_set, kind, reserved: 0, length };
    list.extend_from_slice(header.as_bytes());
    list.extend_from_slice(&designator[..length.into()]);
}

/// Appends a SCSI name: terminated by NUL and padded to a multiple of four bytes (SPC-4 §7.8).
fn push_name(list: &mut Vec<u8>, protocol_and_code_set: u8, kind: u8, name: &str) {
    if name.is_empty() || name.len() > MAX_NAME - 3 {
        return;
    }
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize((name.len() + 4) & !3, 0);
    push(list, protocol_and_code_set, kind, &bytes);
}

fn extended(export: &Export) -> Extended {
    let mut data = Extended::new_zeroed();
    data.header = header::<Extended>(page::EXTENDED);
    data.attributes = SIMPSUP;
    data.cache = if export.cache == Cache::Volatile { V_SUP } else { 0 };
    data
}

fn block_limits(export: &Export) -> Limits {
    let physical = export.geometry.physical >> export.geometry.shift();
    let mut data = Limits::new_zeroed();
    data.header = header::<Limits>(page::LIMITS);
    data.compare_and_write = limits::compare_and_write(export.geometry);
    data.granularity.set(u16::try_from(physical).unwrap_or(u16::MAX));
    data.transfer = U32::new(limits::transfer(export.geometry));
    data.prefetch = data.transfer;
    data.write_same.set(limits::write_same(export.geometry).into());
    if let Some(writes) = limits::atomic_writes(export.geometry) {
        let shift = export.geometry.shift();
        data.atomic.set(writes.max() >> shift);
        data.atomic_alignment.set(writes.min() >> shift);
        data.atomic_granularity = data.atomic_alignment;
    }
    if export.discard {
        data.unmap.set(u32::MAX);
        data.unmap_descriptors.set(limits::UNMAP_DESCRIPTORS.into());
        data.unmap_granularity.set(physical);
        data.unmap_alignment.set(UGAVALID);
    }
    data
}

fn characteristics(export: &Export) -> Characteristics {
    let mut data = Characteristics::new_zeroed();
    data.header = header::<Characteristics>(page::CHARACTERISTICS);
    data.rotation.set(if export.rotational { 0 } else { NON_ROTATING });
    data
}

fn provisioning_page(export: &Export) -> Provisioning {
    let mut data = Provisioning::new_zeroed();
    data.header = header::<Provisioning>(page::PROVISIONING);
    if export.discard {
        let zeros = if export.discard_zeroes { provisioning::LBPRZ } else { 0 };
        data.flags = provisioning::LBPU | provisioning::LBPWS | provisioning::LBPWS10 | zeros;
        data.kind = THIN;
    }
    data
}
