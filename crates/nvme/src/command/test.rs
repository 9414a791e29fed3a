//! Tests of commands: golden entries and round trips.

use proptest::prelude::*;
use zerocopy::little_endian::U64;

use super::*;
use crate::wire::feature::{fid, sel};

fn io(sqe: &Sqe) -> Result<IoCommand, Status> {
    IoCommand::parse(sqe)
}

fn with_dwords(opcode: u8, dwords: [u32; 6]) -> Sqe {
    let [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = dwords.map(U32::new);
    Sqe { nsid: U32::new(1), cdw10, cdw11, cdw12, cdw13, cdw14, cdw15, ..entry(opcode) }
}

#[test]
fn golden_read_and_write() {
    let dwords = [0x5566_7788, 0x1122_3344, 0xc000_0007, 0, 0, 0]; // SLBA, NLB 8, FUA and LR
    let (slba, nlb) = (0x1122_3344_5566_7788, 8);
    let read = IoCommand::Read { nsid: 1, slba, nlb, fua: true, limited_retry: true };
    assert_eq!(io(&with_dwords(0x02, dwords)), Ok(read));
    assert_eq!(read.data_len(9), Transfer::ToHost(4096));
    let write = IoCommand::Write { nsid: 1, slba, nlb, fua: true, limited_retry: true };
    assert_eq!(io(&with_dwords(0x01, dwords)), Ok(write));
    assert_eq!(write.data_len(12), Transfer::FromHost(32768));
}

#[test]
fn golden_other_block_commands() {
    let (nsid, slba, nlb) = (1, 16, 0x1_0000);
    let compare = IoCommand::Compare { nsid, slba, nlb, fua: false, limited_retry: false };
    assert_eq!(io(&with_dwords(0x05, [16, 0, 0xffff, 0, 0, 0])), Ok(compare));
    assert_eq!(compare.data_len(9), Transfer::FromHost(32 << 20));
    let zeroes = IoCommand::WriteZeroes { nsid, slba, nlb, fua: true, deallocate: true };
    assert_eq!(io(&with_dwords(0x08, [16, 0, 0x4200_ffff, 0, 0, 0])), Ok(zeroes));
    let verify = IoCommand::Verify { nsid, slba, nlb, fua: false, limited_retry: false };
    assert_eq!(io(&with_dwords(0x0c, [16, 0, 0xffff, 0, 0, 0])), Ok(verify));
    assert_eq!((zeroes.data_len(9), verify.data_len(9)), (Transfer::None, Transfer::None));
    assert_eq!(io(&with_dwords(0x00, [0; 6])), Ok(IoCommand::Flush { nsid }));
}

#[test]
fn golden_lists_of_ranges() {
    let dsm = IoCommand::DatasetManagement { nsid: 1, ranges: 256, deallocate: true };
    assert_eq!(io(&with_dwords(0x09, [0xff, 0x04, 0, 0, 0, 0])), Ok(dsm));
    assert_eq!(dsm.data_len(9), Transfer::FromHost(4096));
    let copy = IoCommand::Copy { nsid: 1, sdlba: 1 << 32, ranges: 2, format: 1, fua: true };
    assert_eq!(io(&with_dwords(0x19, [0, 1, 0x4000_0101, 0, 0, 0])), Ok(copy));
    assert_eq!(copy.data_len(9), Transfer::FromHost(80));
    assert_eq!(io(&with_dwords(0x19, [0, 0, 0x0000_0200, 0, 0, 0])), Err(invalid_field()));
}

#[test]
fn golden_reservation_commands() {
    let reservation = |request| IoCommand::Reservation { nsid: 1, request };
    for (opcode, cdw10, cdw11, request, transfer) in [
        (
            0x0d,
            0xc000_000a,
            0,
            ReservationRequest::Register { action: 2, ignore_key: true, persistence: 3 },
            Transfer::FromHost(16),
        ),
        (
            0x0e,
            0x0000_0fff,
            1,
            ReservationRequest::Report { len: 1 << 14, extended: true },
            Transfer::ToHost(1 << 14),
        ),
        (
            0x11,
            0x0000_0501,
            0,
            ReservationRequest::Acquire { action: 1, ignore_key: false, rtype: 5 },
            Transfer::FromHost(16),
        ),
        (
            0x15,
            0x0000_0201,
            0,
            ReservationRequest::Release { action: 1, ignore_key: false, rtype: 2 },
            Transfer::FromHost(8),
        ),
    ] {
        let sqe = with_dwords(opcode, [cdw10, cdw11, 0, 0, 0, 0]);
        assert_eq!(io(&sqe), Ok(reservation(request)));
        assert_eq!(reservation(request).data_len(9), transfer);
        assert_eq!(io(&reservation(request).emit()), Ok(reservation(request)));
    }
}

#[test]
fn golden_get_log_page() {
    let sqe = with_dwords(0x02, [0x03ff_a170, 0x0007_0001, 0x1000, 2, 0x0000_0005, 0]);
    let log = AdminCommand::GetLogPage {
        nsid: 1,
        lid: 0x70,
        lsp: 0x21,
        rae: true,
        lsi: 7,
        numd: (0x0001_03ff + 1) * 4,
        offset: 0x2_0000_1000,
        ot: false,
        uuid: 5,
        csi: 0,
    };
    assert_eq!(AdminCommand::parse(&sqe), Ok(log));
    assert_eq!(log.data_len(), Transfer::ToHost(0x4_1000));
}

#[test]
fn largest_log_page_length_does_not_wrap() {
    let sqe = with_dwords(0x02, [0xffff_0002, 0x0000_ffff, 0, 0, 0, 0]);
    assert_eq!(AdminCommand::parse(&sqe).map(|log| log.data_len()), Ok(Transfer::ToHost(1 << 34)));
}

#[test]
fn log_page_offset_is_a_multiple_of_four_or_an_index() {
    let odd = with_dwords(0x02, [0x70, 0, 2, 0, 0, 0]);
    assert_eq!(AdminCommand::parse(&odd), Err(invalid_field()));
    let index = with_dwords(0x02, [0x70, 0, 2, 0, 1 << 23, 0]);
    assert!(matches!(
        AdminCommand::parse(&index),
        Ok(AdminCommand::GetLogPage { ot: true, offset: 2, .. })
    ));
}

#[test]
fn golden_identify() {
    let sqe = with_dwords(0x06, [0x0005_0006, 0x0200_0000, 0, 0, 0, 0]);
    let identify = AdminCommand::Identify { cns: 6, cntid: 5, nsid: 1, csi: 2 };
    assert_eq!(AdminCommand::parse(&sqe), Ok(identify));
    assert_eq!(identify.data_len(), Transfer::ToHost(4096));
}

#[test]
fn golden_features() {
    let set = AdminCommand::parse(&with_dwords(0x09, [0x8000_0007, 0x0003_0003, 2, 3, 4, 5]));
    let expected = AdminCommand::SetFeatures {
        fid: fid::NUMBER_OF_QUEUES,
        save: true,
        nsid: 1,
        cdw11: 0x0003_0003,
        cdw12: 2,
        cdw13: 3,
        cdw14: 4,
        cdw15: 5,
    };
    assert_eq!(set, Ok(expected));
    assert_eq!(expected.data_len(), Transfer::None);
    let get = AdminCommand::parse(&with_dwords(0x0a, [0x0000_0381, 1, 0, 0, 0, 0]));
    let sel = sel::SUPPORTED_CAPABILITIES;
    assert_eq!(
        get,
        Ok(AdminCommand::GetFeatures { fid: fid::HOST_IDENTIFIER, sel, nsid: 1, cdw11: 1 })
    );
}

#[test]
fn feature_data_length_depends_on_select() {
    let get = |sel| AdminCommand::GetFeatures { fid: fid::HOST_IDENTIFIER, sel, nsid: 0, cdw11: 1 };
    assert_eq!(get(sel::CURRENT).data_len(), Transfer::ToHost(16));
    assert_eq!(get(sel::SUPPORTED_CAPABILITIES).data_len(), Transfer::None);
    assert_eq!(AdminCommand::set_features(fid::TIMESTAMP, 0).data_len(), Transfer::FromHost(8));
}

#[test]
fn golden_small_admin_commands() {
    let abort = AdminCommand::parse(&with_dwords(0x08, [0x1234_0001, 0, 0, 0, 0, 0]));
    assert_eq!(abort, Ok(AdminCommand::Abort { sqid: 1, cid: 0x1234 }));
    assert_eq!(AdminCommand::parse(&entry(0x0c)), Ok(AdminCommand::AsyncEventRequest));
    assert_eq!(AdminCommand::parse(&entry(0x18)), Ok(AdminCommand::KeepAlive));
}

#[test]
fn golden_connect() {
    let mut sqe = with_dwords(0x7f, [0x0002_0000, 0x0004_007f, 5000, 0, 0, 0]);
    sqe.nsid = U32::new(1); // FCTYPE
    let connect = FabricsCommand::Connect { recfmt: 0, qid: 2, sqsize: 128, cattr: 4, kato: 5000 };
    assert_eq!(FabricsCommand::parse(&sqe), Ok(connect));
    assert_eq!(connect.data_len(), Transfer::FromHost(1024));
}

#[test]
fn golden_property_commands() {
    let mut sqe = with_dwords(0x7f, [1, 0x14, 0x0046_0001, 0xdead, 0, 0]);
    sqe.nsid = U32::new(0x04);
    let get = FabricsCommand::PropertyGet { attrib: PropertySize::Eight, offset: 0x14 };
    assert_eq!(FabricsCommand::parse(&sqe), Ok(get));
    sqe.nsid = U32::new(0x00);
    let set = |attrib, value| Ok(FabricsCommand::PropertySet { attrib, offset: 0x14, value });
    assert_eq!(FabricsCommand::parse(&sqe), set(PropertySize::Eight, 0xdead_0046_0001));
    sqe.cdw10 = U32::new(0);
    assert_eq!(FabricsCommand::parse(&sqe), set(PropertySize::Four, 0x0046_0001));
    sqe.cdw10 = U32::new(2);
    assert_eq!(FabricsCommand::parse(&sqe), Err(invalid_field()));
}

#[test]
fn golden_authentication_and_disconnect() {
    let mut sqe = with_dwords(0x7f, [0xe901_0200, 0x108, 0, 0, 0, 0]);
    sqe.nsid = U32::new(0x05);
    let send = FabricsCommand::AuthSend { secp: 0xe9, spsp: 0x0102, tl: 0x108 };
    assert_eq!(FabricsCommand::parse(&sqe), Ok(send));
    assert_eq!(send.data_len(), Transfer::FromHost(0x108));
    sqe.nsid = U32::new(0x06);
    let receive = FabricsCommand::AuthReceive { secp: 0xe9, spsp: 0x0102, al: 0x108 };
    assert_eq!(FabricsCommand::parse(&sqe), Ok(receive));
    assert_eq!(receive.data_len(), Transfer::ToHost(0x108));
    let end = Sqe { nsid: U32::new(0x08), cdw10: U32::new(0), ..sqe };
    assert_eq!(FabricsCommand::parse(&end), Ok(FabricsCommand::Disconnect { recfmt: 0 }));
}

#[test]
fn unknown_commands_are_refused_with_dnr() {
    let refused = Err(Status::INVALID_OPCODE.dnr());
    for opcode in [0x03, 0x04, 0x0a, 0x0f, 0x12, 0x79, 0x80, 0xff] {
        assert_eq!(Command::parse(&entry(opcode), 1), refused, "I/O {opcode:#x}");
    }
    for opcode in [0x00, 0x01, 0x04, 0x05, 0x0d, 0x10, 0x11, 0x80, 0x81, 0x84, 0xff] {
        assert_eq!(Command::parse(&entry(opcode), 0), refused, "Admin {opcode:#x}");
    }
    for fctype in [0x02, 0x03, 0x07, 0x09, 0xff] {
        let sqe = Sqe { nsid: U32::new(fctype), ..entry(0x7f) };
        assert_eq!(Command::parse(&sqe, 0), refused, "Fabrics {fctype:#x}");
    }
}

#[test]
fn fabrics_commands_are_parsed_on_every_queue() {
    let sqe = FabricsCommand::Disconnect { recfmt: 0 }.emit();
    for qid in [0, 1, u16::MAX] {
        assert_eq!(
            Command::parse(&sqe, qid),
            Ok(Command::Fabrics(FabricsCommand::Disconnect { recfmt: 0 }))
        );
    }
}

#[test]
fn only_sgls_are_valid_data_pointers() {
    for psdt in [0b00, 0b10, 0b11] {
        for (opcode, qid) in [(0x02, 1), (0x06, 0), (0x7f, 0)] {
            let sqe = Sqe { flags: psdt << 6, ..entry(opcode) };
            assert_eq!(
                Command::parse(&sqe, qid),
                Err(invalid_field()),
                "PSDT {psdt:#b}, {opcode:#x}"
            );
        }
    }
}

#[test]
fn only_io_commands_are_fused() {
    for fuse in [Fuse::First, Fuse::Second] {
        assert!(Command::parse(&entry(0x05).with_fuse(fuse), 1).is_ok());
        assert_eq!(Command::parse(&entry(0x06).with_fuse(fuse), 0), Err(invalid_field()));
        assert_eq!(Command::parse(&entry(0x7f).with_fuse(fuse), 1), Err(invalid_field()));
    }
    assert_eq!(Command::parse(&entry(0x05).with_fuse(Fuse::Reserved), 1), Err(invalid_field()));
}

#[test]
fn data_pointer_is_in_capsule_or_transport() {
    assert_eq!(DataPointer::parse(&Sgl::transport(9)), Ok(DataPointer::Transport { length: 9 }));
    assert_eq!(
        DataPointer::parse(&Sgl::in_capsule(0, 9)),
        Ok(DataPointer::InCapsule { length: 9 })
    );
    assert_eq!(DataPointer::parse(&Sgl::in_capsule(64, 9)), Err(Status::SGL_OFFSET_INVALID.dnr()));
    for id in [Sgl::DATA_BLOCK, 0x0a, 0x10, 0x20, 0x30, 0x40, 0x50, 0x51, 0xf0, 0xff] {
        let sgl = Sgl { addr: U64::new(0), ..Sgl::new(id, 0, 9) };
        assert_eq!(DataPointer::parse(&sgl), Err(Status::SGL_TYPE_INVALID.dnr()), "{id:#x}");
    }
    assert_eq!(DataPointer::InCapsule { length: 9 }.length(), 9);
}

#[test]
fn sgl_length_is_exact_for_blocks_and_minimum_for_lists() {
    let refused = Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
    let read = IoCommand::Read { nsid: 1, slba: 0, nlb: 8, fua: false, limited_retry: false };
    assert_eq!(Command::Io(read).check_sgl_length(4096, 9), Ok(()));
    assert_eq!(Command::Io(read).check_sgl_length(4095, 9), refused);
    assert_eq!(Command::Io(read).check_sgl_length(4097, 9), refused);
    assert_eq!(Command::Io(read).check_sgl_length(u32::MAX, 63), refused);
    let dsm = Command::Io(IoCommand::DatasetManagement { nsid: 1, ranges: 2, deallocate: true });
    assert_eq!(dsm.check_sgl_length(4096, 9), Ok(()));
    assert_eq!(dsm.check_sgl_length(31, 9), refused);
    let identify = Command::Admin(AdminCommand::identify(1, 0));
    assert_eq!(identify.check_sgl_length(4096, 0), Ok(()));
    assert_eq!(identify.check_sgl_length(512, 0), refused);
    assert_eq!(Command::Admin(AdminCommand::KeepAlive).check_sgl_length(0, 0), Ok(()));
}

#[test]
fn constructors_match_entries_of_linux() {
    let identify = AdminCommand::identify(1, 0).emit();
    assert_eq!(
        (identify.opcode, identify.flags, identify.sgl1),
        (0x06, 0x40, Sgl::transport(4096))
    );
    let log = AdminCommand::log_page(0x70, 1024, 4096).emit();
    assert_eq!((log.cdw10.get(), log.cdw12.get()), (0x03ff_0070, 1024));
    let connect =
        FabricsCommand::Connect { recfmt: 0, qid: 0, sqsize: 32, cattr: 0, kato: 5000 }.emit();
    assert_eq!((connect.cdw11.get(), connect.sgl1), (31, Sgl::in_capsule(0, 1024)));
    assert_eq!(AdminCommand::get_features(fid::KEEP_ALIVE_TIMER).emit().cdw10.get(), 0x0f);
}

fn io_command() -> impl Strategy<Value = IoCommand> {
    let fields = (any::<u32>(), any::<u64>(), 1..=0x1_0000_u32, any::<bool>(), any::<bool>());
    let blocks = (fields, 0..5_u8).prop_map(|((nsid, slba, nlb, fua, other), kind)| match kind {
        0 => IoCommand::Read { nsid, slba, nlb, fua, limited_retry: other },
        1 => IoCommand::Write { nsid, slba, nlb, fua, limited_retry: other },
        2 => IoCommand::Compare { nsid, slba, nlb, fua, limited_retry: other },
        3 => IoCommand::Verify { nsid, slba, nlb, fua, limited_retry: other },
        _ => IoCommand::WriteZeroes { nsid, slba, nlb, fua, deallocate: other },
    });
    let dsm = (any::<u32>(), 1..=256_u16, any::<bool>()).prop_map(|(nsid, ranges, deallocate)| {
        IoCommand::DatasetManagement { nsid, ranges, deallocate }
    });
    let copy = (any::<u32>(), any::<u64>(), 1..=256_u16, 0..2_u8, any::<bool>()).prop_map(
        |(nsid, sdlba, ranges, format, fua)| IoCommand::Copy { nsid, sdlba, ranges, format, fua },
    );
    let fields = (any::<u32>(), 0..8_u8, any::<bool>(), any::<u8>(), 0..4_u8);
    let reservation = fields.prop_map(|(nsid, action, flag, rtype, kind)| {
        let request = match kind {
            0 => ReservationRequest::Register { action, ignore_key: flag, persistence: rtype & 3 },
            1 => ReservationRequest::Acquire { action, ignore_key: flag, rtype },
            2 => ReservationRequest::Release { action, ignore_key: flag, rtype },
            _ => ReservationRequest::Report { len: u64::from(rtype) * 4 + 4, extended: flag },
        };
        IoCommand::Reservation { nsid, request }
    });
    prop_oneof![
        blocks,
        dsm,
        copy,
        reservation,
        any::<u32>().prop_map(|nsid| IoCommand::Flush { nsid })
    ]
}

proptest! {
    /// Parsing an emitted command returns the same command.
    #[test]
    fn io_commands_survive_the_wire(command in io_command()) {
        prop_assert_eq!(IoCommand::parse(&command.emit()), Ok(command));
    }

    /// Any 64 bytes parse to a command or to a status with Do Not Retry, without a panic. A parsed
    /// command survives emit and parse.
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::array::uniform32(any::<[u8; 2]>()), opcode in 0..0x20_u8, qid in 0..2_u16, shift: u8) {
        let mut sqe: Sqe = zerocopy::transmute!(bytes);
        sqe.flags = 0x40;
        sqe.opcode = if opcode == 0x1f { opcode::fabrics::OPCODE } else { opcode };
        match Command::parse(&sqe, qid) {
            Ok(command) => {
                let _ = command.data_len(shift);
                let again = match command {
                    Command::Admin(command) => command.emit(),
                    Command::Fabrics(command) => command.emit(),
                    Command::Io(command) => command.emit(),
                };
                prop_assert_eq!(Command::parse(&again, qid), Ok(command));
            }
            Err(status) => prop_assert!(status.is_dnr() && !status.is_success()),
        }
    }
}
