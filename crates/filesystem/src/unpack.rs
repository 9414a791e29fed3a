//! Decompresses streams with bounded memory. Truncated or damaged input fails, at the latest at its
//! end.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use zstd::stream::read::Decoder;

use crate::Container;

/// Bytes per read of the compressed stream.
const PIECE: usize = 256 << 10;
/// Maximum memory of an xz dictionary, in KiB; `xz -9` takes 64 MiB.
const XZ_MEMORY: u32 = 256 << 10;
/// Maximum window of zstd, as a power of two: the default limit of the `zstd` program.
const ZSTD_WINDOW: u32 = 27;

/// Decompresses `input` to `output`, to its end.
///
/// # Errors
/// Fails if the stream is damaged, truncated, needs too much memory or has an unsupported format,
/// or if reading or writing fails.
pub fn unpack(container: Container, input: impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut input = BufReader::with_capacity(PIECE, input);
    match container {
        Container::Gzip => gzip(input, output),
        Container::Xz => {
            copy_all(&mut XzReader::new_mem_limit(&mut input, true, XZ_MEMORY), output)?;
            at_end(&mut input)
        }
        Container::Zstd => {
            let mut decoder = Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            copy_all(&mut decoder, output)
        }
        _ => Err(io::Error::new(ErrorKind::Unsupported, "it is not unpacked here")),
    }
}

/// RFC 1952: concatenated members, possibly followed by zeros, as on a tape.
fn gzip(mut input: impl BufRead, output: &mut impl Write) -> io::Result<()> {
    loop {
        let mut decoder = GzDecoder::new(input);
        copy_all(&mut decoder, output)?;
        input = decoder.into_inner();
        match input.fill_buf()?.first() {
            None => return Ok(()),
            Some(0x1f) => {}
            Some(_) => return at_end(&mut input),
        }
    }
}

/// Checks that only zeros follow.
fn at_end(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let rest = input.fill_buf()?;
        let len = rest.len();
        if len == 0 {
            return Ok(());
        }
        if rest.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(ErrorKind::InvalidData, "something else follows its end"));
        }
        input.consume(len);
    }
}

fn copy_all(from: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut bytes = vec![0; PIECE];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(len) => output.write_all(bytes.get(..len).unwrap_or_default())?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use lzma_rust2::{XzOptions, XzWriter};

    fn data() -> Vec<u8> {
        (0..700_000_u32).flat_map(|it| (it / 7).wrapping_mul(it).to_le_bytes()).collect()
    }

    fn packed(container: Container, data: &[u8]) -> Vec<u8> {
        match container {
            Container::Gzip => {
                let mut writer =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Container::Xz => {
                let mut writer = XzWriter::new(Vec::new(), XzOptions::with_preset(0)).unwrap();
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            _ => zstd::encode_all(data, 1).unwrap(),
        }
    }

    const ALL: [Container; 3] = [Container::Gzip, Container::Xz, Container::Zstd];

    fn unpacked(container: Container, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut output = Vec::new();
        unpack(container, bytes, &mut output).map(|()| output)
    }

    #[test]
    fn r50_concatenated_streams_are_unpacked() {
        let data = data();
        for container in ALL {
            let (head, tail) = data.split_at(1_000_003);
            let bytes = [packed(container, head), packed(container, tail)].concat();
            assert!(unpacked(container, &bytes).unwrap() == data, "{container}");
        }
        let zeros = [packed(Container::Gzip, &data), vec![0; 5000]].concat();
        assert!(unpacked(Container::Gzip, &zeros).unwrap() == data);
    }

    #[test]
    fn r50_truncated_or_damaged_streams_are_errors() {
        let data = data();
        for container in ALL {
            let bytes = packed(container, &data);
            for cut in [0, 3, 20, bytes.len() / 2, bytes.len() - 9, bytes.len() - 1] {
                // An empty stream is never detected as one.
                let result = unpacked(container, &bytes[..cut]);
                assert!(result.is_err() || cut == 0, "{container} cut at {cut}");
            }
            let followed = [&bytes[..], b"more"].concat();
            assert!(unpacked(container, &followed).is_err(), "{container} with more behind");
            let mut damaged = bytes.clone();
            damaged[bytes.len() / 2] ^= 0x10;
            let result = unpacked(container, &damaged);
            assert!(result.is_err() || container == Container::Zstd, "{container} damaged");
        }
    }
}
