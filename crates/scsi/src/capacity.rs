//! READ CAPACITY and READ FORMAT CAPACITIES (SBC-3, MMC-6).

use export::Export;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::wire::capacity::{Capacity10, Capacity16, FORMATTED, FormatCapacities, LBPME, LBPRZ};

/// Returns a number of blocks as a field of 32 bits, which is FFFFFFFFh if it does not fit.
pub(crate) fn short(blocks: u64) -> U32 {
    U32::new(u32::try_from(blocks).unwrap_or(u32::MAX))
}

/// Returns the block length as a field of 24 bits.
pub(crate) fn block_length(export: &Export) -> [u8; 3] {
    let [_, block @ ..] = export.geometry.block().to_be_bytes();
    block
}

/// Returns the data of READ CAPACITY (10). The disk has at least one block.
pub(crate) fn capacity_10(export: &Export) -> Vec<u8> {
    let last_lba = short(export.blocks().saturating_sub(1));
    Capacity10 { last_lba, block: U32::new(export.geometry.block()) }.as_bytes().to_vec()
}

/// Returns the data of READ CAPACITY (16). The disk has at least one block.
pub(crate) fn capacity_16(export: &Export) -> Vec<u8> {
    let mut data = Capacity16::new_zeroed();
    data.last_lba = U64::new(export.blocks().saturating_sub(1));
    data.block = U32::new(export.geometry.block());
    let exponent = export.geometry.physical.trailing_zeros() - u32::from(export.geometry.shift());
    data.exponent = u8::try_from(exponent.min(15)).unwrap_or(0);
    let zeros = if export.discard_zeroes { LBPRZ } else { 0 };
    data.provisioning = U16::new(if export.discard { LBPME | zeros } else { 0 });
    data.as_bytes().to_vec()
}

/// Returns the data of READ FORMAT CAPACITIES. Windows asks USB disks for it.
pub(crate) fn format_capacities(export: &Export) -> Vec<u8> {
    let (blocks, block) = (short(export.blocks()), block_length(export));
    let data = FormatCapacities { reserved: [0; 3], length: 8, blocks, kind: FORMATTED, block };
    data.as_bytes().to_vec()
}
