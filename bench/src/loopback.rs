//! The limit of the machine: two threads exchange messages of NVMe/TCP's sizes without a protocol,
//! at the same queue depth.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::load::Work;
use crate::processor;

/// Bytes of a command capsule, and of a data header or a response.
const COMMAND: usize = 72;
const ANSWER: usize = 24;

/// Bytes that either side receives or sends at once.
const BATCH: usize = 1 << 20;

/// The result of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// Round trips per second.
    pub(crate) rate: f64,
    /// CPU time of the server per round trip, in microseconds.
    pub(crate) server_time: f64,
}

/// Exchanges the messages of `work` for `time`, server and client on a CPU each. If `sleeps`, the
/// client blocks while it waits, as the server always does.
pub(crate) fn run(
    work: Work,
    time: Duration,
    [server, client]: [usize; 2],
    sleeps: bool,
) -> Result<Limit> {
    let sizes = Sizes::of(work);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let socket = TcpStream::connect(listener.local_addr()?)?;
    let (peer, _) = listener.accept()?;
    let serving = thread::spawn(move || serve(peer, sizes, server));
    processor::pin(client)?;
    let rate = ask(socket, sizes, work.depth.into(), time, sleeps)?;
    let (served, used) = serving.join().ok().context("the server of the loopback panicked")??;
    Ok(Limit { rate, server_time: used.as_secs_f64() * 1e6 / served })
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    request: usize,
    answer: usize,
}

impl Sizes {
    fn of(work: Work) -> Self {
        match work.write {
            true => Self { request: COMMAND + work.size, answer: ANSWER },
            false => Self { request: COMMAND, answer: ANSWER + work.size },
        }
    }
}

/// Replies to whole requests, all received ones by one send, until the client closes. Returns their
/// number and the CPU time.
fn serve(mut socket: TcpStream, sizes: Sizes, processor: usize) -> Result<(f64, Duration)> {
    processor::pin(processor)?;
    socket.set_nodelay(true)?;
    let (mut inbox, answers) = (vec![0; BATCH], vec![0; BATCH]);
    let (mut partly, mut served) = (0, 0.0);
    loop {
        let got = socket.read(&mut inbox)?;
        if got == 0 {
            return Ok((served, processor::time_of_thread()));
        }
        let whole = (partly + got) / sizes.request;
        partly = (partly + got) % sizes.request;
        send(&mut socket, &answers, whole * sizes.answer)?;
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        {
            served += whole as f64;
        }
    }
}

fn send(socket: &mut TcpStream, zeros: &[u8], len: usize) -> Result<()> {
    let mut left = len;
    while left != 0 {
        let piece = left.min(zeros.len());
        match socket.write(&zeros[..piece]) {
            Ok(sent) => left -= sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn ask(
    mut socket: TcpStream,
    sizes: Sizes,
    depth: usize,
    time: Duration,
    sleeps: bool,
) -> Result<f64> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(!sleeps)?;
    let (mut inbox, requests) = (vec![0; BATCH], vec![0; BATCH]);
    send(&mut socket, &requests, depth * sizes.request)?;
    let (mut partly, mut answered) = (0, 0.0);
    let start = Instant::now();
    while start.elapsed() < time {
        let got = match socket.read(&mut inbox) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        let whole = (partly + got) / sizes.answer;
        partly = (partly + got) % sizes.answer;
        send(&mut socket, &requests, whole * sizes.request)?;
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        {
            answered += whole as f64;
        }
    }
    let rate = answered / start.elapsed().as_secs_f64();
    finish(socket, &mut inbox)?;
    Ok(rate)
}

/// Receives the remaining data, so that the server does not end with an error.
fn finish(mut socket: TcpStream, inbox: &mut [u8]) -> Result<()> {
    socket.set_nonblocking(false)?;
    socket.shutdown(std::net::Shutdown::Write)?;
    while socket.read(inbox)? != 0 {}
    Ok(())
}
