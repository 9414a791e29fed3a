//! Requests of hosts to the target in memory, one at a time, so that the instructions of the target
//! can be counted, and what threads cost each other: without sockets and disk.

use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use export::{Access, Account, Budget, Catalogue, Finished, Peer, Pool, Segment, Session};
use nvme::command::{AdminCommand, IoCommand};
use nvme::host::{Completion, Controller, Options, Payload, Queue, Step};
use nvme::target::{Port, Target};
use nvme::wire::Sqe;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData};

use crate::processor;
use crate::serve::{self, Disk, NQN};
use crate::wire::HOST;

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Count {
    /// Bytes of a request.
    #[arg(long, default_value_t = 4096)]
    size: u32,
    /// Write instead of reading.
    #[arg(long)]
    write: bool,
    /// Number of requests.
    #[arg(long, default_value_t = 1000)]
    requests: u32,
    /// Measure the processor time of a request of so many hosts, each with a thread, pinned to a
    /// processor in turn. Without this option one host sends requests, and no clock is read, which
    /// valgrind does not support.
    #[arg(long)]
    threads: Option<usize>,
}

/// Bytes that are passed to the target at once while requests are large.
const WINDOW: usize = 128;

/// A connection in memory.
struct Link {
    host: Queue,
    target: Box<dyn Session>,
    to_host: Vec<u8>,
    to_target: Vec<u8>,
    /// Segments of the target.
    sent: Vec<Segment>,
    is_large: bool,
    now: Instant,
}

/// Executes the requests. With threads, prints the processor time of one, of host and target.
pub(crate) fn count(options: Count) -> Result<()> {
    let catalogue = Arc::new(Catalogue::default());
    let mut export = serve::lend(&Disk::Null)?;
    export.access = Access::Writable;
    catalogue.publish(Arc::new(export));
    let (target, budget) = (Target::new(catalogue), Budget::new(256 << 20));
    let Some(threads) = options.threads else {
        return count_one(&target, &budget, options, || Duration::ZERO).map(drop);
    };
    let processors = thread::available_parallelism()?.get();
    let times = thread::scope(|scope| {
        let start = |at| {
            let (target, budget) = (&target, &budget);
            scope.spawn(move || {
                processor::pin(at % processors)?;
                count_one(target, budget, options, processor::time_of_thread)
            })
        };
        let threads: Vec<_> = (0..threads).map(start).collect();
        let times = threads.into_iter().map(|one| one.join().ok().context("a thread panicked")?);
        times.collect::<Result<Vec<_>>>()
    })?;
    let mean = times.iter().sum::<Duration>() / u32::try_from(times.len().max(1))?;
    println!("{} ns for a request", (mean / options.requests.max(1)).as_nanos());
    Ok(())
}

/// Executes the requests of one host. Returns their processor time, as measured by `clock`.
fn count_one(
    target: &Arc<Target>,
    budget: &Arc<Budget>,
    options: Count,
    clock: fn() -> Duration,
) -> Result<Duration> {
    let account = Pool::with_budget(16 << 20, budget.clone()).open();
    let data = |cntlid| ConnectData::emit([0x7d; 16], cntlid, NQN, HOST);
    let with = |options| Options { flow_control: false, ..options };
    let (mut admin, cntlid) =
        Link::open(target, &account, with(Options::admin()), data(CNTLID_DYNAMIC)?)?;
    let mut controller = Controller::new(cntlid, 1);
    while let Some(ask) = controller.next_command() {
        let payload = match ask.len {
            0 => Payload::None,
            len => Payload::Receive(account.take(len).context("no memory for a page")?),
        };
        let Completion { status, result, buffer, .. } = admin.ask(ask.sqe, payload)?;
        controller.complete(status, result, buffer.as_ref().map_or(&[], |page| page.bytes()))?;
    }
    admin.ask(AdminCommand::KeepAlive.emit(), Payload::None)?;
    let io = Options::io(1, 8, controller.capsule_data());
    let (mut io, _) = Link::open(target, &account, with(io), data(cntlid)?)?;
    io.is_large = options.size > 16 << 10;
    let before = clock();
    for _ in 0..options.requests {
        io.request(&account, options)?;
    }
    Ok(clock().saturating_sub(before))
}

impl Link {
    fn open(
        target: &Arc<Target>,
        account: &Account,
        options: Options,
        data: ConnectData,
    ) -> Result<(Self, u16)> {
        let (now, peer) = (Instant::now(), Peer::unix(export::Auth::None));
        let target = Box::new(target.session(peer, Port::Any, account.clone(), now));
        let (to_host, to_target) = (Vec::new(), Vec::new());
        let (host, sent) = (Queue::new(options, data), Vec::new());
        let mut link = Self { host, target, to_host, to_target, sent, is_large: false, now };
        match link.step()? {
            Step::Connected(response) => Ok((link, response.cntlid)),
            step => bail!("the target answered Connect with {step:?}"),
        }
    }

    fn request(&mut self, account: &Account, options: Count) -> Result<()> {
        let buffer = account.take(options.size as usize).context("no memory for a request")?;
        let nlb = options.size / 512;
        let (command, payload) = if options.write {
            let command =
                IoCommand::Write { nsid: 1, slba: 0, nlb, fua: false, limited_retry: false };
            (command, Payload::Send(Rc::new(buffer)))
        } else {
            let command =
                IoCommand::Read { nsid: 1, slba: 0, nlb, fua: false, limited_retry: false };
            (command, Payload::Receive(buffer))
        };
        let done = self.ask(command.emit(), payload)?;
        if !done.status.is_success() {
            bail!("the target failed a request: {}", done.status);
        }
        Ok(())
    }

    fn ask(&mut self, sqe: Sqe, payload: Payload) -> Result<Completion> {
        if self.host.submit(sqe, payload, 0).is_err() {
            bail!("the queue has no room");
        }
        match self.step()? {
            Step::Completed(done) => Ok(done),
            step => bail!("the target answered with {step:?}"),
        }
    }

    /// Exchanges bytes until the host has something other than bytes.
    fn step(&mut self) -> Result<Step> {
        loop {
            while let Some(step) = self.host.poll() {
                match step {
                    Step::Send(segment) => self.to_target.extend(segment.parts().concat()),
                    step => return Ok(step),
                }
            }
            self.serve();
            for segment in self.sent.drain(..) {
                segment.parts().iter().for_each(|part| self.to_host.extend_from_slice(part));
            }
            let taken = self.host.receive(&self.to_host);
            self.to_host.drain(..taken);
        }
    }

    /// Passes bytes to the target and executes its steps. A disk request succeeds at once, and
    /// payload is not copied, as the kernel would do that. The function whose instructions are
    /// counted.
    #[inline(never)]
    fn serve(&mut self) {
        let mut start = 0;
        loop {
            let before = start;
            let rest = self.to_target.get(start..).unwrap_or_default();
            if let Some(window) = self.target.direct_recv() {
                let len = rest.len().min(window.end - window.start);
                start += len;
                self.target.direct_received(self.now, window, len);
            } else {
                // Not more than a header, so that large payload is received directly.
                let rest = rest.get(..WINDOW).filter(|_| self.is_large).unwrap_or(rest);
                start += self.target.receive(self.now, rest);
            }
            if !self.execute_steps() && start == before {
                break;
            }
        }
        self.to_target.drain(..start);
    }

    /// Returns whether the target had a step.
    fn execute_steps(&mut self) -> bool {
        let mut any = false;
        while let Some(step) = self.target.poll() {
            any = true;
            match step {
                export::Step::Send(segment) => self.sent.push(segment),
                export::Step::Submit(admitted) => {
                    let Finished { ticket, outcome, .. } = admitted.finish(Ok(()));
                    self.target.complete(self.now, ticket, outcome);
                }
                _ => {}
            }
        }
        any
    }
}
