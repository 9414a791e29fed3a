//! The certificate that this machine shows to browsers: signed by itself, and verified by a person or a
//! program that compares its fingerprint or public key.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use export::Secret;
use jiff::SignedDuration;
use jiff::civil::date;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, Error, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::private::{self, Lock};
use failure::Failure;

/// Name of the file in the state directory.
const FILE: &str = "web-certificate.json";

/// Longest file in bytes.
const MAX_LEN: usize = 64 << 10;

/// How long a certificate is valid: some systems accept no more than 825 days.
const LIFETIME: Duration = Duration::from_hours(800 * 24);

/// A certificate is made anew so long before its end.
const RENEWAL: Duration = Duration::from_hours(30 * 24);

/// The clock of another machine may be behind by so much.
const CLOCK_SKEW: Duration = Duration::from_hours(48);

/// Maximum number of addresses in a certificate.
const MAX_ADDRESSES: usize = 64;

/// A certificate with its private key.
#[derive(Debug, Clone)]
pub struct OwnCertificate {
    /// The certificate in PEM.
    pub chain: Secret,
    /// The private key in PEM.
    pub key: Secret,
    /// SHA-256 of the certificate: pairs of hexadecimal digits with colons between them.
    pub fingerprint: String,
    /// SHA-256 of the public key (SubjectPublicKeyInfo) in base64.
    pub pin: String,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Wiped from memory when it is dropped.
    key: String,
    certificate: String,
    fingerprint: String,
    pin: String,
    /// The addresses in the certificate.
    addresses: Vec<IpAddr>,
    /// Seconds since 1970.
    valid_from: u64,
    valid_until: u64,
}

/// Returns the certificate that is kept in the directory `folder`. Makes one if there is none, and
/// another one with the same key if it does not have all of `addresses` or ends soon.
///
/// # Errors
/// Fails if the file cannot be read or written, is readable by other users, or is damaged.
pub fn kept_in(
    folder: &Path,
    addresses: &[IpAddr],
    now: SystemTime,
) -> Result<OwnCertificate, Failure> {
    let path = folder.join(FILE);
    private::make_folder(folder)?;
    let _lock = Lock::take(folder)?;
    let kept = load(&path)?;
    if let Some(kept) = kept.as_ref().filter(|kept| kept.is_usable(addresses, now)) {
        return Ok(kept.own());
    }
    let record = make(kept.as_ref(), addresses, now).map_err(|error| cannot(&error))?;
    let text = serde_json::to_vec(&record).map_err(|error| cannot(&error))?;
    private::write(&path, Secret::new(text).bytes())?;
    Ok(record.own())
}

/// Returns a certificate that is not kept.
///
/// # Errors
/// Fails if random numbers are not available.
pub fn temporary(addresses: &[IpAddr], now: SystemTime) -> Result<OwnCertificate, Failure> {
    Ok(make(None, addresses, now).map_err(|error| cannot(&error))?.own())
}

fn cannot(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("no certificate for HTTPS can be made: {error}"))
}

fn load(path: &Path) -> Result<Option<Record>, Failure> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let text = private::read(path, MAX_LEN)?;
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let path = path.display();
        Failure::new(format!("{path} is damaged: {error}; remove it, and another one is made"))
    })
}

/// Makes a certificate, with the key and the addresses of the last one.
fn make(last: Option<&Record>, addresses: &[IpAddr], now: SystemTime) -> Result<Record, Error> {
    let key = match last {
        Some(last) => KeyPair::from_pem(&last.key)?,
        None => KeyPair::generate()?,
    };
    // The new ones first: a machine that moves between networks needs no other one each time.
    let before = last.iter().flat_map(|last| &last.addresses);
    let mut all: Vec<IpAddr> = Vec::new();
    for address in addresses.iter().chain(before) {
        if !all.contains(address) && all.len() < MAX_ADDRESSES {
            all.push(*address);
        }
    }
    let (from, until) = (now.checked_sub(CLOCK_SKEW).unwrap_or(now), now + LIFETIME);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "storagetm");
    params.subject_alt_names = all.iter().map(|address| SanType::IpAddress(*address)).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let day = |time| {
        let (year, month, day) = day_of(time);
        date_time_ymd(year, month, day)
    };
    (params.not_before, params.not_after) = (day(from), day(until));
    let certificate = params.self_signed(&key)?;
    let print = Sha256::digest(certificate.der());
    let print: Vec<String> = print.iter().map(|byte| format!("{byte:02X}")).collect();
    Ok(Record {
        fingerprint: print.join(":"),
        pin: BASE64_STANDARD.encode(Sha256::digest(key.subject_public_key_info())),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        addresses: all,
        valid_from: seconds(from),
        valid_until: seconds(until),
    })
}

/// Returns year, month and day. Before 1970 and after 9999 those of 1970.
fn day_of(time: SystemTime) -> (i32, u8, u8) {
    let since = i64::try_from(seconds(time)).unwrap_or_default();
    let start = date(1970, 1, 1);
    let day = start.at(0, 0, 0, 0).checked_add(SignedDuration::from_secs(since));
    let date = day.map_or(start, |day| day.date());
    let unsigned = |number: i8| u8::try_from(number).unwrap_or(1);
    (date.year().into(), unsigned(date.month()), unsigned(date.day()))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Drop for Record {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Record {
    /// Returns whether it has these addresses and is valid for some time.
    fn is_usable(&self, addresses: &[IpAddr], now: SystemTime) -> bool {
        let has_all = addresses.iter().take(MAX_ADDRESSES).all(|it| self.addresses.contains(it));
        has_all && seconds(now) >= self.valid_from && seconds(now + RENEWAL) < self.valid_until
    }

    fn own(&self) -> OwnCertificate {
        OwnCertificate {
            chain: Secret::new(self.certificate.clone().into_bytes()),
            key: Secret::new(self.key.clone().into_bytes()),
            fingerprint: self.fingerprint.clone(),
            pin: self.pin.clone(),
        }
    }
}

#[cfg(test)]
mod test {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use testkit::Scratch;

    fn at(ip: &str) -> IpAddr {
        ip.parse().unwrap()
    }

    #[test]
    fn certificate_stays_until_an_address_or_time_demands_another() {
        let (folder, now) = (Scratch::new(), SystemTime::now());
        let of = |addresses: &[IpAddr], now| kept_in(&folder.0, addresses, now).unwrap();
        let first = of(&[at("10.0.0.1")], now);
        let mode = fs::metadata(folder.0.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!((first.fingerprint.len(), first.pin.len()), (32 * 3 - 1, 44));
        assert!(first.chain.bytes().starts_with(b"-----BEGIN CERTIFICATE-----"));
        assert_eq!(of(&[at("10.0.0.1")], now).fingerprint, first.fingerprint);
        let second = of(&[at("fd00::1")], now);
        assert_eq!((&second.pin, &second.key), (&first.pin, &first.key), "the key stays");
        assert_ne!(second.fingerprint, first.fingerprint);
        assert_eq!(of(&[at("10.0.0.1")], now).fingerprint, second.fingerprint, "it has both");
        let later = of(&[at("10.0.0.1")], now + LIFETIME - RENEWAL);
        assert_eq!(later.pin, first.pin);
        assert_ne!(later.fingerprint, second.fingerprint);
        // The clock was wrong before.
        assert_ne!(of(&[at("10.0.0.1")], now).fingerprint, later.fingerprint);
        assert_ne!(temporary(&[], now).unwrap().pin, first.pin);
        assert!(temporary(&[], SystemTime::UNIX_EPOCH).is_ok());
    }

    #[test]
    fn readable_or_damaged_key_is_not_used() {
        let (folder, now) = (Scratch::new(), SystemTime::now());
        kept_in(&folder.0, &[], now).unwrap();
        let file = folder.0.join(FILE);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(kept_in(&folder.0, &[], now).unwrap_err().to_string().contains("0644"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "{}").unwrap();
        assert!(kept_in(&folder.0, &[], now).unwrap_err().to_string().contains("remove it"));
    }
}
