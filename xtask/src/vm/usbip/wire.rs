//! Messages of USB/IP (Documentation/usb/usbip_protocol.rst of Linux), version 1.1.1. All numbers
//! are big-endian.

use std::io::{Read, Write};

use anyhow::{Result, ensure};

/// Version of the protocol.
const VERSION: u16 = 0x0111;

/// Operations before a device is imported.
const OP_REQ_IMPORT: u16 = 0x8003;
const OP_REP_IMPORT: u16 = 0x0003;

/// Commands and their replies once it is imported.
const CMD_SUBMIT: u32 = 1;
const CMD_UNLINK: u32 = 2;
const RET_SUBMIT: u32 = 3;
const RET_UNLINK: u32 = 4;

/// Direction of a request: from the device.
const TO_HOST: u32 = 1;

/// Largest transfer of a request. The kernel's host requests at most 1 MiB.
const MAX_LENGTH: usize = 4 << 20;

/// Length of the header of a command or reply.
const HEADER: usize = 48;

/// A transfer that the host requests (URB).
#[derive(Debug)]
pub(super) struct Urb {
    /// Identifies the request.
    pub(super) number: u32,
    pub(super) endpoint: u32,
    pub(super) to_host: bool,
    /// Length of the host's buffer in bytes.
    pub(super) length: usize,
    pub(super) setup: [u8; 8],
    /// Data from the host.
    pub(super) data: Vec<u8>,
}

/// A request of the host.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Urb),
    /// Cancel the request `urb`.
    Unlink {
        number: u32,
        urb: u32,
    },
}

/// The end of a transfer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Completion {
    /// That of the request.
    pub(super) number: u32,
    /// 0 or a negative error number.
    pub(super) status: i32,
    /// Number of bytes transferred.
    pub(super) length: usize,
    /// Data to the host.
    pub(super) data: Vec<u8>,
}

/// Receives the request for a device. Returns the name of its bus.
pub(super) fn receive_import(host: &mut impl Read) -> Result<String> {
    let (mut head, mut name) = ([0; 8], [0; 32]);
    host.read_exact(&mut head)?;
    let [a, b, c, d, ..] = head;
    ensure!(u16::from_be_bytes([a, b]) == VERSION, "version {a:02x}{b:02x}");
    ensure!(u16::from_be_bytes([c, d]) == OP_REQ_IMPORT, "operation {c:02x}{d:02x}");
    host.read_exact(&mut name)?;
    Ok(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
}

/// Sends the answer to [`receive_import`]: no device, or one with this speed (`enum
/// usb_device_speed` of Linux) and this device descriptor.
pub(super) fn send_import(
    host: &mut impl Write,
    name: &str,
    device: Option<(u32, [u8; 18])>,
) -> Result<()> {
    let mut bytes = [VERSION, OP_REP_IMPORT].map(u16::to_be_bytes).concat();
    bytes.extend(u32::from(device.is_none()).to_be_bytes());
    if let Some((speed, descriptor)) = device {
        for (text, len) in [("/sys/devices/storagetm", 256), (name, 32)] {
            let end = bytes.len() + len;
            bytes.extend(text.bytes());
            bytes.resize(end, 0);
        }
        bytes.extend([1, 1, speed].map(u32::to_be_bytes).concat());
        // Vendor, product and version.
        bytes.extend(descriptor[8..14].chunks(2).flat_map(|pair| [pair[1], pair[0]]));
        // Class, subclass and protocol; configuration; number of configurations and interfaces.
        bytes.extend([0, 0, 0, 1, 1, 1]);
    }
    Ok(host.write_all(&bytes)?)
}

/// Receives the next request of the host.
pub(super) fn receive(host: &mut impl Read) -> Result<Command> {
    let mut header = [0; HEADER];
    host.read_exact(&mut header)?;
    let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|byte| header[at * 4 + byte]));
    if word(0) == CMD_UNLINK {
        return Ok(Command::Unlink { number: word(1), urb: word(5) });
    }
    ensure!(word(0) == CMD_SUBMIT, "command {}", word(0));
    let (to_host, length) = (word(3) == TO_HOST, usize::try_from(word(6))?);
    ensure!(length <= MAX_LENGTH, "a transfer of {length} bytes");
    let mut data = vec![0; if to_host { 0 } else { length }];
    host.read_exact(&mut data)?;
    let setup = std::array::from_fn(|byte| header[40 + byte]);
    Ok(Command::Submit(Urb { number: word(1), endpoint: word(4), to_host, length, setup, data }))
}

/// Sends the end of a transfer.
pub(super) fn send_completion(host: &mut impl Write, completion: &Completion) -> Result<()> {
    let Completion { number, status, length, data } = completion;
    let length = u32::try_from(*length)?.to_be_bytes();
    send(host, RET_SUBMIT, *number, *status, [&length[..], data])
}

/// Sends whether a request was cancelled: otherwise it had ended before.
pub(super) fn send_unlinked(host: &mut impl Write, number: u32, was_cancelled: bool) -> Result<()> {
    /// `-ECONNRESET`.
    const CANCELLED: i32 = -104;
    send(host, RET_UNLINK, number, if was_cancelled { CANCELLED } else { 0 }, [&[], &[]])
}

fn send(
    host: &mut impl Write,
    kind: u32,
    number: u32,
    status: i32,
    [length, data]: [&[u8]; 2],
) -> Result<()> {
    let mut bytes = [kind, number, 0, 0, 0].map(u32::to_be_bytes).concat();
    bytes.extend(status.to_be_bytes());
    bytes.extend(length);
    bytes.resize(HEADER, 0);
    bytes.extend(data);
    Ok(host.write_all(&bytes)?)
}
