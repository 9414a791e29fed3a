//! Basic header segments: 48 bytes each (RFC 7143 §11.2.1).
#![allow(missing_debug_implementations, reason = "of types that zerocopy derives")]

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{NO_TAG, opcode};

/// Length of every header in bytes.
pub const LEN: usize = 48;

/// Flag in most headers: the last PDU of its kind for this task.
pub const FINAL: u8 = 0x80;

/// A length of three bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct U24([u8; 3]);

impl U24 {
    #[must_use]
    pub fn get(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_be_bytes([0, a, b, c])
    }
}

impl From<u32> for U24 {
    /// Cuts off what exceeds three bytes.
    fn from(number: u32) -> Self {
        let [_, a, b, c] = number.to_be_bytes();
        Self([a, b, c])
    }
}

/// Defines a header.
macro_rules! header {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
            Unaligned,
        )]
        #[repr(C)]
        pub struct $name { $($(#[$of])* pub $field: $kind,)* }
        const _: () = assert!(size_of::<$name>() == LEN);

        impl $name {
            /// Reads the header as this one.
            #[must_use]
            #[allow(clippy::useless_transmute, reason = "of a header to itself")]
            pub fn of(header: &Bhs) -> Self {
                zerocopy::transmute!(*header)
            }
        }
    };
}

header! {
    /// What all headers share.
    Bhs {
        /// Opcode, with [`opcode::IMMEDIATE`] in requests.
        opcode: u8,
        flags: u8,
        specific: [u8; 2],
        /// TotalAHSLength, in words.
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        rest: [u8; 28],
    }
}

impl Bhs {
    /// Returns the opcode.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.opcode & opcode::MASK
    }

    #[must_use]
    pub fn is_immediate(&self) -> bool {
        self.opcode & opcode::IMMEDIATE != 0
    }

    #[must_use]
    pub fn is_final(&self) -> bool {
        self.flags & FINAL != 0
    }

    /// Returns the CmdSN of a request that has one.
    #[must_use]
    pub fn cmd_sn(&self) -> u32 {
        ScsiCommand::of(self).cmd_sn.get()
    }
}

/// The numbers in every header of a target (RFC 7143 §11.4.7 to §11.4.9).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Numbers {
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
}

header! {
    /// RFC 7143 §11.18.
    NopOut {
        opcode: u8,
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        ttt: U32,
        cmd_sn: U32,
        exp_stat_sn: U32,
        reserved_tail: [u8; 16],
    }
}

header! {
    /// RFC 7143 §11.3.
    ScsiCommand {
        opcode: u8,
        /// [`FINAL`], [`READ`], [`WRITE`] and the task attribute.
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        /// Expected Data Transfer Length in bytes.
        expected: U32,
        cmd_sn: U32,
        exp_stat_sn: U32,
        cdb: [u8; 16],
    }
}

/// Flag of a SCSI Command: data is expected.
pub const READ: u8 = 0x40;
/// Flag of a SCSI Command: data is to be written.
pub const WRITE: u8 = 0x20;

header! {
    /// Task Management Function Request (RFC 7143 §11.5).
    TaskRequest {
        opcode: u8,
        /// [`FINAL`] and the function.
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        ref_tag: U32,
        cmd_sn: U32,
        exp_stat_sn: U32,
        ref_cmd_sn: U32,
        exp_data_sn: U32,
        reserved_tail: [u8; 8],
    }
}

header! {
    /// RFC 7143 §11.12.
    LoginRequest {
        opcode: u8,
        /// See [`super::login`].
        flags: u8,
        version_max: u8,
        version_min: u8,
        ahs_len: u8,
        data_len: U24,
        isid: [u8; 6],
        tsih: U16,
        itt: U32,
        cid: U16,
        reserved: [u8; 2],
        cmd_sn: U32,
        exp_stat_sn: U32,
        reserved_tail: [u8; 16],
    }
}

header! {
    /// RFC 7143 §11.10.
    TextRequest {
        opcode: u8,
        /// [`FINAL`] and [`super::login::CONTINUE`].
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        ttt: U32,
        cmd_sn: U32,
        exp_stat_sn: U32,
        reserved_tail: [u8; 16],
    }
}

header! {
    /// RFC 7143 §11.7.
    DataOut {
        opcode: u8,
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        ttt: U32,
        reserved_2: [u8; 4],
        exp_stat_sn: U32,
        reserved_3: [u8; 4],
        data_sn: U32,
        offset: U32,
        reserved_tail: [u8; 4],
    }
}

header! {
    /// RFC 7143 §11.14.
    LogoutRequest {
        opcode: u8,
        /// [`FINAL`] and the reason.
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        reserved_2: [u8; 8],
        itt: U32,
        cid: U16,
        reserved_3: [u8; 2],
        cmd_sn: U32,
        exp_stat_sn: U32,
        reserved_tail: [u8; 16],
    }
}

header! {
    /// RFC 7143 §11.19.
    NopIn {
        opcode: u8,
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        ttt: U32,
        numbers: Numbers,
        reserved_tail: [u8; 12],
    }
}

header! {
    /// RFC 7143 §11.4.
    ScsiResponse {
        opcode: u8,
        /// [`FINAL`], [`OVERFLOW`] and [`UNDERFLOW`].
        flags: u8,
        response: u8,
        status: u8,
        ahs_len: u8,
        data_len: U24,
        reserved: [u8; 8],
        itt: U32,
        snack_tag: U32,
        numbers: Numbers,
        exp_data_sn: U32,
        bidi_residual: U32,
        residual: U32,
    }
}

/// Flag of a SCSI Response and of Data-In with status: the residual is of data that was not
/// expected.
pub const OVERFLOW: u8 = 0x04;
/// Flag: the residual is of data that was expected and not transferred.
pub const UNDERFLOW: u8 = 0x02;
/// Flag of Data-In: it carries the status.
pub const STATUS: u8 = 0x01;

header! {
    /// Task Management Function Response (RFC 7143 §11.6).
    TaskResponse {
        opcode: u8,
        flags: u8,
        response: u8,
        reserved: u8,
        ahs_len: u8,
        data_len: U24,
        reserved_2: [u8; 8],
        itt: U32,
        reserved_3: [u8; 4],
        numbers: Numbers,
        reserved_tail: [u8; 12],
    }
}

header! {
    /// RFC 7143 §11.13.
    LoginResponse {
        opcode: u8,
        flags: u8,
        version_max: u8,
        version_active: u8,
        ahs_len: u8,
        data_len: U24,
        isid: [u8; 6],
        tsih: U16,
        itt: U32,
        reserved: [u8; 4],
        numbers: Numbers,
        status: [u8; 2],
        reserved_tail: [u8; 10],
    }
}

header! {
    /// RFC 7143 §11.11.
    TextResponse {
        opcode: u8,
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        ttt: U32,
        numbers: Numbers,
        reserved_tail: [u8; 12],
    }
}

header! {
    /// RFC 7143 §11.7.
    DataIn {
        opcode: u8,
        /// [`FINAL`], [`OVERFLOW`], [`UNDERFLOW`] and [`STATUS`].
        flags: u8,
        reserved: u8,
        status: u8,
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        ttt: U32,
        numbers: Numbers,
        data_sn: U32,
        offset: U32,
        residual: U32,
    }
}

header! {
    /// RFC 7143 §11.15.
    LogoutResponse {
        opcode: u8,
        flags: u8,
        response: u8,
        reserved: u8,
        ahs_len: u8,
        data_len: U24,
        reserved_2: [u8; 8],
        itt: U32,
        reserved_3: [u8; 4],
        numbers: Numbers,
        reserved_4: [u8; 4],
        time2wait: U16,
        time2retain: U16,
        reserved_tail: [u8; 4],
    }
}

header! {
    /// Ready To Transfer (RFC 7143 §11.8).
    R2t {
        opcode: u8,
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        itt: U32,
        ttt: U32,
        numbers: Numbers,
        r2t_sn: U32,
        offset: U32,
        len: U32,
    }
}

header! {
    /// RFC 7143 §11.9.
    AsyncMessage {
        opcode: u8,
        flags: u8,
        reserved: [u8; 2],
        ahs_len: u8,
        data_len: U24,
        lun: U64,
        tag: U32,
        reserved_2: [u8; 4],
        numbers: Numbers,
        event: u8,
        vendor_code: u8,
        parameters: [U16; 3],
        reserved_tail: [u8; 4],
    }
}

header! {
    /// RFC 7143 §11.17. Its data is the header that was rejected.
    Reject {
        opcode: u8,
        flags: u8,
        reason: u8,
        reserved: u8,
        ahs_len: u8,
        data_len: U24,
        reserved_2: [u8; 8],
        tag: U32,
        reserved_3: [u8; 4],
        numbers: Numbers,
        data_sn: U32,
        reserved_tail: [u8; 8],
    }
}

/// Returns the header of a PDU of the target: final, without data and without a task. Its other
/// fields are zero.
#[must_use]
pub fn of_target(opcode: u8) -> Bhs {
    Bhs { opcode, flags: FINAL, itt: NO_TAG.into(), ..Bhs::new_zeroed() }
}

#[cfg(test)]
mod test {
    use super::*;

    fn header(bytes: &[u8; LEN]) -> Bhs {
        Bhs::read_from_bytes(bytes).unwrap()
    }

    /// Returns 48 bytes: these, and zeros.
    fn padded(bytes: &[u8]) -> [u8; LEN] {
        std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0))
    }

    #[test]
    fn golden_scsi_command() {
        #[rustfmt::skip]
        let bytes: [u8; LEN] = [
            0x01, 0xa1, 0, 0, 0, 0, 0x02, 0,            // F, W, simple; 512 bytes of data
            0, 3, 0, 0, 0, 0, 0, 0,                     // LUN 3
            0x11, 0x22, 0x33, 0x44, 0, 0, 0x10, 0,      // ITT, 4096 bytes
            0, 0, 0, 7, 0, 0, 0, 9,                     // CmdSN, ExpStatSN
            0x2a, 0, 0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0,
        ];
        let command = ScsiCommand::of(&header(&bytes));
        assert_eq!((command.itt.get(), command.expected.get()), (0x1122_3344, 4096));
        assert_eq!((command.cmd_sn.get(), command.exp_stat_sn.get()), (7, 9));
        assert_eq!((command.data_len.get(), command.lun.get()), (512, 3 << 48));
        assert_eq!(command.flags, FINAL | WRITE | 1);
        assert_eq!(&command.cdb[..6], [0x2a, 0, 0, 0, 0, 8]);
        assert_eq!(command.as_bytes(), bytes);
        let general = header(&bytes);
        assert_eq!((general.opcode(), general.cmd_sn()), (opcode::SCSI_COMMAND, 7));
        assert!(general.is_final() && !general.is_immediate());
    }

    #[test]
    fn golden_login_request() {
        #[rustfmt::skip]
        let bytes = padded(&[
            0x43, 0x87, 0, 0, 0, 0, 0x01, 0xc0,         // T, operational to full feature
            0x80, 1, 2, 3, 4, 5, 0, 6,                  // ISID, TSIH
            0, 0, 0, 1, 0, 9, 0, 0,                     // ITT, CID
            0, 0, 0, 2, 0, 0, 0, 3,                     // CmdSN, ExpStatSN
        ]);
        let login = LoginRequest::of(&header(&bytes));
        assert_eq!((login.isid, login.tsih.get()), ([0x80, 1, 2, 3, 4, 5], 6));
        assert_eq!((login.itt.get(), login.cid.get()), (1, 9));
        assert_eq!((login.cmd_sn.get(), login.exp_stat_sn.get()), (2, 3));
        assert_eq!(login.data_len.get(), 448);
        assert_eq!(crate::wire::login::stages(login.flags), (1, 3));
        assert!(header(&bytes).is_immediate());
    }

    #[test]
    fn golden_data_out() {
        #[rustfmt::skip]
        let bytes = padded(&[
            0x05, 0x80, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 1, 0, 0, 0, 2,                     // ITT, TTT
            0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0,         // ExpStatSN
            0, 0, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0,         // DataSN, offset
        ]);
        let data = DataOut::of(&header(&bytes));
        assert_eq!((data.itt.get(), data.ttt.get()), (1, 2));
        assert_eq!((data.data_sn.get(), data.offset.get()), (4, 65536));
        assert_eq!((data.exp_stat_sn.get(), data.data_len.get()), (3, 8192));
    }

    #[test]
    fn golden_requests_with_references() {
        #[rustfmt::skip]
        let bytes = padded(&[
            0x42, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6,
        ]);
        let task = TaskRequest::of(&header(&bytes));
        assert_eq!(task.flags & 0x7f, opcode::function::ABORT_TASK);
        assert_eq!((task.itt.get(), task.ref_tag.get(), task.cmd_sn.get()), (1, 2, 3));
        assert_eq!((task.exp_stat_sn.get(), task.ref_cmd_sn.get()), (4, 5));
        let text = TextRequest::of(&header(&bytes));
        assert_eq!((text.itt.get(), text.ttt.get(), text.cmd_sn.get()), (1, 2, 3));
        let nop = NopOut::of(&header(&bytes));
        assert_eq!((nop.itt.get(), nop.ttt.get(), nop.cmd_sn.get()), (1, 2, 3));
        let logout = LogoutRequest::of(&header(&bytes));
        assert_eq!((logout.flags & 0x7f, logout.cid.get(), logout.cmd_sn.get()), (1, 0, 3));
    }

    fn numbers() -> Numbers {
        Numbers { stat_sn: 1.into(), exp_cmd_sn: 2.into(), max_cmd_sn: 3.into() }
    }

    #[test]
    fn golden_data_in() {
        let mut data = DataIn::of(&of_target(opcode::DATA_IN));
        data.flags |= STATUS | UNDERFLOW;
        (data.data_len, data.itt, data.ttt) = (512.into(), 7.into(), NO_TAG.into());
        (data.numbers, data.data_sn) = (numbers(), 4.into());
        (data.offset, data.residual) = (5.into(), 6.into());
        #[rustfmt::skip]
        let bytes: [u8; LEN] = [
            0x25, 0x83, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff,
            0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3,
            0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6,
        ];
        assert_eq!(data.as_bytes(), bytes);
    }

    #[test]
    fn golden_responses() {
        let mut scsi = ScsiResponse::of(&of_target(opcode::SCSI_RESPONSE));
        (scsi.status, scsi.flags, scsi.itt) = (2, FINAL | OVERFLOW, 7.into());
        (scsi.numbers, scsi.residual) = (numbers(), 512.into());
        #[rustfmt::skip]
        let bytes: [u8; LEN] = [
            0x21, 0x84, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0,
        ];
        assert_eq!(scsi.as_bytes(), bytes);
        let mut login = LoginResponse::of(&of_target(opcode::LOGIN_RESPONSE));
        (login.isid, login.tsih, login.itt) = ([1, 2, 3, 4, 5, 6], 8.into(), 7.into());
        (login.numbers, login.status) = (numbers(), [2, 1]);
        #[rustfmt::skip]
        let bytes: [u8; LEN] = [
            0x23, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 8,
            0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3,
            2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(login.as_bytes(), bytes);
        let mut r2t = R2t::of(&of_target(opcode::R2T));
        (r2t.itt, r2t.ttt, r2t.numbers) = (7.into(), 9.into(), numbers());
        (r2t.r2t_sn, r2t.offset, r2t.len) = (4.into(), 5.into(), 6.into());
        #[rustfmt::skip]
        let bytes: [u8; LEN] = [
            0x31, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3,
            0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6,
        ];
        assert_eq!(r2t.as_bytes(), bytes);
    }

    #[test]
    fn golden_events() {
        let mut message = AsyncMessage::of(&of_target(opcode::ASYNC_MESSAGE));
        (message.numbers, message.event) = (numbers(), opcode::event::DROP_SESSION);
        message.parameters = [1.into(), 2.into(), 3.into()];
        #[rustfmt::skip]
        let bytes: [u8; LEN] = [
            0x32, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3,
            3, 0, 0, 1, 0, 2, 0, 3, 0, 0, 0, 0,
        ];
        assert_eq!(message.as_bytes(), bytes);
        let mut reject = Reject::of(&of_target(opcode::REJECT));
        (reject.reason, reject.numbers) = (opcode::reject::PROTOCOL, numbers());
        assert_eq!(&reject.as_bytes()[..4], [0x3f, 0x80, 4, 0]);
        assert_eq!(&reject.as_bytes()[16..20], [0xff; 4]);
        let mut logout = LogoutResponse::of(&of_target(opcode::LOGOUT_RESPONSE));
        (logout.response, logout.itt) = (opcode::logout::NO_RECOVERY, 7.into());
        (logout.time2wait, logout.time2retain) = (1.into(), 2.into());
        assert_eq!(&logout.as_bytes()[..4], [0x26, 0x80, 2, 0]);
        assert_eq!(&logout.as_bytes()[40..44], [0, 1, 0, 2]);
        let task = TaskResponse::of(&of_target(opcode::TASK_RESPONSE));
        assert_eq!(&task.as_bytes()[..4], [0x22, 0x80, 0, 0]);
    }

    #[test]
    fn three_byte_lengths_round_trip() {
        for number in [0, 1, 0x1234, 0x00ff_ffff] {
            assert_eq!(U24::from(number).get(), number);
        }
        assert_eq!(U24::from(0x0100_0001).get(), 1);
    }
}
