//! Calls and replies (<https://varlink.org/Method-Call>), and the framing of a byte stream.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The members of an object.
pub type Parameters = Map<String, Value>;

/// A call of a method.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The method with its interface: `org.example.Interface.Method`.
    pub method: String,
    /// Its input.
    #[serde(default, deserialize_with = "object_or_null")]
    pub parameters: Parameters,
    /// Whether no reply is to be sent.
    #[serde(default, deserialize_with = "or_false", skip_serializing_if = "is_false")]
    pub oneway: bool,
    /// Whether there may be several replies.
    #[serde(default, deserialize_with = "or_false", skip_serializing_if = "is_false")]
    pub more: bool,
    /// Whether the connection is to be used for another protocol after the reply.
    #[serde(default, deserialize_with = "or_false", skip_serializing_if = "is_false")]
    pub upgrade: bool,
}

/// A reply to a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The error with its interface, if the call failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The output of the method, or of the error.
    #[serde(default, deserialize_with = "object_or_null")]
    pub parameters: Parameters,
    /// Whether more replies to this call follow.
    #[serde(default, deserialize_with = "or_false", skip_serializing_if = "is_false")]
    pub continues: bool,
}

impl Call {
    /// Returns the call of a method with the members of `parameters`, which is an object; without
    /// any if it is not.
    pub fn new(method: &str, parameters: impl Serialize) -> Self {
        let parameters = members(parameters);
        Self { method: method.to_owned(), parameters, ..Self::default() }
    }

    /// Returns the interface and the method. The interface is empty if there is no dot.
    pub fn split(&self) -> (&str, &str) {
        self.method.rsplit_once('.').unwrap_or(("", &self.method))
    }
}

impl Reply {
    /// Returns the last reply of a call, with the members of `parameters`, which is an object;
    /// without any if it is not.
    pub fn new(parameters: impl Serialize) -> Self {
        Self { parameters: members(parameters), ..Self::default() }
    }

    /// Returns the reply of a call that failed with an error of an interface.
    pub fn error(name: &str, parameters: impl Serialize) -> Self {
        Self { error: Some(name.to_owned()), ..Self::new(parameters) }
    }

    /// Returns the reply as one that others follow.
    #[must_use]
    pub fn continued(self) -> Self {
        Self { continues: true, ..self }
    }
}

fn members(parameters: impl Serialize) -> Parameters {
    match serde_json::to_value(parameters) {
        Ok(Value::Object(members)) => members,
        _ => Parameters::new(),
    }
}

/// Some implementations send null in place of an empty object.
fn object_or_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Parameters, D::Error> {
    Option::<Parameters>::deserialize(from).map(Option::unwrap_or_default)
}

/// The same for false.
fn or_false<'de, D: serde::Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Option::<bool>::deserialize(from).map(Option::unwrap_or_default)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Returns a message as it is sent, with its NUL byte.
///
/// # Errors
/// Fails if it cannot be written as JSON.
pub fn frame(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    // serde_json escapes control characters, so there is no other NUL byte.
    let mut frame = serde_json::to_vec(message)?;
    frame.push(0);
    Ok(frame)
}

/// A message is longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of more than {0} bytes")]
pub struct TooLong(pub usize);

/// Splits a byte stream into messages. Holds at most the bytes of one message of the greatest
/// length and of one read.
#[derive(Debug)]
pub struct Splitter {
    bytes: Vec<u8>,
    /// The bytes at the start that are known to hold no NUL.
    searched: usize,
    limit: usize,
}

impl Splitter {
    /// Returns a splitter that refuses messages of more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), searched: 0, limit }
    }

    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next complete message, without its NUL byte. Returns `None` if more bytes are needed.
    ///
    /// # Errors
    /// Fails if the message is longer than the limit.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let rest = self.bytes.get(self.searched..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).map(|at| at + self.searched);
        if end.unwrap_or(self.bytes.len()) > self.limit {
            return Err(TooLong(self.limit));
        }
        let Some(end) = end else {
            self.searched = self.bytes.len();
            return Ok(None);
        };
        let rest = self.bytes.split_off(end + 1);
        let mut message = std::mem::replace(&mut self.bytes, rest);
        message.truncate(end);
        self.searched = 0;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn call_has_the_form_of_the_specification() {
        let call = Call { more: true, ..Call::new("org.example.Ping", json!({"ping": "x\0"})) };
        let frame = frame(&call).unwrap();
        let text = r#"{"method":"org.example.Ping","parameters":{"ping":"x\u0000"},"more":true}"#;
        assert_eq!(frame, [text.as_bytes(), &[0]].concat());
        assert_eq!(serde_json::from_str::<Call>(text).unwrap(), call);
        assert_eq!(call.split(), ("org.example", "Ping"));
    }

    #[test]
    fn members_that_may_be_missing_are_optional() {
        for text in [
            r#"{"method":"a.B"}"#,
            r#"{"method":"a.B","parameters":null,"upgrade":false}"#,
            r#"{"method":"a.B","oneway":null,"more":null,"upgrade":null}"#,
        ] {
            let call = serde_json::from_str::<Call>(text).unwrap();
            assert_eq!(call, Call::new("a.B", json!({})), "{text}");
        }
        for text in [r#"{}"#, r#"{"method":1}"#, r#"{"method":"a.B","parameters":[]}"#] {
            assert!(serde_json::from_str::<Call>(text).is_err(), "{text}");
        }
        assert_eq!(serde_json::from_str::<Reply>("{}").unwrap(), Reply::default());
    }

    #[test]
    fn message_above_the_limit_is_refused() {
        let mut splitter = Splitter::new(4);
        splitter.push(b"four");
        assert_eq!(splitter.next_message(), Ok(None));
        splitter.push(b"\0five!\0");
        assert_eq!(splitter.next_message(), Ok(Some(b"four".to_vec())));
        assert_eq!(splitter.next_message(), Err(TooLong(4)));
    }

    #[test]
    fn message_without_an_end_is_refused() {
        let mut splitter = Splitter::new(4);
        splitter.push(b"five!");
        assert_eq!(splitter.next_message(), Err(TooLong(4)));
    }

    proptest! {
        #[test]
        fn messages_do_not_depend_on_how_bytes_arrive(
            messages in prop::collection::vec(prop::collection::vec(1u8.., 0..20), 0..8),
            piece in 1usize..9,
        ) {
            let stream: Vec<u8> =
                messages.iter().flat_map(|it| it.iter().copied().chain([0])).collect();
            let (mut splitter, mut found) = (Splitter::new(20), Vec::new());
            for bytes in stream.chunks(piece) {
                splitter.push(bytes);
                while let Some(message) = splitter.next_message().unwrap() {
                    found.push(message);
                }
            }
            prop_assert_eq!(found, messages);
        }
    }
}
