//! The USB cable: the gadget that the host at its other end sees, set up here and served by the
//! worker.

use std::time::{Duration, Instant};

use console::UsbPort;
use daemon::event::ServeEvent;
use failure::Failure;
use linux::gadget::{Declaration, Gadget, has_controller, is_possible, recover, serial};
use linux::tree::Tree;

use super::Context;
use super::config::ServeConfig;

/// Interval at which the state of the port is read: the kernel reports changes of it to nobody.
const STATE_INTERVAL: Duration = Duration::from_secs(1);

/// Subject of the message about the port.
const SUBJECT: &str = "usb";

/// The gadget. It is connected to the port while disks are to be served there and there are some: a
/// host notices at once that the last disk is gone.
pub(super) struct Usb {
    tree: Tree,
    declaration: Declaration,
    /// Whether the disks are to be served at the port.
    is_wanted: bool,
    gadget: Option<Gadget>,
    /// Why the gadget could not be connected, as reported.
    failure: Option<String>,
    /// When the state of the port is read.
    due: Option<Instant>,
}

impl Usb {
    /// Returns the state before the start. Takes down what a process that was killed has left.
    pub(super) fn new(config: &ServeConfig, machine: &str) -> Self {
        recover(&config.lend.tree);
        let declaration = Declaration {
            serial: serial(&config.lend.machine.bytes),
            product: format!("Disks of {machine}"),
            descriptors: usb::descriptors::descriptors(),
            strings: usb::descriptors::strings(),
        };
        let (tree, is_wanted) = (config.lend.tree.clone(), config.usb);
        Self { tree, declaration, is_wanted, gadget: None, failure: None, due: None }
    }

    /// Sets the gadget up if that was requested on the command line, and passes its endpoints to the
    /// worker, which must run.
    ///
    /// # Errors
    /// Fails if this machine cannot act as a USB device.
    pub(super) fn start(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        if self.is_wanted {
            self.set_up(cx).map_err(Failure::new)?;
            self.due = Some(cx.now);
        }
        Ok(())
    }

    fn set_up(&mut self, cx: &mut Context<'_>) -> Result<&mut Gadget, String> {
        match &mut self.gadget {
            Some(gadget) => Ok(gadget),
            none => {
                let load = |name: &str| load_module(&self.tree, name);
                let (gadget, endpoints) = Gadget::open(&self.tree, &self.declaration, &load)?;
                cx.worker.plug(endpoints);
                Ok(none.insert(gadget))
            }
        }
    }

    /// Serves the disks at the port from now on, in target mode: once there are some.
    pub(super) fn serve(&mut self, now: Instant) {
        (self.is_wanted, self.due) = (true, Some(now));
    }

    /// Unplugs the gadget, until [`Usb::serve`].
    pub(super) fn end(&mut self, cx: &mut Context<'_>) {
        (self.is_wanted, self.due) = (false, None);
        self.disconnect();
        self.clear_failure(cx);
        cx.ui.set_subject(SUBJECT.to_owned(), None);
    }

    /// Sets the gadget up again: the kernel unplugged it when the worker died.
    pub(super) fn restart(&mut self, now: Instant) {
        self.gadget = None;
        self.due = self.is_wanted.then_some(now);
    }

    /// Sets the gadget up, and connects it if there are disks. Tries again if that fails.
    fn connect(&mut self, has_disks: bool, cx: &mut Context<'_>) {
        let connected = self.set_up(cx).and_then(|gadget| match has_disks {
            true => gadget.connect(),
            false => Ok(()),
        });
        match connected {
            Ok(()) => {
                self.due = Some(cx.now);
                self.clear_failure(cx);
            }
            // For example because the controller is gone with the cable.
            Err(failure) if self.failure.as_ref() != Some(&failure) => {
                self.clear_failure(cx);
                cx.ui.report(&ServeEvent::note(&failure));
                self.failure = Some(failure);
            }
            Err(_) => {}
        }
    }

    fn clear_failure(&mut self, cx: &mut Context<'_>) {
        if let Some(failure) = self.failure.take() {
            cx.ui.remove_note(&failure);
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Reads the state of the port. `has_disks` is whether any disk is served.
    pub(super) fn run_timers(&mut self, has_disks: bool, cx: &mut Context<'_>) {
        if self.due.is_none_or(|at| at > cx.now) {
            return;
        }
        self.due = Some(cx.now + STATE_INTERVAL);
        match &mut self.gadget {
            Some(gadget) if !has_disks => {
                gadget.disconnect();
                cx.ui.set_subject(SUBJECT.to_owned(), None);
            }
            Some(gadget) if gadget.is_connected() => {
                let (state, speed) = gadget.state();
                let sentence = sentence(gadget.controller(), &state, &speed);
                cx.ui.set_subject(SUBJECT.to_owned(), Some(sentence));
            }
            // After a failure, the roles of ports are not switched again each time.
            _ if self.failure.is_none() || has_controller(&self.tree) => {
                self.connect(has_disks, cx);
            }
            _ => {}
        }
    }

    /// Unplugs the gadget: the host sees it, and no longer waits for answers.
    pub(super) fn disconnect(&mut self) {
        self.gadget.iter_mut().for_each(Gadget::disconnect);
    }

    /// Returns the state of the port for the screen.
    pub(super) fn port(&self) -> UsbPort {
        let is_connected = self.gadget.as_ref().is_some_and(Gadget::is_connected);
        match self.is_wanted {
            true if is_connected => UsbPort::Serving,
            true => UsbPort::Waiting,
            false if is_possible(&self.tree) => UsbPort::Idle,
            false => UsbPort::Absent,
        }
    }
}

/// Returns what the screen shows about the port.
fn sentence(port: &str, state: &str, speed: &str) -> String {
    match (state, speed) {
        ("configured", "high-speed" | "full-speed") => format!(
            "USB: the other computer uses the disks at port {port}, at 480 Mb/s or less; a USB 3 \
             cable and port may be faster."
        ),
        ("configured" | "suspended", _) => {
            format!("USB: the other computer uses the disks at port {port}.")
        }
        _ => format!(
            "USB: connect a cable from port {port} to another computer; the disks appear there by \
             themselves."
        ),
    }
}

/// Loads a module of the running kernel. What cannot be loaded is missed by what needs it.
fn load_module(tree: &Tree, name: &str) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let line = tree.text("proc/cmdline").unwrap_or_default();
    let _ = linux::module::load(tree, format!("lib/modules/{release}"), &line, &[name]);
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn port_without_a_gadget_waits() {
        let tree = Tree::at(std::env::temp_dir().join("storagetm-usb-no-machine"));
        let declaration = Declaration {
            serial: String::new(),
            product: String::new(),
            descriptors: Vec::new(),
            strings: Vec::new(),
        };
        let (gadget, failure, due) = (None, None, None);
        let mut usb = Usb { tree, declaration, is_wanted: false, gadget, failure, due };
        assert_eq!(usb.port(), UsbPort::Absent);
        let now = Instant::now();
        usb.serve(now);
        assert_eq!((usb.port(), usb.due()), (UsbPort::Waiting, Some(now)));
        usb.restart(now);
        assert_eq!((usb.port(), usb.due()), (UsbPort::Waiting, Some(now)));
    }

    #[test]
    fn slow_cable_is_pointed_out() {
        assert!(sentence("p", "not attached", "UNKNOWN").contains("connect a cable"));
        assert!(sentence("p", "configured", "high-speed").contains("480 Mb/s"));
        assert!(!sentence("p", "configured", "super-speed").contains("480"));
    }
}
