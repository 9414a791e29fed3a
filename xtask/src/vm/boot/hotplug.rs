//! Hot-plug of a disk in a machine in target mode.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use super::lines::attach_line;
use super::machine::Machine;
use super::trial::SOON;
use crate::vm::image::{self, MIB};

const SERIAL: &str = "PLUGGED1";

/// It appears on the screen, and is attached with the others by the same command.
pub(super) fn plug(lab: &mut Lab<'_>, machine: &mut Machine, folder: &Path) -> Result<()> {
    let hot = folder.join("hot.img");
    image::filled(&hot, 8 * MIB)?;
    let before = machine.screen.now();
    machine.control()?.plug(&hot, SERIAL)?;
    machine.screen.shows(SERIAL, before, SOON)?;
    let (_, line) = machine.screen.find("a line to attach", 0, SOON, attach_line)?;
    lab.client()?.attach(&line, 3)?;
    let sums = lab.client()?.sums()?;
    lab.client()?.detach()?;
    ensure!(sums.contains(&image::sha256(&hot)?), "the plugged disk was not read as it is");
    Ok(())
}
