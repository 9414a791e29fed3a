//! Signatures of EFI programs (PE Format, "The Attribute Certificate Table"), as far as shim looks at
//! them: whether a program is signed, and by whom. Nothing is verified: firmware and shim do that.

use object::pe::{IMAGE_DIRECTORY_ENTRY_SECURITY, ImageNtHeaders32, ImageNtHeaders64};
use object::read::pe::{ImageNtHeaders, PeFile};
use object::{LittleEndian as LE, Object, ObjectSection};

/// Whether shim would start a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The program is not signed.
    Unsigned,
    /// It is signed by another vendor than shim's.
    Foreign,
    /// It is signed by shim's vendor, or shim has no single vendor.
    Signed,
}

/// Returns whether this shim starts this program.
pub fn trust(shim: &[u8], program: &[u8]) -> Trust {
    let Some(signature) = signature(program) else { return Trust::Unsigned };
    let vendor = section(shim, ".vendor_cert").or_else(|| section(shim, ".vendor_"));
    // The name of the vendor's certificate is that of the issuer in the signature.
    match vendor.and_then(vendor_certificate).and_then(subject) {
        Some(name) if !contains(signature, name) => Trust::Foreign,
        _ => Trust::Signed,
    }
}

/// Returns whether the program is signed.
pub fn is_signed(program: &[u8]) -> bool {
    signature(program).is_some()
}

/// Returns the directory that this GRUB reads its configuration from, such as `EFI/debian`.
pub fn grub_prefix(grub: &[u8]) -> Option<String> {
    let modules = section(grub, "mods")?;
    let wide = PeFile::<ImageNtHeaders64>::parse(grub).is_ok();
    // A magic number; in 64-bit programs padding; the offset of the first object.
    let start = if wide { word(modules, 8)? } else { word(modules, 4)? };
    let mut rest = modules.strip_prefix(b"mimg").and_then(|_| modules.get(start..))?;
    loop {
        let (kind, length) = (word(rest, 0)?, word(rest, 4)?);
        let content = rest.get(8..length)?;
        if kind == PREFIX {
            let text = content.split(|&byte| byte == 0).next()?;
            let text = std::str::from_utf8(text).ok()?;
            // A device may come first, in brackets.
            let path = text.rsplit(')').next().unwrap_or(text).trim_matches('/');
            return Some(path.to_owned());
        }
        rest = rest.get(length..)?;
    }
}

/// Type of the object that holds the prefix (GRUB, `include/grub/kernel.h`).
const PREFIX: usize = 3;

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

/// The first certificate of the table, without its header; `None` if there is none.
fn signature(program: &[u8]) -> Option<&[u8]> {
    fn of<H: ImageNtHeaders>(program: &[u8]) -> Option<&[u8]> {
        let file = PeFile::<H>::parse(program).ok()?;
        let table = file.data_directory(IMAGE_DIRECTORY_ENTRY_SECURITY)?;
        // Unlike in other directories this is an offset in the file.
        let start = usize::try_from(table.virtual_address.get(LE)).ok()?;
        let size = usize::try_from(table.size.get(LE)).ok()?;
        program.get(start..)?.get(..size)?.get(8..).filter(|bytes| start > 0 && !bytes.is_empty())
    }
    of::<ImageNtHeaders64>(program).or_else(|| of::<ImageNtHeaders32>(program))
}

fn section<'a>(program: &'a [u8], name: &str) -> Option<&'a [u8]> {
    fn of<'a, H: ImageNtHeaders>(program: &'a [u8], name: &str) -> Option<&'a [u8]> {
        PeFile::<H>::parse(program).ok()?.section_by_name(name)?.data().ok()
    }
    of::<ImageNtHeaders64>(program, name).or_else(|| of::<ImageNtHeaders32>(program, name))
}

/// The vendor's certificate in shim's table: two sizes, two offsets.
fn vendor_certificate(table: &[u8]) -> Option<&[u8]> {
    let (size, offset) = (word(table, 0)?, word(table, 8)?);
    table.get(offset..)?.get(..size)
}

/// The subject of a certificate, with its header (RFC 5280 §4.1).
fn subject(certificate: &[u8]) -> Option<&[u8]> {
    let (_, content, _) = element(certificate)?;
    let (_, mut fields, _) = element(content)?;
    let has_version = fields.first() == Some(&0xa0);
    // Version, serial number, algorithm, issuer, validity.
    for _ in 0..if has_version { 5 } else { 4 } {
        (_, _, fields) = element(fields)?;
    }
    element(fields).map(|(whole, ..)| whole)
}

/// The first element: the whole of it, its content, and what follows (X.690 §8.1).
fn element(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (header, length) = match *bytes.get(1)? {
        short @ 0..=0x7f => (2, usize::from(short)),
        0x81 => (3, usize::from(*bytes.get(2)?)),
        0x82 => (4, usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        _ => return None,
    };
    let (whole, rest) = bytes.split_at_checked(length.checked_add(header)?)?;
    Some((whole, whole.get(header..)?, rest))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len().max(1)).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efi::fake;

    const NAME: &[u8] = b"\x30\x03ABC";

    /// A certificate with this subject.
    fn certificate(name: &[u8]) -> Vec<u8> {
        let mut fields = b"\xa0\x03\x02\x01\x02\x02\x01\x07\x30\x00\x30\x00\x30\x00".to_vec();
        fields.extend(name);
        let sequence = |content: &[u8]| {
            let length = u8::try_from(content.len()).unwrap();
            [&[0x30, 0x81, length], content].concat()
        };
        sequence(&sequence(&fields))
    }

    fn shim() -> Vec<u8> {
        let certificate = certificate(NAME);
        let size = u32::try_from(certificate.len()).unwrap();
        let mut table: Vec<u8> = [size, 0, 16, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        table.extend(certificate);
        fake::with_section(b".vendor_", &table)
    }

    fn signed(by: &[u8]) -> Vec<u8> {
        fake::signed(&fake::stub(1), by)
    }

    #[test]
    fn program_of_the_vendor_of_shim_is_trusted() {
        assert_eq!(trust(&shim(), &signed(b"xx\x30\x03ABCxx")), Trust::Signed);
        assert_eq!(trust(&shim(), &signed(b"xx\x30\x03ABDxx")), Trust::Foreign);
        assert_eq!(trust(&shim(), &fake::stub(1)), Trust::Unsigned);
        assert_eq!(trust(&fake::stub(1), &signed(b"x")), Trust::Signed, "any vendor");
        assert!(is_signed(&signed(b"x")) && !is_signed(&fake::stub(1)) && !is_signed(b"MZ"));
    }

    #[test]
    fn prefix_of_grub_is_found() {
        let mut modules = b"mimg\0\0\0\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        modules.extend(b"\x02\0\0\0\x0c\0\0\0set\0\x03\0\0\0\x18\0\0\0(hd0)/EFI/debian\0");
        let grub = fake::with_section(b"mods\0\0\0\0", &modules);
        assert_eq!(grub_prefix(&grub).as_deref(), Some("EFI/debian"));
        for cut in 0..modules.len() {
            let grub = fake::with_section(b"mods\0\0\0\0", &modules[..cut]);
            assert_ne!(grub_prefix(&grub).as_deref(), Some("EFI"), "{cut}");
        }
        assert_eq!(grub_prefix(&fake::stub(1)), None);
    }

    #[test]
    fn truncated_certificate_does_not_panic() {
        let whole = certificate(NAME);
        assert_eq!(subject(&whole), Some(NAME));
        for cut in 0..whole.len() {
            assert_eq!(subject(&whole[..cut]), None, "{cut}");
        }
    }
}
