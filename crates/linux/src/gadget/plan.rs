//! The steps by which a gadget is made and connected, in order. They are undone in the reverse order.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::{Declaration, ENDPOINTS, GADGETS, NAME, RELEASE_TIMEOUT, ROLE_BEFORE, wait_until};
use crate::tree::Tree;

/// Vendor and product: Linux Foundation, multifunction composite gadget.
const IDENTIFIERS: [(&str, &str); 4] = [
    ("idVendor", "0x1d6b"),
    ("idProduct", "0x0104"),
    ("bcdDevice", "0x0100"),
    ("bcdUSB", "0x0320"),
];

/// Attributes of the configuration: self powered, 2 mA.
const CONFIGURATION: [(&str, &str); 2] = [("bmAttributes", "0xc0"), ("MaxPower", "2")];

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    MakeDirectory(PathBuf),
    Write(PathBuf, String),
    Mount,
    Link,
    /// Makes a port a device. `before` is its role up to then.
    SetRole {
        switch: PathBuf,
        before: String,
    },
    Bind {
        controller: String,
    },
}

/// Returns the steps up to the mount of the endpoints.
pub(super) fn set_up(declaration: &Declaration) -> Vec<Act> {
    let gadget = Path::new(GADGETS).join(NAME);
    let write = |folder: PathBuf| {
        move |(name, value): (&str, &str)| Act::Write(folder.join(name), value.to_owned())
    };
    let (strings, configuration) = (gadget.join("strings/0x409"), gadget.join("configs/c.1"));
    let texts = [
        ("serialnumber", declaration.serial.as_str()),
        ("manufacturer", "storagetm"),
        ("product", &declaration.product),
    ];
    let mut acts = vec![Act::MakeDirectory(gadget.clone())];
    acts.extend(IDENTIFIERS.map(write(gadget.clone())));
    acts.push(Act::MakeDirectory(strings.clone()));
    acts.extend(texts.map(write(strings)));
    acts.push(Act::MakeDirectory(configuration.clone()));
    acts.extend(CONFIGURATION.map(write(configuration)));
    acts.push(Act::MakeDirectory(function()));
    acts.push(Act::MakeDirectory(ENDPOINTS.into()));
    acts.push(Act::Mount);
    acts
}

/// Returns the step after the endpoints were opened: the function becomes part of the
/// configuration.
pub(super) fn link() -> Act {
    Act::Link
}

fn function() -> PathBuf {
    Path::new(GADGETS).join(NAME).join("functions").join(format!("ffs.{NAME}"))
}

fn link_path() -> PathBuf {
    Path::new(GADGETS).join(NAME).join("configs/c.1").join(format!("ffs.{NAME}"))
}

fn udc_path() -> PathBuf {
    Path::new(GADGETS).join(NAME).join("UDC")
}

/// Mounts a file system without a device.
pub(super) fn mount(kind: &str, place: &Path) -> io::Result<()> {
    let source = if kind == "functionfs" { NAME } else { kind };
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    Ok(rustix::mount::mount(source, place, kind, flags, None)?)
}

impl Act {
    fn run(&self, tree: &Tree) -> io::Result<()> {
        match self {
            Self::MakeDirectory(path) => match std::fs::create_dir(tree.path(path)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                result => result,
            },
            Self::Write(path, text) => std::fs::write(tree.path(path), text),
            Self::Mount => mount("functionfs", &tree.path(ENDPOINTS)),
            Self::Link => std::os::unix::fs::symlink(tree.path(function()), tree.path(link_path())),
            // Recorded first: this process may be killed.
            Self::SetRole { switch, before } => {
                let record = format!("{}\n{before}\n", switch.display());
                std::fs::write(tree.path(ROLE_BEFORE), record)?;
                let set = std::fs::write(tree.path(switch), "device");
                set.inspect_err(|_| drop(std::fs::remove_file(tree.path(ROLE_BEFORE))))
            }
            Self::Bind { controller } => std::fs::write(tree.path(udc_path()), controller),
        }
    }

    /// Errors are ignored: what does not exist need not be removed.
    fn undo(&self, tree: &Tree) {
        let _ = match self {
            // What a process that has just ended had open is released a moment later.
            Self::MakeDirectory(path) => {
                let path = tree.path(path);
                wait_until(RELEASE_TIMEOUT, || match std::fs::remove_dir(&path) {
                    Ok(()) => true,
                    Err(error) => error.kind() != io::ErrorKind::ResourceBusy,
                });
                Ok(())
            }
            Self::Write(..) => Ok(()),
            Self::Mount => rustix::mount::unmount(tree.path(ENDPOINTS), UnmountFlags::DETACH)
                .map_err(Into::into),
            Self::Link => std::fs::remove_file(tree.path(link_path())),
            Self::SetRole { switch, before } => {
                // Another program may have changed it since.
                let is_ours = tree.text(switch).is_ok_and(|role| role.trim() == "device");
                let back = if is_ours { std::fs::write(tree.path(switch), before) } else { Ok(()) };
                back.and_then(|()| std::fs::remove_file(tree.path(ROLE_BEFORE)))
            }
            Self::Bind { .. } => std::fs::write(tree.path(udc_path()), "\n"),
        };
    }
}

/// The steps that were done.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<Act>);

impl Made {
    /// All steps but the connection to a port, for an unknown declaration.
    pub(super) fn all() -> Self {
        let (serial, product) = Default::default();
        let (descriptors, strings) = Default::default();
        let mut acts = set_up(&Declaration { serial, product, descriptors, strings });
        acts.push(link());
        Self(acts)
    }

    /// The change of a port's role that a process which was killed has recorded, if it can be undone: its
    /// switch is one of `switches`.
    pub(super) fn recorded(tree: &Tree, switches: &[PathBuf]) -> Self {
        let record = tree.text(ROLE_BEFORE).unwrap_or_default();
        let (switch, before) = record.split_once('\n').unwrap_or_default();
        let (switch, before) = (PathBuf::from(switch), before.trim_end().to_owned());
        let is_role = matches!(before.as_str(), "none" | "host");
        let is_known = is_role && switches.contains(&switch);
        Self(is_known.then_some(Act::SetRole { switch, before }).into_iter().collect())
    }

    /// Does the steps.
    pub(super) fn make(&mut self, tree: &Tree, acts: &[Act]) -> io::Result<()> {
        for act in acts {
            act.run(tree)?;
            self.0.push(act.clone());
        }
        Ok(())
    }

    /// Undoes all steps, the last one first.
    pub(super) fn undo(&mut self, tree: &Tree) {
        self.0.drain(..).rev().for_each(|act| act.undo(tree));
    }

    /// Undoes the connection to a port.
    pub(super) fn unbind(&mut self, tree: &Tree) {
        if let Some(act) = self.0.pop_if(|act| matches!(act, Act::Bind { .. })) {
            act.undo(tree);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::tree::fake::Fake;

    fn acts() -> Vec<Act> {
        let (serial, product) = ("0123456789AB".to_owned(), "disks".to_owned());
        set_up(&Declaration { serial, product, descriptors: Vec::new(), strings: Vec::new() })
    }

    #[test]
    fn gadget_is_made_before_its_function_is_mounted() {
        let acts = acts();
        let at = |path: &str| {
            let path = Path::new(GADGETS).join(NAME).join(path);
            let is_it = |act: &Act| match act {
                Act::MakeDirectory(other) | Act::Write(other, _) => *other == path,
                _ => false,
            };
            acts.iter().position(is_it).unwrap()
        };
        assert_eq!(at(""), 0);
        assert!(at("strings/0x409") < at("strings/0x409/serialnumber"));
        assert!(at("configs/c.1") < at("functions/ffs.storagetm"));
        assert_eq!(acts.last(), Some(&Act::Mount));
    }

    #[test]
    fn failed_set_up_leaves_nothing_behind() {
        let fake = Fake::new();
        fake.file("run/keep", "");
        fake.file(&format!("{GADGETS}/keep"), "");
        let directories: Vec<Act> = acts()
            .into_iter()
            .filter(|act| matches!(act, Act::MakeDirectory(path) if path.components().count() < 6))
            .collect();
        let mut made = Made::default();
        made.make(&fake.tree(), &directories).unwrap();
        assert!(made.make(&fake.tree(), &[Act::Mount]).is_err(), "a test cannot mount");
        assert!(fake.tree().path(ENDPOINTS).exists());
        made.undo(&fake.tree());
        assert!(!fake.tree().path(ENDPOINTS).exists());
        assert!(!fake.tree().path(GADGETS).join(NAME).exists());
    }

    #[test]
    fn port_is_released_first() {
        let fake = Fake::new();
        fake.file(&format!("{GADGETS}/{NAME}/UDC"), "\n");
        let mut made = Made::default();
        let bind = Act::Bind { controller: "dummy_udc.0".to_owned() };
        made.make(&fake.tree(), &[bind]).unwrap();
        assert_eq!(fake.tree().attribute(udc_path()).unwrap(), "dummy_udc.0");
        made.unbind(&fake.tree());
        assert_eq!(fake.tree().attribute(udc_path()), None);
        made.unbind(&fake.tree());
    }
}
