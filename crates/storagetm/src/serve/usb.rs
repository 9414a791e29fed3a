//! The USB cable: the gadget that the host at its other end sees, set up here and served by the
//! worker.

use std::time::{Duration, Instant};

use daemon::event::ServeEvent;
use failure::Failure;
use linux::gadget::{Declaration, Gadget, serial};
use linux::tree::Tree;

use super::Context;
use super::config::ServeConfig;

/// Interval at which the state of the port is read: the kernel reports changes of it to nobody.
const STATE_INTERVAL: Duration = Duration::from_secs(1);

/// Subject of the message about the port.
const SUBJECT: &str = "usb";

/// The gadget, if disks are served at a USB port.
pub(super) struct Usb {
    tree: Tree,
    /// `None` if USB was not asked for.
    declaration: Option<Declaration>,
    gadget: Option<Gadget>,
    /// Whether the gadget could not be set up again, as reported.
    has_failed: bool,
    /// When the state of the port is read.
    due: Option<Instant>,
}

impl Usb {
    /// Returns the state before the start.
    pub(super) fn new(config: &ServeConfig, machine: &str) -> Self {
        let declaration = config.usb.then(|| Declaration {
            serial: serial(&config.lend.machine.bytes),
            product: format!("Disks of {machine}"),
            descriptors: usb::descriptors::descriptors(),
            strings: usb::descriptors::strings(),
        });
        let tree = config.lend.tree.clone();
        Self { tree, declaration, gadget: None, has_failed: false, due: None }
    }

    /// Connects the gadget. If there is none, sets it up first and passes its endpoints to the
    /// worker, which must run.
    ///
    /// # Errors
    /// Fails if this machine cannot act as a USB device.
    pub(super) fn start(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let Some(declaration) = &self.declaration else { return Ok(()) };
        let gadget = match &mut self.gadget {
            Some(gadget) => gadget,
            none => {
                let load = |name: &str| load_module(&self.tree, name);
                let (gadget, endpoints) =
                    Gadget::open(&self.tree, declaration, &load).map_err(Failure::new)?;
                cx.worker.plug(endpoints);
                none.insert(gadget)
            }
        };
        gadget.connect().map_err(Failure::new)?;
        self.due = Some(cx.now);
        Ok(())
    }

    /// Sets the gadget up again: the kernel unplugged it when the worker died.
    pub(super) fn restart(&mut self, cx: &mut Context<'_>) {
        self.gadget = None;
        self.resume(cx);
    }

    /// Starts after a failure. Tries again if that fails.
    fn resume(&mut self, cx: &mut Context<'_>) {
        match self.start(cx) {
            Ok(()) => self.has_failed = false,
            Err(failure) => {
                // For example because the controller is gone with the cable.
                self.due = Some(cx.now + STATE_INTERVAL);
                if !std::mem::replace(&mut self.has_failed, true) {
                    cx.ui.report(&ServeEvent::note(failure));
                }
            }
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Reads the state of the port.
    pub(super) fn run_timers(&mut self, cx: &mut Context<'_>) {
        if self.due.is_none_or(|at| at > cx.now) {
            return;
        }
        self.due = Some(cx.now + STATE_INTERVAL);
        match &self.gadget {
            Some(gadget) if gadget.is_connected() => {
                let (state, speed) = gadget.state();
                let sentence = sentence(gadget.controller(), &state, &speed);
                cx.ui.set_subject(SUBJECT.to_owned(), Some(sentence));
            }
            // The controller was gone for a while.
            _ => self.resume(cx),
        }
    }

    /// Unplugs the gadget: the host sees it, and no longer waits for answers.
    pub(super) fn disconnect(&mut self) {
        self.gadget.iter_mut().for_each(Gadget::disconnect);
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
    let _ = linux::module::load(tree, format!("lib/modules/{release}"), &line, name);
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn slow_cable_is_pointed_out() {
        assert!(sentence("p", "not attached", "UNKNOWN").contains("connect a cable"));
        assert!(sentence("p", "configured", "high-speed").contains("480 Mb/s"));
        assert!(!sentence("p", "configured", "super-speed").contains("480"));
    }
}
