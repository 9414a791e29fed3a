//! `storagetm examine`: the helper process that probes disks, one thread each.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use linux::disk::examine;
use rustix::net::{AddressFamily, getsockname};

use super::{Answer, Question};
use failure::Failure;

/// Stack size of a probe thread.
const STACK: usize = 256 << 10;

/// Locks by whole disk, held while one of its partitions is open exclusively.
type Turns = HashMap<String, Arc<Mutex<()>>>;

/// Answers requests until the socket is closed.
///
/// # Errors
/// Fails if it was not started by this program.
pub fn work() -> Result<(), Failure> {
    let socket = socket().ok_or_else(|| {
        Failure::usage("storagetm examine is a part of this program, which starts it by itself")
    })?;
    answer(&socket);
    // Does not wait for threads that are blocked on disks.
    std::process::exit(0)
}

fn socket() -> Option<UnixStream> {
    let input = io::stdin().as_fd().try_clone_to_owned().ok()?;
    let address = getsockname(&input).ok()?;
    (address.address_family() == AddressFamily::UNIX).then(|| input.into())
}

/// Reads requests and starts a thread for each.
pub(super) fn answer(socket: &UnixStream) {
    let Ok(answers) = socket.try_clone() else { return };
    let answers = Arc::new(Mutex::new(answers));
    let mut turns = Turns::new();
    let lines = BufReader::new(socket).split(b'\n').map_while(Result::ok);
    for line in lines {
        let Ok(question) = serde_json::from_slice::<Question>(&line) else { return };
        let turn = turns.entry(question.whole.clone()).or_default().clone();
        let (number, answers) = (question.number, answers.clone());
        let sent = answers.clone();
        let examine = move || say(&answers, &look(&question, &turn));
        if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(examine) {
            let failed = super::Failed::from(error);
            let answer = Answer { number, contents: Err(failed.clone()), is_busy: Err(failed) };
            say(&sent, &answer);
        }
    }
}

fn look(question: &Question, turn: &Mutex<()>) -> Answer {
    let contents = examine::contents(&question.node, question.bytes);
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    let is_busy = examine::is_busy(&question.node);
    Answer {
        number: question.number,
        contents: contents.map_err(Into::into),
        is_busy: is_busy.map_err(Into::into),
    }
}

fn say(answers: &Mutex<UnixStream>, answer: &Answer) {
    let Ok(mut line) = serde_json::to_vec(answer) else { return };
    line.push(b'\n');
    // The other end may have closed.
    let _ = answers.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
}
