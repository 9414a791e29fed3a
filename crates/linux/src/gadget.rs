//! This machine as a USB device: its device controllers, and a gadget with one function whose
//! endpoints are files (configfs and `FunctionFS`).

mod plan;

use std::fmt::Display;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::tree::Tree;
use plan::{Act, Made};

/// Directory of the gadgets in configfs, and the mount point of configfs.
const GADGETS: &str = "sys/kernel/config/usb_gadget";
const CONFIGFS: &str = "sys/kernel/config";

/// Name of the gadget and of its function.
const NAME: &str = "storagetm";

/// Where the endpoints are mounted.
const ENDPOINTS: &str = "run/storagetm-usb";

/// Locked by the process that has the gadget.
const LOCK: &str = "run/storagetm-usb.lock";

/// The switch of a port that was made a device, and its role before, while it is one.
const ROLE_BEFORE: &str = "run/storagetm-usb.role";

/// PCI devices, and the class of USB device controllers among them.
const PCI: &str = "sys/bus/pci/devices";
const DEVICE_CONTROLLER: &str = "0x0c03fe";

/// How long a controller may take to appear once a port has changed its role.
const ROLE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the kernel may take to release what a process that has ended had open.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the device declares.
#[derive(Debug, Clone)]
pub struct Declaration {
    /// Serial number: at least 12 characters of 0-9 and A-F.
    pub serial: String,
    /// Name of the product.
    pub product: String,
    /// Interface and endpoints, and its strings, as the file `ep0` takes them.
    pub descriptors: Vec<u8>,
    pub strings: Vec<u8>,
}

/// The endpoints of the function.
#[derive(Debug)]
pub struct Endpoints {
    /// Endpoint 0: events and requests.
    pub control: OwnedFd,
    /// Bulk endpoint to the host.
    pub bulk_in: OwnedFd,
    /// Bulk endpoint from the host.
    pub bulk_out: OwnedFd,
}

/// A device controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Its name: `dwc3.1.auto`.
    pub name: String,
    /// The gadget of another program that uses it, if any.
    pub user: Option<String>,
}

/// A gadget. Taken down when dropped; all copies of its endpoints should be closed before.
#[derive(Debug)]
pub struct Gadget {
    tree: Tree,
    controller: String,
    made: Made,
    /// The roles of ports that were changed, and the connection to the controller.
    connection: Made,
    /// Released last.
    _lock: File,
}

/// Returns the device controllers of this machine.
pub fn controllers(tree: &Tree) -> Vec<Controller> {
    let gadgets: Vec<(String, String)> = tree
        .names(GADGETS)
        .into_iter()
        .filter_map(|name| {
            let bound = tree.attribute(Path::new(GADGETS).join(&name).join("UDC"))?;
            Some((bound, name))
        })
        .collect();
    let user = |controller: &str| {
        let gadget = gadgets.iter().find(|(bound, _)| bound == controller);
        let function = || tree.attribute(format!("sys/class/udc/{controller}/function"));
        gadget.map(|(_, gadget)| gadget.clone()).or_else(function)
    };
    let names = tree.names("sys/class/udc").into_iter();
    names.map(|name| Controller { user: user(&name), name }).collect()
}

/// Returns the serial number of the device: derived from the identifier of the machine.
pub fn serial(machine: &[u8; 16]) -> String {
    let hash = Sha256::new().chain_update(machine).chain_update(b"storagetm usb").finalize();
    hash.iter().take(12).map(|byte| format!("{byte:02X}")).collect()
}

/// Returns whether a port of this machine can act as a device: it has a controller, or a switch of
/// its role.
pub fn is_possible(tree: &Tree) -> bool {
    has_controller(tree) || !role_switches(tree).is_empty()
}

/// Returns whether the machine has a device controller now.
pub fn has_controller(tree: &Tree) -> bool {
    !tree.names("sys/class/udc").is_empty()
}

/// Returns a sentence about why no port of this machine can act as a device.
pub fn absence(tree: &Tree) -> String {
    let is_undriven = |address: &String| {
        let device = Path::new(PCI).join(address);
        tree.attribute(device.join("class")).as_deref() == Some(DEVICE_CONTROLLER)
            && !tree.path(device.join("driver")).exists()
    };
    match tree.names(PCI).into_iter().find(is_undriven) {
        Some(address) => format!("no driver for the USB device controller {address} is loaded"),
        None => "this machine has no USB port that can act as a device, or its firmware has \
                 switched that off"
            .to_owned(),
    }
}

/// The switches of ports that are hosts and can be devices.
fn role_switches(tree: &Tree) -> Vec<PathBuf> {
    let mut switches = switches(tree);
    // A port of type C that has both roles shows the current one in brackets: `[host] device`.
    switches.retain(|path| {
        path.ends_with("role")
            || tree
                .attribute(path)
                .is_some_and(|roles| roles.contains("[host]") && roles.contains("device"))
    });
    switches
}

/// The switches of all ports.
fn switches(tree: &Tree) -> Vec<PathBuf> {
    let of = |class: &str, attribute: &str| {
        let class = Path::new(class);
        let paths = tree.names(class).into_iter().map(|name| class.join(name).join(attribute));
        paths.filter(|path| tree.path(path).exists()).collect::<Vec<_>>()
    };
    [of("sys/class/usb_role", "role"), of("sys/class/typec", "data_role")].concat()
}

/// Takes down what a process that was killed has left: its gadget, and the role of a port. Not if
/// another process uses them, nor without the rights.
pub fn recover(tree: &Tree) {
    if is_left(tree)
        && let Ok(_lock) = lock(tree)
    {
        take_down(tree);
    }
}

/// Returns whether there is a gadget, or a port that was made a device.
fn is_left(tree: &Tree) -> bool {
    tree.path(GADGETS).join(NAME).exists() || tree.path(ROLE_BEFORE).exists()
}

/// Takes down what an earlier process has left. Only with the lock.
fn take_down(tree: &Tree) {
    if tree.path(GADGETS).join(NAME).exists() {
        Made::all().undo(tree);
    }
    Made::recorded(tree, &switches(tree)).undo(tree);
}

/// Returns the current role that a switch shows: `host`, or that in brackets of `[host] device`.
fn role(tree: &Tree, switch: &Path) -> Option<String> {
    let roles = tree.attribute(switch)?;
    let current = roles.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    Some(current.map_or(roles.as_str(), |(current, _)| current).to_owned())
}

/// Returns the controller to use. If there is none, ports are made devices first, as steps of
/// `connection`.
///
/// # Errors
/// Fails with a sentence if there is none, or if other programs use them all. The ports have their
/// former roles then.
fn choose(tree: &Tree, connection: &mut Made) -> Result<String, String> {
    for switch in role_switches(tree) {
        if has_controller(tree) {
            break;
        }
        let Some(before) = role(tree, &switch) else { continue };
        if connection.make(tree, &[Act::SetRole { switch, before }]).is_ok() {
            wait_until(ROLE_TIMEOUT, || has_controller(tree));
        }
        if !has_controller(tree) {
            connection.undo(tree);
        }
    }
    free(tree).inspect_err(|_| connection.undo(tree))
}

/// Returns a controller that no other program uses.
fn free(tree: &Tree) -> Result<String, String> {
    let all = controllers(tree);
    let is_free = |it: &&Controller| it.user.as_deref().is_none_or(|user| user == NAME);
    match (all.iter().find(is_free), all.first()) {
        (Some(free), _) => Ok(free.name.clone()),
        (None, Some(Controller { name, user: Some(user) })) => Err(format!(
            "the USB port {name} is in use by the gadget {user} of another program; stop that first"
        )),
        _ => Err(absence(tree)),
    }
}

impl Gadget {
    /// Sets the gadget up, without connecting it to a port. `load` loads a kernel module.
    ///
    /// # Errors
    /// Fails with a sentence. Nothing is left behind.
    pub fn open(
        tree: &Tree,
        declaration: &Declaration,
        load: &dyn Fn(&str),
    ) -> Result<(Self, Endpoints), String> {
        if !tree.path(GADGETS).exists() {
            load("libcomposite");
            // Without it, the controller is missing, or the directory.
            let _ = plan::mount("configfs", &tree.path(CONFIGFS));
        }
        // Before anything is changed that another process may use.
        let lock = lock(tree)?;
        // Of an earlier process that was killed.
        take_down(tree);
        let mut connection = Made::default();
        let controller = choose(tree, &mut connection)?;
        if !tree.path(GADGETS).exists() {
            connection.undo(tree);
            return Err(cannot(&"this kernel has no USB gadgets (libcomposite)"));
        }
        load("usb_f_fs");
        let mut made = Made::default();
        let endpoints = made
            .make(tree, &plan::set_up(declaration))
            .and_then(|()| open_endpoints(tree, declaration))
            .and_then(|endpoints| made.make(tree, &[plan::link()]).map(|()| endpoints));
        match endpoints {
            Ok(endpoints) => {
                let tree = tree.clone();
                Ok((Self { tree, controller, made, connection, _lock: lock }, endpoints))
            }
            Err(error) => {
                made.undo(tree);
                connection.undo(tree);
                Err(cannot(&error))
            }
        }
    }

    /// Connects the gadget to the port: a host at the other end of a cable sees it from now on.
    /// Connects it again if the controller was gone, which may have returned under another name.
    ///
    /// # Errors
    /// Fails with a sentence.
    pub fn connect(&mut self) -> Result<(), String> {
        self.connection.unbind(&self.tree);
        if !self.tree.names("sys/class/udc").contains(&self.controller) {
            self.controller = choose(&self.tree, &mut self.connection)?;
        }
        let bind = Act::Bind { controller: self.controller.clone() };
        self.connection.make(&self.tree, &[bind]).map_err(|error| match error.raw_os_error() {
            Some(code) if code == Errno::BUSY.raw_os_error() => format!(
                "the USB port {} is in use by another program; stop that first",
                self.controller
            ),
            _ => format!("the USB port {} cannot be used: {error}", self.controller),
        })
    }

    /// Disconnects the gadget: the host sees it unplugged. Ports that were made devices have their
    /// former roles again.
    pub fn disconnect(&mut self) {
        self.connection.undo(&self.tree);
    }

    /// Returns whether it is connected to the port. The kernel disconnects it when no process has its
    /// endpoints open, and when the controller is gone.
    pub fn is_connected(&self) -> bool {
        self.tree.attribute(Path::new(GADGETS).join(NAME).join("UDC")).is_some()
    }

    /// Returns the name of the controller.
    pub fn controller(&self) -> &str {
        &self.controller
    }

    /// Returns the state of the device, such as `configured` or `not attached`, and the speed of
    /// the cable, such as `high-speed`.
    pub fn state(&self) -> (String, String) {
        let attribute = |name: &str| {
            let path = format!("sys/class/udc/{}/{name}", self.controller);
            self.tree.attribute(path).unwrap_or_default()
        };
        (attribute("state"), attribute("current_speed"))
    }
}

impl Drop for Gadget {
    fn drop(&mut self) {
        self.disconnect();
        self.made.undo(&self.tree);
    }
}

/// Locks the gadget for this process, whether it is connected or not.
fn lock(tree: &Tree) -> Result<File, String> {
    let file = open_lock(&tree.path(LOCK)).map_err(|error| cannot(&error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err("another storagetm uses the USB port".to_owned()),
        Err(error) => Err(cannot(&error)),
    }
}

/// Opens the lock file. Only its owner can open it: whoever opens it can hold the lock.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        let text = format!("{} has another owner; remove it", path.display());
        return Err(io::Error::other(text));
    }
    if metadata.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Opens the endpoints, which exist once `ep0` has been written to.
fn open_endpoints(tree: &Tree, declaration: &Declaration) -> io::Result<Endpoints> {
    let open = |name: &str| {
        let path = tree.path(ENDPOINTS).join(name);
        File::options().read(true).write(true).open(path)
    };
    let mut control = open("ep0")?;
    // Each in one call.
    control.write_all(&declaration.descriptors)?;
    control.write_all(&declaration.strings)?;
    let (bulk_in, bulk_out) = (open("ep1")?.into(), open("ep2")?.into());
    Ok(Endpoints { control: control.into(), bulk_in, bulk_out })
}

/// Waits until a condition is met, or a time has passed.
fn wait_until(patience: Duration, is_met: impl Fn() -> bool) {
    let until = Instant::now() + patience;
    while !is_met() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cannot(error: &dyn Display) -> String {
    format!("this machine cannot act as a USB device: {error}")
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::tree::fake::Fake;

    fn declaration() -> Declaration {
        let (serial, product) = Default::default();
        let (descriptors, strings) = Default::default();
        Declaration { serial, product, descriptors, strings }
    }

    #[test]
    fn lock_file_cannot_be_opened_by_other_users() {
        let fake = Fake::new();
        fake.file("run/keep", "");
        let mode = || fake.tree().path(LOCK).metadata().unwrap().mode() & 0o777;
        drop(lock(&fake.tree()).unwrap());
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(fake.tree().path(LOCK), Permissions::from_mode(0o644)).unwrap();
        drop(lock(&fake.tree()).unwrap());
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn role_is_kept_while_another_process_has_the_gadget() {
        let fake = Fake::new();
        fake.file("run/keep", "").file("sys/kernel/config/usb_gadget/keep", "");
        fake.file("sys/class/usb_role/port/role", "none\n");
        let _held = lock(&fake.tree()).unwrap();
        Gadget::open(&fake.tree(), &declaration(), &|_| {}).unwrap_err();
        let text = fake.tree().text("sys/class/usb_role/port/role").unwrap();
        assert_eq!(text, "none\n", "not written");
    }

    #[test]
    fn port_without_a_controller_gets_its_role_back() {
        let fake = Fake::new();
        fake.file("run/keep", "").file("sys/kernel/config/usb_gadget/keep", "");
        fake.file("sys/class/usb_role/port/role", "none\n");
        let refused = Gadget::open(&fake.tree(), &declaration(), &|_| {}).unwrap_err();
        assert!(refused.contains("no USB port"), "{refused}");
        let text = fake.tree().text("sys/class/usb_role/port/role").unwrap();
        assert_eq!(text, "none", "written");
    }

    #[test]
    fn machine_without_a_controller_is_told_so() {
        let fake = Fake::new();
        assert!(!is_possible(&fake.tree()) && controllers(&fake.tree()).is_empty());
        assert!(free(&fake.tree()).unwrap_err().contains("no USB port that can act as a device"));
    }

    #[test]
    fn gadget_of_another_program_is_named() {
        let fake = Fake::new();
        fake.file("sys/class/udc/dwc3.1.auto/function", "");
        fake.file("sys/kernel/config/usb_gadget/g1/UDC", "dwc3.1.auto\n");
        let refused = free(&fake.tree()).unwrap_err();
        assert!(refused.contains("dwc3.1.auto is in use by the gadget g1"), "{refused}");
        fake.file("sys/class/udc/fe980000.usb/function", "");
        assert_eq!(free(&fake.tree()).unwrap(), "fe980000.usb");
    }

    #[test]
    fn controller_without_a_driver_is_named() {
        let fake = Fake::new();
        fake.file("sys/bus/pci/devices/0000:00:14.0/class", "0x0c0330\n");
        fake.file("sys/bus/pci/devices/0000:00:14.1/class", "0x0c03fe\n");
        assert!(absence(&fake.tree()).contains("controller 0000:00:14.1 is"));
        fake.file("sys/bus/pci/devices/0000:00:14.1/driver/bind", "");
        assert!(absence(&fake.tree()).contains("no USB port"));
    }

    #[test]
    fn gadget_of_a_live_process_is_left_alone() {
        let fake = Fake::new();
        fake.file("run/keep", "");
        // It is not connected, for example because its controller is gone.
        fake.file("sys/kernel/config/usb_gadget/storagetm/UDC", "\n");
        fake.file("sys/class/udc/dwc3.1.auto/function", "");
        let held = lock(&fake.tree()).unwrap();
        let refused = Gadget::open(&fake.tree(), &declaration(), &|_| {}).unwrap_err();
        assert_eq!(refused, "another storagetm uses the USB port");
        assert!(fake.tree().path("sys/kernel/config/usb_gadget/storagetm/UDC").exists());
        drop(held);
        lock(&fake.tree()).unwrap();
    }

    #[test]
    fn port_of_a_killed_process_gets_its_role_back() {
        let fake = Fake::new();
        fake.file("sys/class/typec/port0/data_role", "[host] device\n").file("run/keep", "");
        let role = || fake.tree().attribute("sys/class/typec/port0/data_role").unwrap();
        let held = lock(&fake.tree()).unwrap();
        let mut killed = Made::default();
        let switch = PathBuf::from("sys/class/typec/port0/data_role");
        killed.make(&fake.tree(), &[Act::SetRole { switch, before: "host".to_owned() }]).unwrap();
        std::mem::forget(killed);
        recover(&fake.tree());
        assert_eq!(role(), "device", "it is in use");
        drop(held);
        recover(&fake.tree());
        assert_eq!(role(), "host");
        // Only once, and only ports.
        fake.file("sys/class/typec/port0/data_role", "device\n");
        recover(&fake.tree());
        assert_eq!(role(), "device");
        fake.file("etc/passwd", "x\n").file("run/storagetm-usb.role", "etc/passwd\nhost\n");
        recover(&fake.tree());
        assert_eq!(fake.tree().attribute("etc/passwd").unwrap(), "x");
    }

    #[test]
    fn controller_that_returns_by_another_name_is_connected() {
        let fake = Fake::new();
        fake.file("sys/class/udc/dwc3.2.auto/function", "");
        fake.file("sys/kernel/config/usb_gadget/storagetm/UDC", "\n");
        fake.file("run/keep", "");
        let (tree, controller) = (fake.tree(), "dwc3.1.auto".to_owned());
        let lock = lock(&tree).unwrap();
        let (made, connection) = Default::default();
        let mut gadget = Gadget { tree, controller, made, connection, _lock: lock };
        assert!(!gadget.is_connected());
        gadget.connect().unwrap();
        assert_eq!((gadget.is_connected(), gadget.controller()), (true, "dwc3.2.auto"));
    }

    #[test]
    fn port_is_switched_to_the_role_of_a_device() {
        let fake = Fake::new();
        fake.file("sys/class/typec/port0/data_role", "[host] device\n");
        fake.file("sys/class/typec/port1/data_role", "[host]\n");
        assert!(is_possible(&fake.tree()));
        // The kernel makes the controller when the role is set.
        let tree = fake.tree();
        let kernel = std::thread::spawn(move || {
            let role = || tree.attribute("sys/class/typec/port0/data_role");
            wait_until(ROLE_TIMEOUT, || role().as_deref() == Some("device"));
            std::fs::create_dir_all(tree.path("sys/class/udc/dwc3.1.auto")).unwrap();
        });
        fake.file("run/keep", "").file("sys/kernel/config/usb_gadget/storagetm/UDC", "\n");
        let (tree, lock) = (fake.tree(), lock(&fake.tree()).unwrap());
        let (made, mut connection) = <(Made, Made)>::default();
        let controller = choose(&tree, &mut connection).unwrap();
        assert_eq!(controller, "dwc3.1.auto");
        kernel.join().unwrap();
        let mut gadget = Gadget { tree, controller, made, connection, _lock: lock };
        gadget.connect().unwrap();
        let role = |port: &str| {
            fake.tree().attribute(format!("sys/class/typec/{port}/data_role")).unwrap()
        };
        assert_eq!((role("port0").as_str(), role("port1").as_str()), ("device", "[host]"));
        gadget.disconnect();
        assert_eq!((role("port0").as_str(), role("port1").as_str()), ("host", "[host]"));
        assert!(!gadget.is_connected());
    }
}
