//! The sockets of one interface: packet socket and DHCP.

use super::dhcp::CLIENT_PORT;
use super::ether::Mac;
use crate::syscall::PacketAddress;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto,
    socket_with,
};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
/// The maximum length of a received packet; longer ones are truncated.
const LONGEST: usize = 1500;

/// Receives ARP, and broadcasts ARP and IPv4 packets.
#[derive(Debug)]
pub(super) struct PacketSocket {
    descriptor: OwnedFd,
    index: u32,
}

impl PacketSocket {
    /// # Errors
    /// Fails if the kernel has no packet sockets (the module `af_packet`), or without the right to
    /// open one.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol nothing is received before it is bound to the interface.
        let descriptor =
            socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, None::<Protocol>)?;
        bind(&descriptor, &PacketAddress::new(index, ARP, Mac::BROADCAST.0))?;
        Ok(Self { descriptor, index })
    }

    /// Returns the next packet; `None` if there is none. Does not block.
    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; LONGEST];
        // ENETDOWN is reported once, and by the routing socket, too.
        let length = match recv(&self.descriptor, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, length)) => length,
            Err(Errno::INTR) => return self.receive(),
            Err(_) => return None,
        };
        buffer.truncate(length);
        Some(buffer)
    }

    /// Broadcasts an ARP packet.
    pub(super) fn send_arp(&self, packet: &[u8]) -> io::Result<()> {
        self.send(ARP, packet)
    }

    /// Broadcasts an IPv4 packet.
    pub(super) fn send_ipv4(&self, packet: &[u8]) -> io::Result<()> {
        self.send(IPV4, packet)
    }

    fn send(&self, protocol: u16, packet: &[u8]) -> io::Result<()> {
        let everybody = PacketAddress::new(self.index, protocol, Mac::BROADCAST.0);
        sendto(&self.descriptor, packet, SendFlags::empty(), &everybody)?;
        Ok(())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Receives the replies of DHCP servers at one interface, with or without an address.
#[derive(Debug)]
pub(super) struct LeaseSocket(UdpSocket);

impl LeaseSocket {
    /// # Errors
    /// Fails if another client uses the port, or without the right to bind it.
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_reuse_address(true)?;
        socket.set_broadcast(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
        Ok(Self(socket.into()))
    }

    /// Returns the next message and its source port; `None` if there is none. Does not block.
    pub(super) fn receive(&self) -> Option<(Vec<u8>, u16)> {
        let mut buffer = vec![0; LONGEST];
        let (length, sender) = self.0.recv_from(&mut buffer).ok()?;
        buffer.truncate(length);
        Some((buffer, sender.port()))
    }

    /// Sends a message to a server; the kernel chooses the source address.
    pub(super) fn send(&self, server: Ipv4Addr, port: u16, message: &[u8]) -> io::Result<()> {
        self.0.send_to(message, (server, port)).map(drop)
    }
}

impl AsFd for LeaseSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
