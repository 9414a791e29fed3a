//! Identification that is reported to hosts instead of a disk's own, as the environment of
//! systemd-storagetm(8) gives it.

use export::{ExportId, Identity};
use linux::identity;
use nvme::nqn;

/// Lengths of the fields in Identify Controller (NVMe Base 2.0 §5.17.2.1), in bytes.
const MODEL: usize = 40;
const FIRMWARE: usize = 8;
const SERIAL: usize = 20;

/// Values that replace those of the disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportedIdentity {
    model: Option<String>,
    firmware: Option<String>,
    serial: Option<String>,
    uuid: Option<[u8; 16]>,
}

impl ReportedIdentity {
    /// Reads `SYSTEMD_NVME_MODEL` and `SYSTEMD_NVME_FIRMWARE`, and if `is_one_disk` also
    /// `SYSTEMD_NVME_SERIAL` and `SYSTEMD_NVME_UUID`, which would be the same for all disks. Texts
    /// are cut off at the length of their field. Also returns messages about values that are ignored.
    pub fn read(
        variable: impl Fn(&str) -> Option<String>,
        is_one_disk: bool,
    ) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        let mut text = |name: &str, length| {
            let value = variable(name).filter(|value| !value.is_empty())?;
            let text = printable(&value, length);
            if text.is_none() {
                notes.push(format!("{name} is ignored: it has characters other than ASCII"));
            }
            text
        };
        let model = text("SYSTEMD_NVME_MODEL", MODEL);
        let firmware = text("SYSTEMD_NVME_FIRMWARE", FIRMWARE);
        if !is_one_disk {
            return (Self { model, firmware, ..Self::default() }, notes);
        }
        let serial = text("SYSTEMD_NVME_SERIAL", SERIAL);
        let given = variable("SYSTEMD_NVME_UUID").filter(|value| !value.is_empty());
        let uuid = given.as_deref().and_then(uuid);
        if given.is_some() && uuid.is_none() {
            notes.push("SYSTEMD_NVME_UUID is ignored: it is no UUID".to_owned());
        }
        (Self { model, firmware, serial, uuid }, notes)
    }

    /// Returns the values for disks other than the one disk that it was read for: those that several disks can have.
    #[must_use]
    pub fn of_others(self) -> Self {
        Self { serial: None, uuid: None, ..self }
    }

    /// Returns the identity as it is reported.
    pub(crate) fn replacing(&self, identity: identity::Identity) -> Identity {
        let or = |value: &Option<String>, own: String| value.clone().unwrap_or(own);
        let own_serial = self.serial.as_ref().map(|_| identity.serial.clone());
        Identity {
            own_serial,
            uuid: self.uuid.unwrap_or(identity.uuid),
            nguid: identity.nguid,
            eui64: identity.eui64,
            serial: or(&self.serial, identity.serial),
            model: or(&self.model, identity.model),
            firmware: or(&self.firmware, identity.firmware),
        }
    }
}

/// What hosts know a disk by since another target served it: the names of its subsystem and its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAs {
    nqn: String,
    serial: Option<String>,
    model: Option<String>,
    uuid: Option<[u8; 16]>,
    nguid: Option<[u8; 16]>,
}

impl KnownAs {
    /// Returns a subsystem without other names, or `None` if its NVMe Qualified Name cannot be one here.
    pub fn new(nqn: &str) -> Option<Self> {
        nqn::check_base(nqn).ok()?;
        Some(Self { nqn: nqn.to_owned(), serial: None, model: None, uuid: None, nguid: None })
    }

    /// Returns the same with these texts. Each is cut off at the length of its field; one with other characters than ASCII
    /// is ignored.
    #[must_use]
    pub fn with_controller(self, serial: Option<&str>, model: Option<&str>) -> Self {
        let serial = serial.and_then(|text| printable(text, SERIAL));
        Self { serial, model: model.and_then(|text| printable(text, MODEL)), ..self }
    }

    /// Returns the same with these identifiers of the namespace. One that is zero or malformed is ignored.
    #[must_use]
    pub fn with_namespace(self, uuid: Option<&str>, nguid: Option<&str>) -> Self {
        Self { uuid: uuid.and_then(self::uuid), nguid: nguid.and_then(self::uuid), ..self }
    }

    /// Returns the NVMe Qualified Name.
    pub fn nqn(&self) -> &str {
        &self.nqn
    }

    pub(crate) fn id(&self) -> ExportId {
        nqn::export_id(&self.nqn)
    }

    /// Returns the identity as it is reported. Without identifiers of the namespace the disk keeps its own.
    pub(crate) fn replacing(&self, own: Identity) -> Identity {
        let (serial, own_serial) = match &self.serial {
            Some(serial) => (serial.clone(), Some(own.own_serial.unwrap_or(own.serial))),
            None => (own.serial, own.own_serial),
        };
        let model = self.model.clone().unwrap_or(own.model);
        let (uuid, nguid, eui64) = match (self.uuid, self.nguid) {
            (None, None) => (own.uuid, own.nguid, own.eui64),
            (uuid, nguid) => (uuid.or(nguid).unwrap_or(own.uuid), nguid, None),
        };
        Identity { uuid, nguid, eui64, serial, own_serial, model, ..own }
    }
}

/// Returns the first `length` characters if all are printable ASCII.
fn printable(value: &str, length: usize) -> Option<String> {
    let is_printable = value.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    is_printable.then(|| value.chars().take(length).collect())
}

/// Parses a UUID, with or without hyphens. The nil UUID is none.
fn uuid(value: &str) -> Option<[u8; 16]> {
    let digits = value.replace('-', "");
    let is_hex = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(&digits, 16).ok().filter(|number| is_hex && *number != 0)?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod test {
    use super::*;

    fn read(values: &[(&str, &str)], is_one_disk: bool) -> (ReportedIdentity, usize) {
        let variable = |name: &str| {
            let found = values.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let (reported, notes) = ReportedIdentity::read(variable, is_one_disk);
        (reported, notes.len())
    }

    #[test]
    fn names_of_another_target_replace_those_of_the_disk() {
        let own = Identity {
            uuid: [1; 16],
            nguid: Some([2; 16]),
            eui64: Some([3; 8]),
            serial: "own".to_owned(),
            ..Identity::default()
        };
        let known = KnownAs::new("nvmet-always").unwrap();
        assert_eq!(known.replacing(own.clone()), own);
        let zero = "00000000-0000-0000-0000-000000000000";
        let uuid = "d592cdf3-5d1c-44e0-8412-3fcf7d99df27";
        let known = known.with_controller(Some("123456789abcdef"), Some("Linux"));
        let found = known.with_namespace(Some(uuid), Some(zero)).replacing(own);
        assert_eq!((found.uuid[0], found.nguid, found.eui64), (0xd5, None, None));
        assert_eq!((found.serial.as_str(), found.model.as_str()), ("123456789abcdef", "Linux"));
        assert_eq!(found.own_serial.as_deref(), Some("own"));
        for nqn in ["", "a b", "a/b", &"n".repeat(300)] {
            assert_eq!(KnownAs::new(nqn), None, "{nqn}");
        }
    }

    #[test]
    fn environment_replaces_the_identity_of_one_disk() {
        let values = [
            ("SYSTEMD_NVME_MODEL", "A model"),
            ("SYSTEMD_NVME_FIRMWARE", "123456789"),
            ("SYSTEMD_NVME_SERIAL", "S1"),
            ("SYSTEMD_NVME_UUID", "01234567-89ab-cdef-0123-456789abcdef"),
        ];
        let (reported, notes) = read(&values, true);
        let own = testkit_identity();
        let identity = reported.replacing(own.clone());
        assert_eq!((identity.model.as_str(), identity.firmware.as_str()), ("A model", "12345678"));
        assert_eq!(
            (identity.serial.as_str(), identity.uuid[..2].as_ref(), notes),
            ("S1", &[1, 0x23][..], 0)
        );
        assert_eq!(identity.own_serial.as_ref(), Some(&own.serial));
        let (reported, _) = read(&values, false);
        let identity = reported.replacing(own.clone());
        assert_eq!(
            (identity.model.as_str(), identity.serial, identity.uuid),
            ("A model", own.serial, own.uuid)
        );
        assert_eq!(read(&values, true).0.of_others(), reported);
    }

    #[test]
    fn unusable_values_are_ignored_with_a_message() {
        for (name, value) in [
            ("SYSTEMD_NVME_MODEL", "Modèle"),
            ("SYSTEMD_NVME_SERIAL", "a\nb"),
            ("SYSTEMD_NVME_UUID", "0123"),
            ("SYSTEMD_NVME_UUID", "00000000-0000-0000-0000-000000000000"),
            ("SYSTEMD_NVME_UUID", "+1234567-89ab-cdef-0123-456789abcdef"),
        ] {
            assert_eq!(
                read(&[(name, value)], true),
                (ReportedIdentity::default(), 1),
                "{name}={value}"
            );
        }
        assert_eq!(read(&[("SYSTEMD_NVME_MODEL", "")], true), (ReportedIdentity::default(), 0));
    }

    fn testkit_identity() -> identity::Identity {
        let machine = identity::machine_id(&linux::tree::Tree::at("/nonexistent"));
        identity::of_image(std::path::Path::new("/disk.img"), machine)
    }
}
