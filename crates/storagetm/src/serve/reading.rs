//! Reading by HTTPS: the certificate of this machine, and the code that admits to it.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use console::ReadingAccess;
use daemon::certificates::CertificateIds;
use daemon::event::ServeEvent;
use daemon::listen::{Listener, Protocols};
use failure::Failure;
use keys::certificate::{self, OwnCertificate};
use keys::store::Store;
use linux::net::{Address, Assigned, Scope, assigned};
use protocol::endpoint::Endpoint;
use protocol::{Protocol, https};
use web::Code;

use super::Context;
use super::config::{PairingMode, ServeConfig};
use super::network::planned;

/// The code, and what a person compares the certificate with; nothing without HTTPS.
#[derive(Default)]
pub(super) struct Reading {
    certificate: Option<CertificateIds>,
    code: Option<Code>,
    /// Whether the code is shown.
    is_shown: bool,
    /// Whether it is reported as an event, too.
    is_reported: bool,
}

/// Adds the certificate to the configuration of the worker, if HTTPS is served. Returns what it is
/// compared with, and a note if it cannot be kept. `has_inherited`: whether sockets are passed by the service
/// manager.
///
/// # Errors
/// Fails if none can be made, or if an address cannot be listened on.
pub(super) fn prepare(
    config: &mut ServeConfig,
    has_inherited: bool,
) -> Result<(Option<CertificateIds>, Option<String>), Failure> {
    if !Protocols::of(&config.protocols).has(Protocol::Https) {
        return Ok((None, None));
    }
    let (own, note) = certificate(config, has_inherited)?;
    let ids = CertificateIds::from(&own);
    config.worker.web_certificate = Some(own.into());
    Ok((Some(ids), note))
}

fn certificate(
    config: &ServeConfig,
    has_inherited: bool,
) -> Result<(OwnCertificate, Option<String>), Failure> {
    let assigned = assigned().unwrap_or_default();
    let all: Vec<Address> = assigned.iter().map(|it| it.address.clone()).collect();
    let listeners = planned(config, has_inherited, &all)?.listeners(&all);
    let (addresses, now) = (certified(&listeners, &assigned), SystemTime::now());
    let folder = Store::locate(config.keys.as_deref());
    match folder.and_then(|folder| certificate::kept_in(&folder, &addresses, now)) {
        Ok(kept) => Ok((kept, None)),
        Err(failure) => {
            let note = format!(
                "HTTPS has another certificate with each start, as it is not kept: {failure}"
            );
            Ok((certificate::temporary(&addresses, now)?, Some(note)))
        }
    }
}

/// Returns the addresses at which HTTPS is served now. One that comes later is not in the certificate, nor
/// are temporary ones, with which there would be another certificate each day.
fn certified(listeners: &[Listener], assigned: &[Assigned]) -> Vec<IpAddr> {
    let serves = |ip: IpAddr| {
        let https = listeners.iter().filter(|it| it.serves.protocol == Protocol::Https);
        let mut https = https.filter_map(|it| Some((it, it.socket()?.port())));
        https.any(|(listener, port)| listener.accepts(SocketAddr::new(ip, port)))
    };
    let lasting = assigned.iter().filter(|it| !it.temporary).map(|it| &it.address);
    let mut own: Vec<IpAddr> = lasting
        .filter(|address| address.scope == Scope::Loopback || address.is_usable())
        .map(|address| address.ip)
        .filter(|ip| serves(*ip))
        .collect();
    own.sort_unstable();
    own.dedup();
    own
}

impl Reading {
    /// Makes the code if HTTPS is served.
    ///
    /// # Errors
    /// Fails if random numbers are not available.
    pub(super) fn start(
        certificate: Option<CertificateIds>,
        mode: PairingMode,
        cx: &Context<'_>,
    ) -> Result<Self, Failure> {
        let is_reported = mode == PairingMode::Reported;
        let is_shown = is_reported || cx.ui.has_screen();
        let mut reading = Self { certificate, code: None, is_shown, is_reported };
        reading.make_code(cx)?;
        Ok(reading)
    }

    /// Makes another code: what was begun with the last one ends. If random numbers are not available, the
    /// last code stays, which is reported.
    pub(super) fn renew(&mut self, endpoints: &[Endpoint], cx: &mut Context<'_>) {
        match self.make_code(cx) {
            Ok(()) => self.report(endpoints, cx),
            Err(failure) => cx.ui.report(&ServeEvent::note(failure)),
        }
        cx.ui.draw_soon(self.is_reported);
    }

    fn make_code(&mut self, cx: &Context<'_>) -> Result<(), Failure> {
        if self.certificate.is_none() {
            return Ok(());
        }
        let mut random = [0; 8];
        if !nvme::auth::chap::system_random(&mut random) {
            return Err(Failure::new("no random numbers for the code of HTTPS"));
        }
        let code = Code::new(random);
        cx.worker.set_reading_code(code.clone());
        self.code = Some(code);
        Ok(())
    }

    /// Reports the code as an event, if that is asked for.
    pub(super) fn report(&self, endpoints: &[Endpoint], cx: &mut Context<'_>) {
        let Some(code) = self.code.as_ref().filter(|_| self.is_reported) else { return };
        let page = endpoints.iter().filter(|at| at.keyed).find_map(https::page);
        let link = page.map(|page| https::link(&page, code.text()));
        cx.ui.emit(&ServeEvent::Reading { code: code.grouped(), link });
    }

    /// Returns what the screen shows.
    pub(super) fn access(&self) -> Option<ReadingAccess> {
        let ids = self.certificate.as_ref()?;
        let code = self.code.as_ref().filter(|_| self.is_shown).map(Code::grouped);
        Some(ReadingAccess { code, is_on_screen: false, fingerprint: ids.fingerprint.to_string() })
    }
}

#[cfg(test)]
mod test {
    use daemon::listen::{DefaultScope, plan};
    use linux::net::scope_of;

    use super::*;

    fn at(ip: &str, temporary: bool) -> Assigned {
        let ip: IpAddr = ip.parse().unwrap();
        let address = Address {
            ip,
            interface: "eth0".to_owned(),
            scope_id: 2,
            scope: scope_of(ip),
            tentative: false,
            deprecated: false,
            running: true,
        };
        Assigned { address, prefix: 24, leased: false, temporary }
    }

    #[test]
    fn certificate_has_lasting_addresses_that_are_listened_on() {
        let assigned = [
            at("127.0.0.1", false),
            at("10.0.0.1", false),
            at("172.17.0.1", false),
            at("2001:db8::1", false),
            at("2001:db8::7:7", true),
        ];
        let all: Vec<Address> = assigned.iter().map(|it| it.address.clone()).collect();
        let of = |given: &[&str], scope| {
            let given: Vec<_> = given.iter().map(|text| text.parse().unwrap()).collect();
            let protocols = Protocols::of(&[Protocol::Nvme, Protocol::Https]);
            let plan = plan(&given, protocols, scope, false, &all).unwrap();
            certified(&plan.listeners(&all), &assigned)
        };
        let ips = |list: &[usize]| -> Vec<IpAddr> {
            let mut ips: Vec<IpAddr> = list.iter().map(|n| all[*n].ip).collect();
            ips.sort_unstable();
            ips
        };
        assert_eq!(of(&[], DefaultScope::Nearby), ips(&[0]));
        assert_eq!(of(&[], DefaultScope::Everywhere), ips(&[0, 1, 2, 3]));
        assert_eq!(of(&[], DefaultScope::Present), ips(&[0, 1, 2, 3]));
        let given = ["https:10.0.0.1", "nvme:172.17.0.1", "https:[2001:db8::7:7]"];
        assert_eq!(of(&given, DefaultScope::Nearby), ips(&[1]));
    }
}
