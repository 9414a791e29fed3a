//! A proxy between host and target that removes all but one of the Diffie-Hellman groups that the
//! host offers for DH-HMAC-CHAP (NVMe Base 2.0 §8.13.5.2): so each group is tested with a host that
//! always offers all. Runs in the host's machine.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};

/// Options of `cargo xtask vm narrow`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Where the host connects to
    listen: SocketAddr,
    /// Where its target listens
    target: SocketAddr,
    /// The identifier of the group that is left, from 0 for none to 5 for ffdhe8192
    group: u8,
}

/// Forwards connections until it is killed.
pub(super) fn run(options: &Options) -> Result<()> {
    let listener = TcpListener::bind(options.listen).context("the address is taken")?;
    for host in listener.incoming() {
        let (host, target) = (host?, TcpStream::connect(options.target)?);
        let (mut back, mut from) = (host.try_clone()?, target.try_clone()?);
        let group = options.group;
        // If one end closes, closes the other.
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut back);
            let _ = back.shutdown(std::net::Shutdown::Both);
        });
        thread::spawn(move || forward(host, target, group));
    }
    Ok(())
}

fn forward(mut host: TcpStream, mut target: TcpStream, group: u8) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(read @ 1..) = host.read(&mut bytes) {
        let Some(bytes) = bytes.get_mut(..read) else { break };
        narrow(bytes, group);
        if target.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = target.shutdown(std::net::Shutdown::Both);
}

/// The protocol identifier, a reserved byte, the numbers of hashes and groups, as Linux sends them.
const HEAD: [u8; 4] = [1, 0, 3, 6];
/// All groups, after 30 bytes for hashes.
const GROUPS: [u8; 6] = [0, 1, 2, 3, 4, 5];
const GROUPS_AT: usize = HEAD.len() + 30;

/// Keeps one group of an offer that is contained in these bytes.
fn narrow(bytes: &mut [u8], group: u8) {
    let len = GROUPS_AT + GROUPS.len();
    let is_offer = |window: &[u8]| window.starts_with(&HEAD) && window.ends_with(&GROUPS);
    let Some(at) = bytes.windows(len).position(is_offer) else { return };
    let Some(offer) = bytes.get_mut(at..at + len) else { return };
    offer[HEAD.len() - 1] = 1;
    offer[GROUPS_AT..].fill(0);
    offer[GROUPS_AT] = group;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_groups_of_an_offer_are_changed() {
        let mut offer = vec![0; 80];
        offer[14..21].copy_from_slice(&[1, 0, 3, 6, 1, 2, 3]);
        offer[48..54].copy_from_slice(&GROUPS);
        let mut wanted = offer.clone();
        wanted[17] = 1;
        wanted[48..54].copy_from_slice(&[4, 0, 0, 0, 0, 0]);
        narrow(&mut offer, 4);
        assert_eq!(offer, wanted);
        narrow(&mut offer, 2);
        assert_eq!(offer, wanted);
        narrow(&mut [], 2);
    }
}
