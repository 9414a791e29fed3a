//! Calls a service.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::message::{Call, Parameters, Reply, Splitter, TooLong, frame};

/// The longest reply in bytes.
const MAX_REPLY: usize = 4 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The service returned an error.
    #[error("{name}")]
    Service { name: String, parameters: Parameters },
    /// The service sent something that is no reply.
    #[error("it sent no reply: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("it sent {0}")]
    TooLong(#[from] TooLong),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connection to a service.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    splitter: Splitter,
}

impl Client {
    /// Connects to the service at `path`.
    ///
    /// # Errors
    /// Fails if no service listens there, or if it must not be called.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::over(UnixStream::connect(path)?))
    }

    /// Uses a connected socket.
    pub fn over(socket: UnixStream) -> Self {
        Self { socket, splitter: Splitter::new(MAX_REPLY) }
    }

    /// Sets how long to wait for a reply; for ever, if that is `None`.
    ///
    /// # Errors
    /// Fails if the time is zero.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)?;
        self.socket.set_write_timeout(timeout)
    }

    /// Calls a method with the members of `parameters`. Returns its output.
    ///
    /// # Errors
    /// Fails if the service returns an error, or if the connection does.
    pub fn call(
        &mut self,
        method: &str,
        parameters: impl Serialize,
    ) -> Result<Parameters, CallError> {
        self.send(&Call::new(method, parameters))?;
        Ok(self.receive()?.parameters)
    }

    /// Calls a method that replies several times. Calls `each` with the output of each reply, until it
    /// returns false or no reply follows.
    ///
    /// # Errors
    /// Fails if the service returns an error, or if the connection does.
    pub fn call_more(
        &mut self,
        method: &str,
        parameters: impl Serialize,
        mut each: impl FnMut(Parameters) -> bool,
    ) -> Result<(), CallError> {
        self.send(&Call { more: true, ..Call::new(method, parameters) })?;
        loop {
            let Reply { parameters, continues, .. } = self.receive()?;
            if !each(parameters) || !continues {
                return Ok(());
            }
        }
    }

    fn send(&mut self, call: &Call) -> Result<(), CallError> {
        Ok(self.socket.write_all(&frame(call)?)?)
    }

    fn receive(&mut self) -> Result<Reply, CallError> {
        let message = loop {
            if let Some(message) = self.splitter.next_message()? {
                break message;
            }
            let mut piece = [0; 4096];
            match self.socket.read(&mut piece) {
                Ok(0) => return Err(CallError::Io(ErrorKind::UnexpectedEof.into())),
                Ok(bytes) => self.splitter.push(piece.get(..bytes).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        };
        let Reply { error, parameters, continues } = serde_json::from_slice(&message)?;
        match error {
            Some(name) => Err(CallError::Service { name, parameters }),
            None => Ok(Reply { error: None, parameters, continues }),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::connection::Connection;
    use serde_json::json;

    /// Answers one call with `replies`.
    fn service(replies: Vec<Reply>) -> Client {
        let (client, server) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut server = Connection::new(server.into());
            while server.receive().unwrap().is_none() {
                server.wait(Duration::from_secs(10)).unwrap();
            }
            replies.iter().for_each(|reply| server.reply(reply, None).unwrap());
        });
        Client::over(client)
    }

    #[test]
    fn reply_of_a_method_is_returned() {
        let mut client = service(vec![Reply::new(json!({ "a": 1 }))]);
        assert_eq!(client.call("a.B", json!({})).unwrap()["a"], 1);
        let error = client.call("a.B", json!({})).unwrap_err();
        assert!(matches!(error, CallError::Io(_)), "{error}");
    }

    #[test]
    fn error_of_a_method_is_returned_with_its_parameters() {
        let mut client = service(vec![Reply::error("a.Wrong", json!({ "why": "x" }))]);
        let Err(CallError::Service { name, parameters }) = client.call("a.B", json!({})) else {
            panic!()
        };
        assert_eq!((name.as_str(), &parameters["why"]), ("a.Wrong", &json!("x")));
    }

    #[test]
    fn replies_of_a_method_end_with_the_last() {
        let one = |n: u32| Reply::new(json!({ "n": n }));
        let mut client = service(vec![one(1).continued(), one(2).continued(), one(3)]);
        let mut got = Vec::new();
        client
            .call_more("a.B", json!({}), |it| {
                got.push(it["n"].as_u64().unwrap());
                true
            })
            .unwrap();
        assert_eq!(got, [1, 2, 3]);
    }
}
