//! Reservations of disks that are restored after a restart: one file for each disk.

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use export::{ExportId, SavedReservations};
use serde::{Deserialize, Serialize};

use crate::private::{self, JSON, Lock};
use failure::Failure;

/// Directory in that of the keys.
const RESERVATIONS: &str = "reservations";

/// Longest file in bytes.
const MAX_LEN: usize = 1 << 20;

/// The directory of the files.
#[derive(Debug, Clone)]
pub struct ReservationFiles {
    folder: PathBuf,
}

/// The content of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    disk: String,
    #[serde(flatten)]
    state: SavedReservations,
}

impl ReservationFiles {
    /// Returns the files in the state directory `state`. It need not exist: it is created when the
    /// first file is written.
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join(RESERVATIONS) }
    }

    /// Reads the reservations of a disk. Returns `None` if there are none.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or is not what [`ReservationFiles::save`] writes.
    pub fn load(&self, disk: &ExportId) -> Result<Option<SavedReservations>, Failure> {
        let path = self.path(disk);
        if !is_there(&path)? {
            return Ok(None);
        }
        let text = private::read(&path, MAX_LEN)?;
        let record: Result<Record, _> = serde_json::from_slice(&text);
        match record {
            Ok(record) if record.disk == disk.to_string() => Ok(Some(record.state)),
            Ok(_) => Err(Failure::new(format!("{} is that of another disk", path.display()))),
            Err(error) => Err(Failure::new(format!("{} is damaged: {error}", path.display()))),
        }
    }

    /// Replaces the reservations of a disk, atomically; `None` removes them. They are on stable
    /// storage when it returns.
    ///
    /// # Errors
    /// Fails if the file cannot be written. The one before is kept.
    pub fn save(&self, disk: &ExportId, state: Option<SavedReservations>) -> Result<(), Failure> {
        let path = self.path(disk);
        let Some(state) = state else {
            return if is_there(&path)? { private::remove(&path) } else { Ok(()) };
        };
        private::make_folder(&self.folder)?;
        let _lock = Lock::take(&self.folder)?;
        let record = Record { disk: disk.to_string(), state };
        let text = serde_json::to_vec_pretty(&record);
        let text = text.map_err(|error| Failure::new(format!("reservations: {error}")))?;
        private::write(&path, &text)
    }

    /// Returns the file of a disk. Characters that are unusual in file names are escaped.
    fn path(&self, disk: &ExportId) -> PathBuf {
        let mut name = String::new();
        for byte in disk.to_string().bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b':' | b'-' | b'_'
                    if !(byte == b'.' && name.is_empty()) =>
                {
                    name.push(byte.into());
                }
                // Writing to a string does not fail.
                _ => drop(write!(name, "%{byte:02x}")),
            }
        }
        self.folder.join(name + JSON)
    }
}

fn is_there(path: &Path) -> Result<bool, Failure> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(private::cannot("be read", path, &error)),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Registrant, Registration, Reservation, ReservationType};
    use testkit::Scratch;

    fn state(key: u64) -> SavedReservations {
        let registrant =
            Registrant { host: "nqn.h\u{1}\"".to_owned(), id: vec![9; 16], port: 1, proven: true };
        let kind = ReservationType::ExclusiveAccessAllRegistrants;
        SavedReservations {
            registrations: vec![Registration {
                registrant: registrant.clone(),
                key,
                writable: true,
            }],
            reservation: Some(Reservation { kind, holder: registrant }),
        }
    }

    fn files() -> (Scratch, ReservationFiles) {
        let folder = Scratch::new();
        let files = ReservationFiles::new(&folder.0.join("state"));
        (folder, files)
    }

    #[test]
    fn reservations_are_read_as_they_were_written() {
        let (_folder, files) = files();
        let disks = [ExportId::Uuid([7; 16]), "nqn.2026-01.org.example:a".into(), "../%/".into()];
        for disk in &disks {
            assert_eq!(files.load(disk).unwrap(), None);
            files.save(disk, None).unwrap();
            files.save(disk, Some(state(1))).unwrap();
            files.save(disk, Some(state(u64::MAX))).unwrap();
        }
        for disk in &disks {
            assert_eq!(files.load(disk).unwrap(), Some(state(u64::MAX)));
            files.save(disk, None).unwrap();
            assert_eq!(files.load(disk).unwrap(), None);
        }
    }

    #[test]
    fn file_of_a_writer_that_was_killed_is_not_read() {
        let (_folder, files) = files();
        let disk = ExportId::from("nqn.a");
        files.save(&disk, Some(state(1))).unwrap();
        // Killed before the rename: the new file is there, whole or in part.
        let left = files.folder.join(".nqn.a.json.new");
        std::fs::write(&left, "{").unwrap();
        assert_eq!(files.load(&disk).unwrap(), Some(state(1)));
        files.save(&disk, Some(state(2))).unwrap();
        assert_eq!(files.load(&disk).unwrap(), Some(state(2)));
        assert!(!left.exists());
    }

    #[test]
    fn only_a_missing_file_stands_for_no_reservations() {
        let (folder, files) = files();
        let disk = ExportId::from("nqn.a");
        assert_eq!(files.load(&disk).unwrap(), None);
        std::fs::create_dir(folder.0.join("state")).unwrap();
        assert_eq!(files.load(&disk).unwrap(), None);
        std::fs::write(&files.folder, "").unwrap();
        let failure = files.load(&disk).unwrap_err().to_string();
        assert!(failure.contains("nqn.a.json"), "{failure}");
        assert!(files.save(&disk, None).is_err());
    }

    #[test]
    fn damaged_file_is_an_error() {
        let (_folder, files) = files();
        let disk = ExportId::from("nqn.a");
        files.save(&disk, Some(state(1))).unwrap();
        let path = files.path(&disk);
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&b""[..], b"{}", &whole[..whole.len() / 2], &[0; 512]] {
            std::fs::write(&path, damaged).unwrap();
            let failure = files.load(&disk).unwrap_err().to_string();
            assert!(failure.contains("is damaged"), "{failure}");
        }
        std::fs::write(&path, whole).unwrap();
        let other = ExportId::from("nqn.b");
        std::fs::rename(&path, files.path(&other)).unwrap();
        assert!(files.load(&other).unwrap_err().to_string().contains("another disk"));
    }

    #[test]
    fn file_of_an_older_version_is_read() {
        let (_folder, files) = files();
        let disk = ExportId::from("nqn.a");
        files.save(&disk, Some(state(1))).unwrap();
        let path = files.path(&disk);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut older: serde_json::Value = serde_json::from_str(&text).unwrap();
        let remove = |it: &mut serde_json::Value, key| {
            assert!(it.as_object_mut().unwrap().remove(key).is_some());
        };
        remove(&mut older["registrations"][0], "writable");
        remove(&mut older["registrations"][0]["registrant"], "proven");
        remove(&mut older["reservation"]["holder"], "proven");
        std::fs::write(&path, older.to_string()).unwrap();
        // As those of a host that has proven its name and may write.
        assert_eq!(files.load(&disk).unwrap(), Some(state(1)));
    }

    #[test]
    fn failed_save_keeps_the_file() {
        let (_folder, files) = files();
        let disk = ExportId::from("nqn.a");
        files.save(&disk, Some(state(1))).unwrap();
        std::fs::create_dir(files.folder.join(".nqn.a.json.new")).unwrap();
        assert!(files.save(&disk, Some(state(2))).is_err());
        assert_eq!(files.load(&disk).unwrap(), Some(state(1)));
    }
}
