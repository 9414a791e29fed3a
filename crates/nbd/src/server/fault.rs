//! Maps disk faults to error values (NBD, Error values).

use export::{Fault, Op};

use crate::wire::errno;

/// Returns the error value for `fault` of `op`.
pub(super) fn error_value(fault: Fault, op: Op) -> u32 {
    match fault {
        Fault::Io | Fault::Busy => errno::EIO,
        Fault::NoSpace => errno::ENOSPC,
        Fault::ReadOnly | Fault::Reserved => errno::EPERM,
        Fault::OutOfRange if matches!(op, Op::Write { .. } | Op::Zero { .. }) => errno::ENOSPC,
        Fault::OutOfRange | Fault::Misaligned => errno::EINVAL,
        Fault::Unsupported => errno::ENOTSUP,
        Fault::Gone => errno::ESHUTDOWN,
    }
}

/// Returns whether a fault is reported to the administrator.
pub(super) fn is_reported(fault: Fault) -> bool {
    !matches!(fault, Fault::Gone | Fault::Unsupported | Fault::Busy | Fault::Reserved)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_fault_maps_to_a_defined_error() {
        let ops = [Op::Read, Op::Write { durable: true }, Op::Flush, Op::Discard, Op::Extents];
        let defined = [
            errno::EPERM,
            errno::EIO,
            errno::ENOMEM,
            errno::EINVAL,
            errno::ENOSPC,
            errno::EOVERFLOW,
            errno::ENOTSUP,
            errno::ESHUTDOWN,
        ];
        for (fault, op) in Fault::ALL.into_iter().flat_map(|fault| ops.map(|op| (fault, op))) {
            assert!(defined.contains(&error_value(fault, op)), "{fault} {op:?}");
        }
    }

    #[test]
    fn out_of_range_is_enospc_for_writes_else_einval() {
        assert_eq!(error_value(Fault::OutOfRange, Op::Write { durable: false }), errno::ENOSPC);
        let zero = Op::Zero { unmap: true, durable: false, fast: true };
        assert_eq!(error_value(Fault::OutOfRange, zero), errno::ENOSPC);
        assert_eq!(error_value(Fault::OutOfRange, Op::Read), errno::EINVAL);
        assert_eq!(error_value(Fault::OutOfRange, Op::Discard), errno::EINVAL);
        assert_eq!(error_value(Fault::Unsupported, zero), errno::ENOTSUP);
    }
}
