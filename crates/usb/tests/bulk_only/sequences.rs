//! The commands of hosts, in text files, and how they are answered. A line is a reset, Get Max LUN,
//! or a command: direction and length of the data, the CDB, and behind `>` the status and the data,
//! in hexadecimal. What is read from the disk is compared with the disk.

use std::fmt::Write as _;

use export::{Access, Peer};
use usb::control::{Reply, reply};

use crate::world::{World, disk_of};

/// Size of the disk when the sequences were recorded.
const SIZE: usize = 16 << 20;

const STATUS: [&str; 3] = ["passed", "failed", "phase-error"];

/// READ (10).
const READ: u8 = 0x28;

fn hex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// Executes a line. Returns it with its answer.
fn execute(world: &mut World, line: &str) -> String {
    let command = line.split(" > ").next().unwrap();
    let mut answered = command.to_owned();
    let words: Vec<_> = command.split(' ').collect();
    let (length, cdb) = match words[..] {
        ["reset"] => {
            world.reset();
            return answered;
        }
        ["max-lun"] => {
            let setup = [0xa1, 0xfe, 0, 0, 0, 0, 1, 0];
            assert_eq!(reply(setup, world.server.units(&Peer::usb())), Reply::Data(0));
            return answered;
        }
        ["none", cdb] => (0, hex(cdb)),
        ["in", length, cdb] => (length.parse().unwrap(), hex(cdb)),
        _ => panic!("{line}"),
    };
    let (data, halted, residue, status) = world.read(0, &cdb, length);
    assert_eq!(residue as usize + data.len(), length as usize, "{line}");
    write!(answered, " > {}", STATUS[usize::from(status)]).unwrap();
    if halted {
        answered.push_str(" halted");
    }
    if cdb[0] == READ {
        let lba = u32::from_be_bytes(cdb[2..6].try_into().unwrap());
        let at = lba as usize * 512;
        assert!(data == world.disk[at..at + length as usize], "{line}");
    } else if !data.is_empty() {
        answered.push(' ');
        data.iter().for_each(|byte| write!(answered, "{byte:02x}").unwrap());
    }
    answered
}

fn check(golden: &str) {
    let mut world = World::sized(&[disk_of("a", Access::ReadOnly, SIZE)], SIZE);
    let answered: String = golden
        .lines()
        .map(|line| if line.starts_with('#') { line.to_owned() } else { execute(&mut world, line) })
        .map(|line| line + "\n")
        .collect();
    assert!(world.closed.is_none());
    assert!(answered == golden, "{answered}");
}

#[test]
fn linux_is_answered_as_recorded() {
    check(include_str!("sequences/linux.txt"));
}

#[test]
fn seabios_is_answered_as_recorded() {
    check(include_str!("sequences/seabios.txt"));
}

#[test]
fn edk2_is_answered_as_recorded() {
    check(include_str!("sequences/edk2.txt"));
}

#[test]
fn windows_is_answered_as_documented() {
    check(include_str!("sequences/windows.txt"));
}

#[test]
fn macos_is_answered_as_documented() {
    check(include_str!("sequences/macos.txt"));
}
