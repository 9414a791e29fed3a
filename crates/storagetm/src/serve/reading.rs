//! Reading by HTTPS: the certificate of this machine, and the code that admits to it.

use std::net::IpAddr;
use std::time::SystemTime;

use console::ReadingAccess;
use daemon::certificates::CertificateIds;
use daemon::event::ServeEvent;
use daemon::listen::Protocols;
use failure::Failure;
use keys::certificate::{self, OwnCertificate};
use keys::store::Store;
use linux::net::{Scope, addresses};
use protocol::endpoint::Endpoint;
use protocol::{Protocol, https};
use web::Code;

use super::Context;
use super::config::{PairingMode, ServeConfig};

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
/// compared with, and a note if it cannot be kept.
///
/// # Errors
/// Fails if none can be made.
pub(super) fn prepare(
    config: &mut ServeConfig,
) -> Result<(Option<CertificateIds>, Option<String>), Failure> {
    if !Protocols::of(&config.protocols).has(Protocol::Https) {
        return Ok((None, None));
    }
    let (own, note) = certificate(config)?;
    let ids = CertificateIds::from(&own);
    config.worker.web_certificate = Some(own.into());
    Ok((Some(ids), note))
}

fn certificate(config: &ServeConfig) -> Result<(OwnCertificate, Option<String>), Failure> {
    let (addresses, now) = (own_addresses(), SystemTime::now());
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

/// Returns the addresses that browsers may use now. One that comes later is not in the certificate.
fn own_addresses() -> Vec<IpAddr> {
    let all = addresses().unwrap_or_default().into_iter();
    let mut own: Vec<IpAddr> = all
        .filter(|address| address.scope == Scope::Loopback || address.is_usable())
        .map(|address| address.ip)
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
