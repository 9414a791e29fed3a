//! Prepares the program for an image: checks that it is static, and strips it.

use crate::error::Error;
use object::elf::{FileHeader64, PT_INTERP};
use object::endian::LittleEndian;
use object::pod::bytes_of_mut;
use object::read::elf::{FileHeader, ProgramHeader};

/// Strips symbols and the section table, which follow the loaded segments.
///
/// # Errors
/// Fails if it is not a static 64-bit ELF program.
pub fn strip(program: &[u8]) -> Result<Vec<u8>, Error> {
    let order = LittleEndian;
    let parsed = FileHeader64::<LittleEndian>::parse(program).map_err(|_| Error::NoProgram)?;
    let segments = parsed.program_headers(order, program).map_err(|_| Error::NoProgram)?;
    if segments.iter().any(|segment| segment.p_type(order) == PT_INTERP) {
        return Err(Error::Dynamic);
    }
    let end = |segment: &<FileHeader64<LittleEndian> as FileHeader>::ProgramHeader| {
        segment.p_offset(order).checked_add(segment.p_filesz(order))
    };
    let end = segments.iter().filter_map(end).max().and_then(|end| usize::try_from(end).ok());
    let mut stripped = end.and_then(|end| program.get(..end)).ok_or(Error::NoProgram)?.to_vec();
    forget_sections(&mut stripped)?;
    Ok(stripped)
}

fn forget_sections(program: &mut [u8]) -> Result<(), Error> {
    let (header, _) = object::pod::from_bytes_mut::<FileHeader64<LittleEndian>>(program)
        .map_err(|()| Error::NoProgram)?;
    let _ = bytes_of_mut(&mut header.e_shoff).iter_mut().map(|byte| *byte = 0).count();
    let _ = bytes_of_mut(&mut header.e_shnum).iter_mut().map(|byte| *byte = 0).count();
    let _ = bytes_of_mut(&mut header.e_shstrndx).iter_mut().map(|byte| *byte = 0).count();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    #[test]
    fn stripped_program_is_smaller_and_runs() {
        // The test binary is built in the same way as the program.
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let stripped = strip(&whole).unwrap();
        assert!(stripped.len() < whole.len());
        assert_eq!(strip(&stripped).unwrap(), stripped);
        let path = std::env::temp_dir().join(format!("storagetm-strip-{}", std::process::id()));
        std::fs::write(&path, stripped).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let listed = Command::new(&path).arg("--list").output().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(String::from_utf8_lossy(&listed.stdout).contains("smaller_and_runs: test"));
    }

    #[test]
    fn dynamic_program_is_refused() {
        let shell = std::fs::read("/bin/sh").unwrap();
        assert!(matches!(strip(&shell), Err(Error::Dynamic)));
    }

    #[test]
    fn invalid_program_is_refused() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        for broken in [&b""[..], b"#!/bin/sh", &whole[..60], &whole[..200]] {
            assert!(matches!(strip(broken), Err(Error::NoProgram)));
        }
    }
}
