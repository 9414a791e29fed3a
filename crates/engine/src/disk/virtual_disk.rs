//! Reads the table of a [`VirtualDisk`].

use export::{Fault, RunTable, VirtualDisk};
use rustix::fs::fstat;
use rustix::io::Errno;

/// Reads the table of a virtual disk of `bytes` bytes, which is at the end of the index, before its length.
///
/// # Errors
/// Fails if the index cannot be read, or has no table of that size.
pub(super) fn load(disk: &VirtualDisk, bytes: u64) -> Result<(), Fault> {
    let failed = |errno: Errno| Fault::from_errno(errno.raw_os_error());
    let size =
        u64::try_from(fstat(disk.index()).map_err(failed)?.st_size).map_err(|_| Fault::Io)?;
    let at = size.checked_sub(8).ok_or(Fault::Io)?;
    let mut len = [0; 8];
    read_all(disk, &mut len, at).map_err(failed)?;
    let len = u64::from_le_bytes(len);
    let start = at.checked_sub(len).ok_or(Fault::Io)?;
    let len = usize::try_from(len).map_err(|_| Fault::Io)?;
    if len > RunTable::MAX_BYTES {
        return Err(Fault::Io);
    }
    let mut table = vec![0; len];
    read_all(disk, &mut table, start).map_err(failed)?;
    disk.set_table(RunTable::parse(&table, bytes).ok_or(Fault::Io)?);
    Ok(())
}

fn read_all(disk: &VirtualDisk, mut into: &mut [u8], mut at: u64) -> Result<(), Errno> {
    while !into.is_empty() {
        match rustix::io::pread(disk.index(), &mut *into, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(read) => {
                into = into.get_mut(read..).unwrap_or_default();
                at += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use export::{
        Access, Backing, Base, BaseLayout, Export, Geometry, Grant, Identity, Layout, Op,
        OverlayLayout, Pool, Request, Stored, Ticket,
    };
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::super::{Answered, Job, carry_out};
    use super::*;

    fn file(contents: &[u8]) -> File {
        let file = File::from(memfd_create("file", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(contents, 0).unwrap();
        file
    }

    /// A disk of 4 KiB: zeros, two sectors of the image in reverse order, one of the index.
    fn export(image: &[u8]) -> Arc<Export> {
        let mut table = RunTable::default();
        let runs = [
            (1024, Stored::Zeros),
            (512, Stored::Image(512)),
            (512, Stored::Image(0)),
            (512, Stored::Index(0)),
            (1536, Stored::Zeros),
        ];
        assert!(runs.iter().all(|(len, stored)| table.push(*len, *stored)));
        let table = table.encode();
        let index = [&[3; 512][..], &table, &(table.len() as u64).to_le_bytes()].concat();
        let files = vec![file(image).into(), file(&index).into()];
        let backing = Base::Virtual(VirtualDisk::new(files).unwrap()).into();
        let geometry = Geometry::new(512, 512).unwrap();
        Arc::new(Export::new("disk", "nqn", Identity::default(), geometry, 4096, backing))
    }

    /// The same disk under an overlay.
    fn overlaid(image: &[u8]) -> Arc<Export> {
        let mut plain = Arc::into_inner(export(image)).unwrap();
        let files = plain.backing().descriptors().map(|file| file.try_clone().unwrap());
        let files = files.chain([file(&[0; 4096]).into(), file(&[]).into()]).collect();
        let overlay =
            OverlayLayout { limit: 1 << 20, map_cost: 1, is_private: false, is_durable: false };
        let layout = Layout { base: BaseLayout::Virtual, overlay: Some(overlay) };
        let backing = Backing::new(layout, files).unwrap();
        let (geometry, identity) = (plain.geometry, std::mem::take(&mut plain.identity));
        let mut export = Export::new("disk", "nqn", identity, geometry, 4096, backing);
        export.access = Access::Writable;
        Arc::new(export)
    }

    fn read(grant: &Grant, lba: u64, blocks: u64) -> Result<Vec<u8>, Fault> {
        let len = usize::try_from(blocks * 512).unwrap();
        let mut buffer = Pool::new(1 << 20).open().take(len).unwrap();
        buffer.bytes_mut().fill(0xee);
        let (buffer, ticket) = (Some(buffer), Ticket::new(1));
        let admitted = grant.admit(Request { op: Op::Read, lba, blocks, buffer, ticket }).unwrap();
        let outcome = carry_out(admitted).outcome;
        outcome.result.map(|()| outcome.buffer.unwrap().bytes().to_vec())
    }

    #[test]
    fn runs_are_read_from_where_they_are() {
        let export = export(&[[1; 512], [2; 512]].concat());
        super::super::backing::prepare(&export).unwrap();
        let grant = Grant::new(export);
        let disk = [vec![0; 1024], vec![2; 512], vec![1; 512], vec![3; 512], vec![0; 1536]];
        let disk = disk.concat();
        for (lba, blocks) in [(0, 8), (0, 1), (1, 2), (2, 1), (3, 2), (4, 4), (7, 1)] {
            let [start, end] = [lba, lba + blocks].map(|at| usize::try_from(at * 512).unwrap());
            assert_eq!(read(&grant, lba, blocks).unwrap(), disk[start..end], "{lba} {blocks}");
        }
    }

    #[test]
    fn writes_to_an_overlay_hide_the_runs_of_the_image() {
        let image = [[1; 512], [2; 512]].concat();
        let export = overlaid(&image);
        super::super::backing::prepare(&export).unwrap();
        let grant = Grant::new(export);
        let mut disk = [vec![0; 1024], vec![2; 512], vec![1; 512], vec![3; 512], vec![0; 1536]];
        let mut disk: Vec<u8> = disk.iter_mut().flat_map(std::mem::take).collect();
        let mut state = 1u64;
        let mut below = |end: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % end
        };
        for _ in 0..500 {
            let lba = below(8);
            let blocks = 1 + below(8 - lba);
            let range = usize::try_from(lba * 512).unwrap()..;
            let range = range.start..usize::try_from((lba + blocks) * 512).unwrap();
            let (op, fill) = match below(5) {
                0 => (Op::Write { durable: false }, u8::try_from(below(256)).unwrap()),
                1 => (Op::Discard, 0),
                _ => {
                    assert_eq!(read(&grant, lba, blocks).unwrap(), disk[range], "{lba} {blocks}");
                    continue;
                }
            };
            let buffer = (op != Op::Discard).then(|| {
                let mut buffer = Pool::new(1 << 20).open().take(range.len()).unwrap();
                buffer.bytes_mut().fill(fill);
                buffer
            });
            let request = Request { op, lba, blocks, buffer, ticket: Ticket::new(1) };
            assert_eq!(carry_out(grant.admit(request).unwrap()).outcome.result, Ok(()));
            disk[range].fill(fill);
        }
        let mut there = [0; 1024];
        let image_file = grant.export().backing().descriptor(VirtualDisk::IMAGE).unwrap();
        rustix::io::pread(image_file, &mut there, 0).unwrap();
        assert_eq!(there[..], image);
    }

    #[test]
    fn image_that_is_too_short_is_an_error() {
        let export = export(&[1; 512]);
        super::super::backing::prepare(&export).unwrap();
        let grant = Grant::new(export);
        assert_eq!(read(&grant, 2, 1), Err(Fault::Io));
        assert_eq!(read(&grant, 3, 1).unwrap(), [1; 512]);
    }

    #[test]
    fn disk_without_a_table_cannot_be_read() {
        let grant = Grant::new(export(&[1; 1024]));
        assert!(read(&grant, 0, 1).is_err());
    }

    #[test]
    fn holes_are_what_the_image_does_not_hold() {
        let export = export(&[1; 1024]);
        super::super::backing::prepare(&export).unwrap();
        let grant = Grant::new(export);
        let buffer = Pool::new(1 << 20).open().take(256);
        let request =
            Request { op: Op::Extents, lba: 1, blocks: 6, buffer, ticket: Ticket::new(1) };
        let mut job = Job::new(grant.admit(request).unwrap());
        let Ok(Answered::Extents(extents)) = job.blocking_op().unwrap().run() else {
            panic!("no extents")
        };
        let found: Vec<_> = extents.iter().map(|extent| (extent.len, extent.hole)).collect();
        assert_eq!(found, [(512, true), (1536, false), (1024, true)]);
    }
}
