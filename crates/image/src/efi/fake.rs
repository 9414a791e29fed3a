//! Minimal EFI programs as stub and kernel, for tests.

/// Offset of the PE signature.
pub(crate) const HEADER: usize = 0x80;

/// A stub with one section, and room for `room` more.
pub(crate) fn stub(room: usize) -> Vec<u8> {
    program(room, 0x2000)
}

/// A kernel image of this version that takes 4 MiB.
pub(crate) fn kernel(version: &str) -> Vec<u8> {
    let mut bytes = program(8, 0x40_0000);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20e..0x210].copy_from_slice(&0x200u16.to_le_bytes());
    bytes[0x400..0x400 + version.len()].copy_from_slice(version.as_bytes());
    bytes
}

/// An ARM64 kernel image with this text.
pub(crate) fn arm_kernel(text: &[u8]) -> Vec<u8> {
    let mut bytes = of_arm(program(8, 0x40_0000));
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes.extend(text);
    bytes
}

/// An ARM64 kernel image that is compressed in this way.
pub(crate) fn compressed_kernel(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = of_arm(program(8, 0x40_0000));
    let [offset, size] = [bytes.len(), content.len()].map(|it| u32::try_from(it).unwrap());
    bytes[4..8].copy_from_slice(b"zimg");
    bytes[8..12].copy_from_slice(&offset.to_le_bytes());
    bytes[12..16].copy_from_slice(&size.to_le_bytes());
    bytes[24..24 + name.len()].copy_from_slice(name.as_bytes());
    bytes.extend(content);
    bytes
}

/// The same program for ARM64.
pub(crate) fn of_arm(mut program: Vec<u8>) -> Vec<u8> {
    program[HEADER + 4..HEADER + 6].copy_from_slice(&0xaa64_u16.to_le_bytes());
    program
}

fn program(room: usize, memory: u32) -> Vec<u8> {
    let sections = HEADER + 24 + 240;
    let headers = u32::try_from(sections + 40 * (1 + room)).unwrap();
    let mut bytes = vec![0; 0x600];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, b"MZ");
    put(0x3c, &0x80_u32.to_le_bytes());
    put(HEADER, b"PE\0\0\x64\x86\x01\0");
    put(HEADER + 20, &240u16.to_le_bytes());
    put(HEADER + 24, &0x20bu16.to_le_bytes());
    put(HEADER + 24 + 32, &4096u32.to_le_bytes());
    put(HEADER + 24 + 36, &512u32.to_le_bytes());
    put(HEADER + 24 + 56, &memory.to_le_bytes());
    put(HEADER + 24 + 60, &headers.to_le_bytes());
    put(HEADER + 24 + 108, &16u32.to_le_bytes());
    put(sections, b".text\0\0\0");
    for (n, word) in [0x200u32, 0x1000, 0x200, 0x600].iter().enumerate() {
        put(sections + 8 + 4 * n, &word.to_le_bytes());
    }
    bytes.extend(b"stub");
    bytes.resize(0x800, 0);
    bytes
}

/// A program with one more section.
pub(crate) fn with_section(name: &[u8; 8], content: &[u8]) -> Vec<u8> {
    let mut bytes = stub(1);
    let header = HEADER + 24 + 240 + 40;
    let (offset, size) = (bytes.len(), content.len().next_multiple_of(512));
    bytes.extend(content);
    bytes.resize(offset + size, 0);
    bytes[HEADER + 6] = 2;
    bytes[header..header + 8].copy_from_slice(name);
    let word = |number: usize| u32::try_from(number).unwrap();
    for (n, word) in [word(content.len()), 0x2000, word(size), word(offset)].iter().enumerate() {
        bytes[header + 8 + 4 * n..][..4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A program with these bytes as its signature.
pub(crate) fn signed(program: &[u8], signature: &[u8]) -> Vec<u8> {
    let mut bytes = program.to_vec();
    let place = HEADER + 24 + 112 + 8 * 4;
    let length = u32::try_from(signature.len() + 8).unwrap();
    let offset = u32::try_from(bytes.len()).unwrap();
    bytes[place..place + 4].copy_from_slice(&offset.to_le_bytes());
    bytes[place + 4..place + 8].copy_from_slice(&length.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend([0, 2, 2, 0]);
    bytes.extend(signature);
    bytes
}
