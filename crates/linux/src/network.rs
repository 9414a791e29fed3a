//! The network of a machine that has no service for it: interfaces up, link-local addresses always, others as asked.
//!
//! Does not know who listens on the addresses, nor who shows the notes.
//!
//! Every wired interface gets an IPv4 link-local address (RFC 3927) and the kernel's IPv6 one, so that two machines
//! and one cable are enough; DHCP, the prefixes of IPv6 routers and fixed addresses come beside them, as the `ip=`
//! words of the kernel command line ask ([`Setting`]). Interfaces may come and go at any time. Everything is done by
//! one thread, which sleeps when there is nothing to do; the state machines know neither sockets nor clocks.

mod dhcp;
mod ether;
mod interface;
mod link;
mod link_local;
mod plan;
mod random;
mod route;
mod setting;
mod socket;
mod worker;

#[cfg(test)]
mod namespace;

pub use dhcp::Lease;
pub use ether::Mac;
pub use setting::{BadSetting, Fixed, Method, Problem, Setting};

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::thread::{Builder, JoinHandle};
use worker::Worker;

/// What happened, for the person at the screen.
#[derive(Debug)]
#[non_exhaustive]
pub enum Note {
    /// There is somebody at the other end of the cable.
    LinkUp {
        /// The interface.
        interface: String,
    },
    /// The interface is there, and its cable leads nowhere.
    LinkDown {
        /// The interface.
        interface: String,
    },
    /// The interface is gone.
    Gone {
        /// The interface.
        interface: String,
    },
    /// An address can be used.
    Address {
        /// The interface.
        interface: String,
        /// The address.
        address: IpAddr,
    },
    /// An address is gone.
    AddressGone {
        /// The interface.
        interface: String,
        /// The address.
        address: IpAddr,
    },
    /// A DHCP server lent an address.
    Lease {
        /// The interface.
        interface: String,
        /// What was lent.
        lease: Lease,
    },
    /// A lent address ended, or its server took it back.
    LeaseLost {
        /// The interface.
        interface: String,
        /// What was lent.
        lease: Lease,
    },
    /// No DHCP server answers.
    NoAnswer {
        /// The interface.
        interface: String,
    },
    /// Another machine has the link-local address that was wanted or used.
    Conflict {
        /// The interface.
        interface: String,
        /// The address.
        address: Ipv4Addr,
        /// The card of the other machine.
        other: Mac,
    },
    /// A link-local address is used without having asked whether it is free.
    Unasked {
        /// The interface.
        interface: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// A setting names an interface that has not come.
    Missing {
        /// The interface.
        interface: String,
    },
    /// The kernel refused something.
    Failed {
        /// The interface.
        interface: String,
        /// What it could not be: "brought up".
        what: String,
        /// Why.
        error: io::Error,
    },
}

/// One sentence.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkUp { interface } => write!(f, "{interface}: connected"),
            Self::LinkDown { interface } => {
                write!(f, "{interface}: no cable, or nobody at its other end")
            }
            Self::Gone { interface } => write!(f, "{interface}: gone"),
            Self::Address { interface, address } => write!(f, "{interface}: {address}"),
            Self::AddressGone { interface, address } => write!(f, "{interface}: {address} is gone"),
            Self::Lease { interface, lease } => {
                write!(f, "{interface}: {} lent by the DHCP server {}", lease.address, lease.server)
            }
            Self::LeaseLost { interface, lease } => {
                write!(f, "{interface}: {} is no longer lent by {}", lease.address, lease.server)
            }
            Self::NoAnswer { interface } => {
                write!(f, "{interface}: no DHCP server answers yet, still asking")
            }
            Self::Conflict { interface, address, other } => {
                write!(f, "{interface}: {address} belongs to {other}, trying another address")
            }
            Self::Unasked { interface, address } => write!(
                f,
                "{interface}: {address} is used without asking whether it is free: the driver af_packet is missing"
            ),
            Self::Missing { interface } => write!(
                f,
                "{interface}: ip= names this interface, but there is none so far; its name may be another one here"
            ),
            Self::Failed { interface, what, error } => {
                write!(f, "{interface}: could not be {what}: {error}")
            }
        }
    }
}

/// The running thread. When it is dropped the thread ends; addresses stay as they are.
#[derive(Debug)]
pub struct Network {
    /// Closing it ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Brings the network up by the settings, or with link-local addresses if there are none, and keeps it up.
    ///
    /// The sink is called from the thread; what it waits for, the network waits for.
    ///
    /// Errors: no routing sockets, no thread. What fails later is a [`Note::Failed`].
    pub fn start(
        settings: Vec<Setting>,
        sink: impl FnMut(Note) + Send + 'static,
    ) -> io::Result<Self> {
        let worker = Worker::open(settings, sink)?;
        let (stop, other) = UnixStream::pair()?;
        let thread = Builder::new().name("network".into()).spawn(move || worker.run(&other))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Ends the thread and waits for it.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has told its reason already.
            let _ = thread.join();
        }
    }
}
