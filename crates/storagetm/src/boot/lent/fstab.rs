//! The tables of a system that say what it mounts and unlocks (fstab(5), crypttab(5)), changed for a boot on another
//! machine from a disk that must not be written to. Pure.

use linux::root::Limits;

/// What replaces a line that is left out.
const MARK: &str = "# storagetm: ";
/// Mount points that a system cannot do without.
const VITAL: [&str; 2] = ["/usr", "/var"];

/// An entry that mounts a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The device, as the table names it: `UUID=…`, `/dev/…`.
    pub(super) device: String,
    pub(super) point: String,
    /// What its options forbid.
    pub(super) limits: Limits,
}

impl Entry {
    /// Whether the system cannot start without it.
    pub(super) fn is_vital(&self) -> bool {
        VITAL.contains(&self.point.as_str())
    }
}

/// Returns the table without its block devices and swap areas, and the file systems of them below `/`, in its order; not
/// those with `noauto`, unless access mounts them.
pub(super) fn without_devices(fstab: &str) -> (String, Vec<Entry>) {
    let mut entries = Vec::new();
    let mut text = String::new();
    for line in fstab.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [device, point, kind, ..] = *words.as_slice() else {
            text.push_str(&format!("{line}\n"));
            continue;
        };
        if device.starts_with('#') || !(is_device(device) || kind == "swap" || point == "/") {
            text.push_str(&format!("{line}\n"));
            continue;
        }
        text.push_str(&format!("{MARK}{line}\n"));
        let options = words.get(3).copied().unwrap_or_default();
        let is_below = point.len() > 1 && point.starts_with('/');
        if is_device(device) && is_below && kind != "swap" && is_mounted(options) {
            entries.push(Entry {
                device: unescape(device),
                point: unescape(point),
                limits: limits(options),
            });
        }
    }
    (text, entries)
}

/// Returns the table without an entry.
pub(super) fn without_entries(table: &str) -> String {
    table
        .lines()
        .map(
            |line| {
                if line.starts_with('#') { format!("{line}\n") } else { format!("{MARK}{line}\n") }
            },
        )
        .collect()
}

fn is_device(name: &str) -> bool {
    let by = ["UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID=", "/dev/"];
    by.iter().any(|start| name.starts_with(start))
}

/// Whether an entry is mounted without being asked for: at the start, or when it is accessed (systemd.mount(5)).
fn is_mounted(options: &str) -> bool {
    let has = |option| options.split(',').any(|it| it == option);
    !has("noauto") || has("x-systemd.automount")
}

/// What the options of an entry forbid; the last one counts (mount(8)).
fn limits(options: &str) -> Limits {
    let mut limits = Limits::default();
    for option in options.split(',') {
        match option {
            "nosuid" | "suid" => limits.no_suid = option == "nosuid",
            "nodev" | "dev" => limits.no_devices = option == "nodev",
            "noexec" | "exec" => limits.no_programs = option == "noexec",
            "user" | "users" => {
                limits = Limits { no_suid: true, no_devices: true, no_programs: true }
            }
            "owner" | "group" => {
                limits = Limits { no_suid: true, no_devices: true, ..limits };
            }
            _ => {}
        }
    }
    limits
}

/// Decodes the escapes of a blank and a tab.
fn unescape(point: &str) -> String {
    point.replace("\\040", " ").replace("\\011", "\t")
}

#[cfg(test)]
mod test {
    use super::*;

    const FSTAB: &str = "# a comment\nUUID=1-2 / ext4 errors=remount-ro 0 1\nUUID=AB-CD /boot/efi vfat umask=0077 0 1\n\
        /dev/sda3\tnone swap sw 0 0\nLABEL=home /home\\040dir ext4 defaults 0 2\ntmpfs /tmp tmpfs size=1g 0 0\n\
        /swapfile none swap sw 0 0\nserver:/x /mnt nfs defaults 0 0\noverlay / overlay x 0 0\nbroken\n";

    #[test]
    fn devices_swap_and_root_are_left_out_of_fstab() {
        let (text, entries) = without_devices(FSTAB);
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            kept,
            ["tmpfs /tmp tmpfs size=1g 0 0", "server:/x /mnt nfs defaults 0 0", "broken"]
        );
        assert_eq!(text.lines().count(), FSTAB.lines().count());
        let found: Vec<_> =
            entries.iter().map(|it| (it.device.as_str(), it.point.as_str())).collect();
        assert_eq!(found, [("UUID=AB-CD", "/boot/efi"), ("LABEL=home", "/home dir")]);
        assert!(entries.iter().all(|entry| !entry.is_vital()));
        assert!(without_devices("UUID=1 /var ext4 x 0 0").1[0].is_vital());
    }

    #[test]
    fn options_of_an_entry_are_kept() {
        let of = |options: &str| without_devices(&format!("LABEL=a\\040b /x ext4 {options} 0 2")).1;
        for options in ["noauto", "ro,noauto,user"] {
            assert_eq!(of(options), [], "{options}");
        }
        let all = Limits { no_suid: true, no_devices: true, no_programs: true };
        for (options, limits) in [
            ("defaults", Limits::default()),
            ("noauto,x-systemd.automount", Limits::default()),
            ("nodev,nosuid,noexec", all),
            ("users", all),
            ("user,exec", Limits { no_programs: false, ..all }),
            ("nosuid,suid,nodev", Limits { no_devices: true, ..Limits::default() }),
        ] {
            let entries = of(options);
            assert_eq!(entries[0].limits, limits, "{options}");
            assert_eq!(entries[0].device, "LABEL=a b");
        }
    }

    #[test]
    fn table_is_left_out_once() {
        let once = without_entries("# x\nroot UUID=1 none luks\n");
        assert_eq!(once, "# x\n# storagetm: root UUID=1 none luks\n");
        assert_eq!(without_entries(&once), once);
        let (text, _) = without_devices(FSTAB);
        assert_eq!(without_devices(&text), (text.clone(), Vec::new()));
    }
}
