//! Events as sentences for people.

use console::{decimal, escape_unprintable, short_host_nqn, size};

use export::Transport;

use super::{HostAuth, ServeEvent, is_once};

/// The end of the sentence about a host that got no state in an overlay.
const NO_ROOM: &str = "; it can only read, since the overlay has no room for another host: end storagetm and start \
                       it again, or discard what a host has written";

impl ServeEvent {
    /// Returns the event as a sentence, or `None` if the screen shows it in another way.
    pub fn sentence(&self) -> Option<String> {
        let sentence = match self {
            Self::Listening { .. }
            | Self::Lent { .. }
            | Self::Ready
            | Self::Pairing { .. }
            | Self::Reading { .. } => return None,
            Self::Asking { name, address, .. } => {
                format!("{name} at {address} has the right code and asks for write access")
            }
            Self::Paired { name, address, access, .. } => {
                format!("{name} at {address} was paired by the code: {access}")
            }
            Self::Closed { at, .. } => format!("{at} is gone from this machine"),
            Self::Attached { which, host, address, shown, no_room, .. } => {
                let who = who(shown.key.as_deref(), host, address);
                let no_room = if *no_room { NO_ROOM } else { "" };
                format!("{} is attached by {who}{}{no_room}", which.disk, shown.encryption())
            }
            Self::Detached { which, host, address, reason, read, written, shown, .. } => {
                let who = who(shown.key.as_deref(), host, address);
                let (disk, read, written) = (&which.disk, decimal(*read), decimal(*written));
                format!(
                    "{disk} is no longer attached by {who}: {reason}; it has read {read} and written {written}"
                )
            }
            Self::Refused { host, address, wanted, reason, count, .. } => {
                let (who, times) = (who(None, host, address), times(*count));
                match wanted.as_str() {
                    "" => format!("{who} was refused{times}: {reason}"),
                    _ => format!("{who} asked for {wanted} and was refused{times}: {reason}"),
                }
            }
            Self::Violation { address, rule, count, .. } => {
                let times = times(*count);
                format!("the host at {address} broke the protocol and was cut off{times}: {rule}")
            }
            Self::Fault { which, op, offset, bytes, count: 1, reason } => {
                format!("{}: {op} of {bytes} bytes at {offset} failed: {reason}", which.disk)
            }
            Self::Fault { which, op, offset, bytes, count, reason } => {
                let (disk, end) = (&which.disk, offset.saturating_add(*bytes));
                format!("{disk}: {count} {op} requests between {offset} and {end} failed: {reason}")
            }
            Self::Resized { which, bytes, before } if bytes < before => {
                format!("{} is shorter than it was: {bytes} bytes instead of {before}", which.disk)
            }
            Self::Resized { which, bytes, .. } => {
                format!("{} has now {}", which.disk, size(*bytes))
            }
            Self::Withdrawn { which, reason } => {
                format!("{} is lent no longer: {reason}", which.disk)
            }
            Self::Lost { count } => format!("{count} events were lost: they were not read in time"),
            Self::Note { message } => message.clone(),
            Self::Stopped => "storagetm has stopped; all hosts are disconnected".to_owned(),
        };
        Some(escape_unprintable(&sentence, true))
    }
}

impl HostAuth {
    /// How the connection is encrypted, as a clause.
    fn encryption(&self) -> String {
        self.tls.as_ref().map(|tls| format!(", encrypted ({tls})")).unwrap_or_default()
    }
}

/// The host by its name in the access policy if it used a key, else by its NQN.
fn who(known_as: Option<&str>, host: &str, address: &str) -> String {
    let host = match known_as {
        Some(name) => name.to_owned(),
        None if host.is_empty() => "a host without a name".to_owned(),
        None => short_host_nqn(host, true),
    };
    if address == Transport::Usb.to_string() {
        return "the computer at the USB cable".to_owned();
    }
    if address == Transport::Unix.to_string() {
        format!("{host} on this machine")
    } else {
        format!("{host} at {address}")
    }
}

/// " 17 times", or an empty string for 1.
fn times(count: u64) -> String {
    if is_once(&count) { String::new() } else { format!(" {count} times") }
}
