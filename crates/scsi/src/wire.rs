//! Wire format of SCSI: operation codes, sense data, and the structs of responses and parameter
//! lists, byte for byte. All numbers are big-endian.

pub mod capacity;
pub mod copy;
pub mod inquiry;
pub mod mode;
pub mod opcode;
pub mod provision;
pub mod report;
pub mod reservation;
pub mod sense;
