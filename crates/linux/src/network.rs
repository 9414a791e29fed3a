//! Configures the network of a machine without a network service: sets interfaces up, assigns
//! link-local addresses always, and others as configured.
//!
//! Every wired interface gets an IPv4 link-local address (RFC 3927) and the kernel's IPv6 one, so
//! that two machines and one cable are enough. DHCP, prefixes of IPv6 routers and fixed addresses
//! are added as the `ip=` parameters of the kernel command line demand ([`IpParameter`]). Interfaces
//! may be added and removed at any time. One thread does everything; the protocol state machines
//! are pure.

mod current;
mod dhcp;
mod ether;
mod interface;
mod ip_parameter;
mod link;
mod link_local;
mod parameters;
mod place;
mod plan;
mod random;
mod route;
mod socket;
mod stack;
mod upper;
mod worker;

#[cfg(test)]
mod namespace;

pub use current::{Kept, Lost, NetworkSettings};
pub use dhcp::Lease;
pub use ether::Mac;
pub use ip_parameter::{Fixed, IgnoredParameter, IpParameter, Method, Problem};
pub use parameters::NetworkParameters;
pub use upper::{BondSetting, Upper, UpperKind};

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::thread::{Builder, JoinHandle};
use worker::Worker;

/// An event, to be shown on the console.
#[derive(Debug)]
#[non_exhaustive]
pub enum Note {
    /// The interface has a carrier.
    LinkUp {
        /// The interface.
        interface: String,
    },
    /// The interface has no carrier.
    LinkDown {
        /// The interface.
        interface: String,
    },
    /// The interface was removed.
    Gone {
        /// The interface.
        interface: String,
    },
    /// An address was assigned.
    Address {
        /// The interface.
        interface: String,
        /// The address.
        address: IpAddr,
    },
    /// An address was removed.
    AddressGone {
        /// The interface.
        interface: String,
        /// The address.
        address: IpAddr,
    },
    /// A DHCP lease was obtained.
    Lease {
        /// The interface.
        interface: String,
        /// What was lent.
        lease: Lease,
    },
    /// A DHCP lease expired or was withdrawn.
    LeaseLost {
        /// The interface.
        interface: String,
        /// What was lent.
        lease: Lease,
    },
    NoAnswer {
        /// The interface.
        interface: String,
    },
    /// Address conflict: another machine has the link-local address.
    Conflict {
        /// The interface.
        interface: String,
        /// The address.
        address: Ipv4Addr,
        /// The MAC address of the other machine.
        other: Mac,
    },
    /// A link-local address is used without conflict detection.
    Unasked {
        /// The interface.
        interface: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// A parameter names an interface that does not exist.
    Missing {
        /// The interface.
        interface: String,
    },
    /// The kernel refused a change.
    Failed {
        /// The interface.
        interface: String,
        /// The change, as a participle: "brought up".
        what: String,
        error: io::Error,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkUp { interface } => write!(f, "{interface}: connected"),
            Self::LinkDown { interface } => {
                write!(f, "{interface}: no carrier (no cable, or the other end is off)")
            }
            Self::Gone { interface } => write!(f, "{interface}: gone"),
            Self::Address { interface, address } => write!(f, "{interface}: {address}"),
            Self::AddressGone { interface, address } => write!(f, "{interface}: {address} is gone"),
            Self::Lease { interface, lease } => {
                write!(
                    f,
                    "{interface}: {} leased by the DHCP server {}",
                    lease.address, lease.server
                )
            }
            Self::LeaseLost { interface, lease } => {
                write!(
                    f,
                    "{interface}: the lease of {} from {} has ended",
                    lease.address, lease.server
                )
            }
            Self::NoAnswer { interface } => {
                write!(f, "{interface}: no DHCP server answers yet, still asking")
            }
            Self::Conflict { interface, address, other } => {
                write!(f, "{interface}: {address} belongs to {other}, trying another address")
            }
            Self::Unasked { interface, address } => write!(
                f,
                "{interface}: {address} is used without conflict detection: the driver af_packet is missing"
            ),
            Self::Missing { interface } => write!(
                f,
                "{interface}: a kernel parameter names this interface, which does not exist so far; it may have another name here"
            ),
            Self::Failed { interface, what, error } => {
                write!(f, "{interface}: could not be {what}: {error}")
            }
        }
    }
}

/// The network thread. Dropping it ends the thread; addresses are kept.
#[derive(Debug)]
pub struct Network {
    /// Closing it stops the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Starts the thread, which applies the parameters; without `ip=`, link-local addresses.
    ///
    /// `sink` is called on the thread and must not block.
    ///
    /// # Errors
    /// Fails without routing sockets or if no thread can be started. Later errors are reported as
    /// [`Note::Failed`].
    pub fn start(
        parameters: NetworkParameters,
        sink: impl FnMut(Note) + Send + 'static,
    ) -> io::Result<Self> {
        let worker = Worker::open(parameters, sink)?;
        let (stop, other) = UnixStream::pair()?;
        let thread = Builder::new().name("network".into()).spawn(move || worker.run(&other))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Stops the thread and joins it.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The panic message was printed already.
            let _ = thread.join();
        }
    }
}
