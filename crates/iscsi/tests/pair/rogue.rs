//! The PDUs of a target, valid unless they are changed.

use iscsi::wire::bhs::{
    AsyncMessage, DataIn, FINAL, LoginResponse, NopIn, Numbers, R2t, STATUS, ScsiResponse,
    TextResponse, of_target,
};
use iscsi::wire::login::{FULL_FEATURE, OPERATIONAL, SECURITY, TRANSIT};
use iscsi::wire::{NO_TAG, opcode, padding, text};
use zerocopy::{Immutable, IntoBytes};

/// Returns a text of these keys.
pub(crate) fn keys(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    pairs.iter().for_each(|(key, value)| text::push(&mut bytes, key, value));
    bytes
}

/// Returns the bytes of a PDU without digests: the header with the length of the data, the data and
/// its padding.
pub(crate) fn pdu<H: IntoBytes + Immutable>(header: &H, data: &[u8]) -> Vec<u8> {
    let mut bytes = header.as_bytes().to_vec();
    bytes[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
    bytes.extend_from_slice(data);
    bytes.extend(vec![0; padding(data.len())]);
    bytes
}

/// Counts the status of a target.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    pub(crate) stat_sn: u32,
}

impl Counter {
    fn numbers(&self) -> Numbers {
        let (stat_sn, exp_cmd_sn) = (self.stat_sn.into(), 1.into());
        Numbers { stat_sn, exp_cmd_sn, max_cmd_sn: 100.into() }
    }

    fn next(&mut self) -> Numbers {
        let numbers = self.numbers();
        self.stat_sn = self.stat_sn.wrapping_add(1);
        numbers
    }

    /// A response in the security stage.
    pub(crate) fn security(&mut self, transit: bool) -> LoginResponse {
        let transit = if transit { TRANSIT | OPERATIONAL } else { 0 };
        self.login(transit | SECURITY << 2)
    }

    /// The response that ends the login.
    pub(crate) fn last_login(&mut self) -> LoginResponse {
        let header = self.login(TRANSIT | OPERATIONAL << 2 | FULL_FEATURE);
        LoginResponse { tsih: 1.into(), ..header }
    }

    pub(crate) fn login(&mut self, flags: u8) -> LoginResponse {
        let numbers = self.next();
        let header = LoginResponse::of(&of_target(opcode::LOGIN_RESPONSE));
        LoginResponse { flags, numbers, itt: 0.into(), ..header }
    }

    /// A good status of a command.
    pub(crate) fn response(&mut self, itt: u32) -> ScsiResponse {
        let (numbers, header) = (self.next(), ScsiResponse::of(&of_target(opcode::SCSI_RESPONSE)));
        ScsiResponse { flags: FINAL, itt: itt.into(), numbers, ..header }
    }

    /// Data of a command, the PDU of that number.
    pub(crate) fn data(&self, itt: u32, number: u32, offset: u32) -> DataIn {
        DataIn {
            flags: FINAL,
            itt: itt.into(),
            ttt: NO_TAG.into(),
            numbers: Numbers { stat_sn: 0.into(), ..self.numbers() },
            data_sn: number.into(),
            offset: offset.into(),
            ..DataIn::of(&of_target(opcode::DATA_IN))
        }
    }

    /// The last data of a command, with a good status.
    pub(crate) fn last_data(&mut self, itt: u32, number: u32, offset: u32) -> DataIn {
        let header = self.data(itt, number, offset);
        DataIn { flags: FINAL | STATUS, numbers: self.next(), ..header }
    }

    /// A request for data, the one of that number.
    pub(crate) fn r2t(&self, itt: u32, number: u32, offset: u32, len: u32) -> R2t {
        R2t {
            flags: FINAL,
            itt: itt.into(),
            ttt: 0x55.into(),
            numbers: self.numbers(),
            r2t_sn: number.into(),
            offset: offset.into(),
            len: len.into(),
            ..R2t::of(&of_target(opcode::R2T))
        }
    }

    /// A ping that is to be answered, or one that is not.
    pub(crate) fn ping(&self, answer: bool) -> NopIn {
        let ttt = if answer { 0x77 } else { NO_TAG };
        let header = NopIn::of(&of_target(opcode::NOP_IN));
        let (numbers, itt) = (self.numbers(), NO_TAG.into());
        NopIn { flags: FINAL, itt, ttt: ttt.into(), numbers, ..header }
    }

    /// An asynchronous message.
    pub(crate) fn message(&mut self, event: u8) -> AsyncMessage {
        let (numbers, header) = (self.next(), AsyncMessage::of(&of_target(opcode::ASYNC_MESSAGE)));
        AsyncMessage { flags: FINAL, tag: NO_TAG.into(), numbers, event, ..header }
    }

    /// An answer to SendTargets.
    pub(crate) fn targets(&mut self, last: bool) -> TextResponse {
        let (flags, ttt) = if last { (FINAL, NO_TAG) } else { (0, 0x66) };
        let (numbers, header) = (self.next(), TextResponse::of(&of_target(opcode::TEXT_RESPONSE)));
        TextResponse { flags, itt: 0.into(), ttt: ttt.into(), numbers, ..header }
    }
}
