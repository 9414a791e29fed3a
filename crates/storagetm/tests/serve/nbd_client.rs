//! A minimal NBD client for tests; the constants are those of the NBD specification.

use std::io::{self, Error, ErrorKind, Read, Write};

/// Options (NBD, Option types).
pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const ABORT: u32 = 2;
pub(crate) const LIST: u32 = 3;
pub(crate) const STARTTLS: u32 = 5;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED_REPLY: u32 = 8;

/// Replies to options (NBD, Option reply types).
pub(crate) const ACK: u32 = 1;
pub(crate) const SERVER: u32 = 2;
pub(crate) const TLS_REQD: u32 = 1 << 31 | 5;
pub(crate) const UNKNOWN: u32 = 1 << 31 | 6;

/// A transmission flag (NBD, Transmission flags): the export is read-only.
pub(crate) const READ_ONLY: u16 = 1 << 1;

/// An error (NBD, Error values).
pub(crate) const EPERM: u32 = 1;

const IHAVEOPT: &[u8; 8] = b"IHAVEOPT";

/// A connection to an NBD server.
pub(crate) struct NbdClient<S>(pub(crate) S);

impl<S: Read + Write> NbdClient<S> {
    /// Receives the greeting and sends the client flags.
    pub(crate) fn connected(mut stream: S) -> io::Result<Self> {
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        if &hello[..16] != b"NBDMAGICIHAVEOPT" || hello[17] & 3 != 3 {
            return Err(Error::new(ErrorKind::InvalidData, format!("{hello:?}")));
        }
        stream.write_all(&3u32.to_be_bytes())?;
        stream.flush()?;
        Ok(Self(stream))
    }

    /// Sends an option.
    pub(crate) fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        self.0.write_all(&option_bytes(option, data))?;
        self.0.flush()
    }

    /// Returns type and data of the next reply to an option.
    pub(crate) fn reply(&mut self, option: u32) -> io::Result<(u32, Vec<u8>)> {
        let head = self.take(20)?;
        let is_it =
            head[..8] == 0x3_e889_0455_65a9_u64.to_be_bytes() && number(&head[8..12]) == option;
        if !is_it {
            return Err(Error::new(ErrorKind::InvalidData, format!("{head:?}")));
        }
        let data = self.take(number(&head[16..]) as usize)?;
        Ok((number(&head[12..16]), data))
    }

    /// Sends an option. Returns the type of the reply.
    pub(crate) fn negotiate(&mut self, option: u32, data: &[u8]) -> io::Result<u32> {
        self.send_option(option, data)?;
        self.reply(option).map(|(kind, _)| kind)
    }

    /// Opens an export (NBD_OPT_GO). Returns its size and flags, or the type of the error reply.
    pub(crate) fn go(&mut self, name: &str) -> io::Result<Result<(u64, u16), u32>> {
        let len = u32::try_from(name.len()).unwrap();
        self.send_option(GO, &[&len.to_be_bytes()[..], name.as_bytes(), &[0; 2]].concat())?;
        let mut found = (0, 0);
        loop {
            match self.reply(GO)? {
                (ACK, _) => return Ok(Ok(found)),
                // Information of type 0: the export itself.
                (3, data) if data[..2] == [0, 0] => {
                    found = (
                        u64::from_be_bytes(data[2..10].try_into().unwrap()),
                        u16::from_be_bytes([data[10], data[11]]),
                    );
                }
                (3, _) => {}
                (refusal, _) => return Ok(Err(refusal)),
            }
        }
    }

    /// Reads. Returns the data, or the error of the reply.
    pub(crate) fn read(&mut self, offset: u64, len: u32) -> io::Result<Result<Vec<u8>, u32>> {
        self.request(0, 0, offset, len, &[])?;
        match self.answer()? {
            0 => self.take(len as usize).map(Ok),
            error => Ok(Err(error)),
        }
    }

    /// Writes. Returns the error of the reply, 0 for none.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<u32> {
        self.write_with(offset, data, false)
    }

    /// Writes, with NBD_CMD_FLAG_FUA if `fua`. Returns the error of the reply, 0 for none.
    pub(crate) fn write_with(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<u32> {
        self.request(u16::from(fua), 1, offset, u32::try_from(data.len()).unwrap(), data)?;
        self.answer()
    }

    /// Flushes. Returns the error of the reply, 0 for none.
    pub(crate) fn flush(&mut self) -> io::Result<u32> {
        self.request(0, 3, 0, 0, &[])?;
        self.answer()
    }

    pub(crate) fn request(
        &mut self,
        flags: u16,
        command: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<()> {
        let (magic, cookie) = (0x2560_9513_u32.to_be_bytes(), 7u64.to_be_bytes());
        let (flags, command) = (flags.to_be_bytes(), command.to_be_bytes());
        let head = [&magic[..], &flags, &command, &cookie, &offset.to_be_bytes()];
        let request = [&head.concat()[..], &len.to_be_bytes(), data].concat();
        self.0.write_all(&request)?;
        self.0.flush()
    }

    /// Returns the error of a simple reply.
    pub(crate) fn answer(&mut self) -> io::Result<u32> {
        let head = self.take(16)?;
        if number(&head) != 0x6744_6698 || head[8..] != 7u64.to_be_bytes() {
            return Err(Error::new(ErrorKind::InvalidData, format!("{head:?}")));
        }
        Ok(number(&head[4..8]))
    }

    fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Returns the bytes of an option.
pub(crate) fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&IHAVEOPT[..], &option.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}
