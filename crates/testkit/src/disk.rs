//! Disks in memory, and the memory of requests.

use export::{
    Access, Account, Admitted, Export, ExportId, Extent, Extents, Geometry, Identity, Op, Pool,
};

/// Fills unused memory; must never be sent.
pub const POISON: u8 = 0xee;

/// Executes a request on the bytes of a disk, whose blocks of zeros are holes.
///
/// # Panics
/// Panics if the request is beyond the end of the disk.
pub fn execute(disk: &mut [u8], job: &mut Admitted) {
    let start = usize::try_from(job.offset()).unwrap();
    let place = &mut disk[start..start + usize::try_from(job.len()).unwrap()];
    match job.op() {
        Op::Read => job.bytes_mut().copy_from_slice(place),
        Op::Write { .. } | Op::WriteAtomic { .. } => place.copy_from_slice(job.bytes_mut()),
        Op::Zero { .. } | Op::Discard => place.fill(0),
        Op::Extents => {
            let mut extents = Extents::emit(job.bytes_mut());
            for block in place.chunks(512) {
                let hole = block.iter().all(|&byte| byte == 0);
                let extent = if hole { Extent::hole(512) } else { Extent::data(512) };
                if !extents.push(extent) {
                    break;
                }
            }
        }
        Op::Flush | Op::Prefetch => {}
    }
}

/// Creates a writable export with blocks of that logical and physical size.
///
/// # Panics
/// Panics if the geometry is invalid.
pub fn export(
    name: &str,
    id: impl Into<ExportId>,
    identity: Identity,
    (logical, physical): (u32, u32),
    bytes: u64,
) -> Export {
    let geometry = Geometry::new(logical, physical).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap().into();
    let mut export = Export::new(name, id, identity, geometry, bytes, file);
    (export.access, export.discard) = (Access::Writable, true);
    export
}

/// Fills the free buffers of a pool with [`POISON`].
pub fn poison(pool: &Pool) {
    let accounts: Vec<Account> = (0..4).map(|_| pool.open()).collect();
    for class in 0..7 {
        let held: Vec<_> =
            accounts.iter().filter_map(|account| account.take(export::PAGE << class)).collect();
        for mut buffer in held {
            buffer.bytes_mut().fill(POISON);
        }
    }
}
