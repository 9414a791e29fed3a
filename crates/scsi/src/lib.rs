//! A SCSI disk without a transport: what a logical unit answers to commands, as sans-I/O state
//! machines. It implements SPC-4 and SBC-3; the transport is iSCSI or USB.
//!
//! | type | is |
//! |---|---|
//! | [`Nexus`] | the state of the disk for one initiator: [`Nexus::command`] decides what a CDB does |
//! | [`Command`] | that decision: it has ended, it is a read or a write, or it is a job |
//! | [`Transfer`] | a read or a write, which the transport executes itself |
//! | [`Job`] | any other command: [`Job::poll`] returns its [`Step`]s |
//! | [`Response`] | the end of a command: status, sense data, data |
//! | [`Sense`] | sense data in fixed format |
//! | [`Port`] | names and numbers of the target port |
//!
//! # The transport
//!
//! A transport has one [`Nexus`] for each session, and for each disk of the session. The disk is that
//! of the [`Grant`](export::Grant) which it passes to each call; its access mode decides whether the
//! disk is write protected. On [`Notice::StateChanged`](export::Notice::StateChanged) it calls
//! [`Nexus::changed`], and [polls](Job::poll) the jobs that wait.
//!
//! It executes a [`Transfer`] in pieces as it likes: it allocates buffers, makes a
//! [`Request`](export::Request) of each piece and has it [admitted](export::Grant::admit). Range and
//! access have been checked, and no memory was allocated. A piece that fails ends the command with
//! [`Response::fault`]; a write that fails with [`Fault::Busy`](export::Fault::Busy) waits for the
//! next notice instead.
//!
//! It executes the steps of a [`Job`], one at a time. Memory and disk requests of a job are the
//! transport's, and the requests are admitted already.
//!
//! [`Command::data_out`] and [`Command::data_in`] are the lengths that the CDB asks for. Residuals
//! are the transport's. A job whose [`Job::data_out`] differs from what the initiator sends should
//! end with [`Sense::INVALID_FIELD_IN_CDB`] at once.
//!
//! A session has LUN 0 only. Any other LUN is answered as one without a disk.
//!
//! # Reservations
//!
//! An initiator can reserve the disk if the grant has a
//! [registrant](export::Grant::with_registrant): for iSCSI the name of the initiator, the six bytes of
//! the ISID, and the relative identifier of the target port. The gate refuses what a reservation
//! refuses. A LOGICAL UNIT RESET ends RESERVE (6) of any initiator
//! ([`ReservationCommand::ResetUnit`](export::ReservationCommand::ResetUnit), which the transport
//! executes), and is a unit attention condition ([`Attention::Reset`]) of each nexus.
//!
//! # Example
//!
//! ```
//! use std::os::unix::fs::FileExt;
//! use std::sync::Arc;
//!
//! use export::{Access, Base, Export, Fault, Geometry, Grant, Identity, Op, Pool};
//! use scsi::{Command, Nexus, Port, Response, Sense, Status, Step};
//!
//! let disk = std::fs::File::open("/dev/zero")?;
//! let geometry = Geometry::new(512, 4096).ok_or("not a block size")?;
//! let mut export = Export::new("zero", "zero", Identity::default(), geometry, 4096, disk.into());
//! export.access = Access::Writable;
//! let grant = Grant::new(Arc::new(export));
//! let mut nexus = Nexus::new(&grant, Arc::new(Port::default()));
//! let account = Pool::new(1 << 20).open();
//!
//! // Executes a command without reading or writing blocks.
//! let mut execute = |cdb: [u8; 16], data_out: &[u8]| -> Result<Response, &str> {
//!     let mut data_out = data_out.iter();
//!     let mut job = match nexus.command(&grant, [0; 8], &cdb) {
//!         Command::Done(response) => return Ok(response),
//!         Command::Read(_) | Command::Write(_) => return Err("a transfer"),
//!         Command::Job(job) => job,
//!     };
//!     loop {
//!         match job.poll(&grant, 7).ok_or("nothing to do")? {
//!             Step::Receive { len } => {
//!                 let mut buffer = account.take(len).ok_or("no memory")?;
//!                 buffer.bytes_mut().iter_mut().zip(&mut data_out).for_each(|(to, from)| *to = *from);
//!                 job.received(buffer);
//!             }
//!             Step::Allocate { len, .. } => job.provide(account.take(len).ok_or("no memory")?),
//!             Step::Submit(mut admitted) => {
//!                 // That is for a driver.
//!                 let Base::Raw(disk) = admitted.export().backing().base() else { unreachable!() };
//!                 let disk = std::fs::File::from(disk.try_clone().map_err(|_| "no descriptor")?);
//!                 let offset = admitted.offset();
//!                 let result = match admitted.op() {
//!                     Op::Read => disk.read_exact_at(admitted.bytes_mut(), offset),
//!                     _ => Ok(()),
//!                 };
//!                 job.complete(admitted.finish(result.map_err(Fault::from)).outcome);
//!             }
//!             Step::Wait => return Err("another request has exclusive access"),
//!             Step::Notify => {}
//!             Step::Done(response) => return Ok(response),
//!         }
//!     }
//! };
//!
//! // The first command fails: the initiator has to know that the session is new.
//! let ready = execute([0; 16], &[])?;
//! assert_eq!(ready.sense.map(|sense| sense.code()), Some((0x29, 0)));
//! assert!(execute([0; 16], &[])?.is_good());
//! // READ CAPACITY (10).
//! let capacity = execute([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[])?;
//! assert_eq!(capacity.data, [0, 0, 0, 7, 0, 0, 2, 0]);
//! // VERIFY (10) of one block, which is compared.
//! let verify = [0x2f, 2, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
//! assert!(execute(verify, &[0; 512])?.is_good());
//! assert_eq!(execute(verify, &[1; 512])?.sense, Some(Sense::MISCOMPARE));
//! // SYNCHRONIZE CACHE (10) of a block beyond the end.
//! let flush = [0x35, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
//! assert_eq!(execute(flush, &[])?.status, Status::CheckCondition);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod capacity;
mod cdb;
mod copy;
mod inquiry;
mod job;
mod limits;
mod mode;
mod nexus;
mod port;
mod range;
mod report;
mod reservation;
mod response;
mod settings;
mod supported;
pub mod wire;

pub use job::{Job, Step};
pub use nexus::{Attention, Command, Lun, Nexus, Transfer, without_disk};
pub use port::Port;
pub use response::{Response, Status};
pub use wire::sense::Sense;
