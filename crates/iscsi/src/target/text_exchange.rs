//! Text requests in full feature phase: discovery of targets (RFC 7143 §6.2, Appendix C).

use std::net::{IpAddr, SocketAddr};

use super::Violation;
use super::authorizer::Authorizer;
use super::link::{Data, Link};
use super::login::PORTAL_GROUP;
use super::outbox::Outbox;
use crate::iqn;
use crate::wire::bhs::{Bhs, FINAL, TextRequest, TextResponse, of_target};
use crate::wire::login::CONTINUE;
use crate::wire::text;
use crate::wire::{NO_TAG, opcode};

/// Maximum length of a text that continues over several requests, in bytes.
pub(super) const MAX_TEXT: usize = 16 << 10;

/// The tag of an exchange of several requests.
const TAG: u32 = 1;

/// The exchange in progress.
#[derive(Debug, Default)]
pub(super) struct TextExchange {
    /// Text of requests that are continued.
    request: Vec<u8>,
    /// Text of the response, until all of it has been sent, and how much of it has been.
    response: Vec<u8>,
    sent: usize,
    /// Whether the response has listed targets.
    listed: bool,
    /// Whether the initiator is to send another request.
    open: bool,
}

impl TextExchange {
    /// Processes a request. `target` is that of a normal session.
    pub(super) fn request(
        &mut self,
        header: &Bhs,
        data: &[u8],
        target: Option<&str>,
        authorizer: &Authorizer,
        link: &mut Link,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        let request = TextRequest::of(header);
        match request.ttt.get() {
            NO_TAG => *self = Self::default(),
            // What is left of a response is sent before more is answered.
            TAG if self.open && (self.response.is_empty() || data.is_empty()) => {}
            _ => {
                link.reject(header, opcode::reject::INVALID_FIELD, out);
                return Ok(());
            }
        }
        if self.request.len() + data.len() > MAX_TEXT {
            return Err(Violation::TextTooLong);
        }
        self.request.extend_from_slice(data);
        let continues = request.flags & CONTINUE != 0;
        if !continues {
            let text = std::mem::take(&mut self.request);
            let pairs = text::parse(&text).map_err(|_| Violation::TextMalformed)?;
            for (key, value) in pairs {
                self.answer(key, value, target, authorizer, link)?;
            }
        }
        self.respond(&request, continues, link, out);
        Ok(())
    }

    fn answer(
        &mut self,
        key: &str,
        value: &str,
        target: Option<&str>,
        authorizer: &Authorizer,
        link: &mut Link,
    ) -> Result<(), Violation> {
        match key {
            "SendTargets" if std::mem::replace(&mut self.listed, true) => {
                return Err(Violation::KeyInvalid);
            }
            "SendTargets" => self.targets(value, target, authorizer),
            "MaxRecvDataSegmentLength" => {
                let len = text::number(value).filter(|len| (512..1 << 24).contains(len));
                link.set_max_send(len.ok_or(Violation::KeyInvalid)?);
            }
            _ => text::push(&mut self.response, key, "NotUnderstood"),
        }
        Ok(())
    }

    /// Lists targets: all of them in a discovery session, only its own in a normal one.
    fn targets(&mut self, wanted: &str, target: Option<&str>, authorizer: &Authorizer) {
        let names: Vec<String> = match target {
            Some(_) if wanted == "All" => {
                return text::push(&mut self.response, "SendTargets", "Reject");
            }
            Some(own) => vec![own.to_owned()],
            None => authorizer.visible().iter().map(|export| iqn::of(&export.id)).collect(),
        };
        let wanted = wanted.to_ascii_lowercase();
        let all = wanted.is_empty() || wanted == "all";
        let address = authorizer.peer().local().and_then(portal);
        for name in names.into_iter().filter(|name| all || *name == wanted) {
            text::push(&mut self.response, "TargetName", &name);
            // The address that the initiator has reached: others may be behind a router.
            if let Some(address) = &address {
                text::push(&mut self.response, "TargetAddress", address);
            }
        }
    }

    /// Sends the response, or the part of it that fits into a PDU.
    fn respond(
        &mut self,
        request: &TextRequest,
        continues: bool,
        link: &mut Link,
        out: &mut Outbox,
    ) {
        let left = self.response.get(self.sent..).unwrap_or_default();
        let part = left.get(..link.max_send.min(left.len())).unwrap_or_default().to_vec();
        self.sent += part.len();
        let more = self.sent < self.response.len();
        if !more {
            (self.response, self.sent) = (Vec::new(), 0);
        }
        self.open = more || continues || request.flags & FINAL == 0;
        let mut response = TextResponse::of(&of_target(opcode::TEXT_RESPONSE));
        response.flags = match self.open {
            true if more => CONTINUE,
            true => 0,
            false => FINAL,
        };
        (response.lun, response.itt) = (request.lun, request.itt);
        response.ttt = if self.open { TAG } else { NO_TAG }.into();
        response.numbers = link.next_numbers();
        link.send(&response, Data::of(part), out);
    }
}

/// Returns the address of a portal with its group; `None` for a link-local one of IPv6, which is
/// valid only with a scope of the initiator.
fn portal(local: SocketAddr) -> Option<String> {
    let address = SocketAddr::new(local.ip().to_canonical(), local.port());
    let is_scoped = matches!(address.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    (!is_scoped).then(|| format!("{address},{PORTAL_GROUP}"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn portals_are_written_without_mapped_addresses() {
        let portal = |text: &str| portal(text.parse().unwrap()).unwrap();
        assert_eq!(portal("192.0.2.1:3260"), "192.0.2.1:3260,1");
        assert_eq!(portal("[::ffff:192.0.2.1]:3260"), "192.0.2.1:3260,1");
        assert_eq!(portal("[2001:db8::1]:3261"), "[2001:db8::1]:3261,1");
    }
}
