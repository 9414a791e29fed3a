//! A machine in target mode lets another one in by the code on its screen, and nobody else. Whoever sits at the second
//! machine types only what the first one shows. Does not know what goes over the wire.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Lab;
use super::client::{Paired, same};
use super::disks::Disks;
use super::lines::{attach_line, code, pair_line};
use super::machine::{Machine, network_card};
use super::trial::{BOOT, SOON};
use super::ways::Way;
use crate::vm::case::Board;

/// What `storagetm pair` exits with if the other machine said no.
const REFUSED: i32 = 3;

/// Codes that are wrong and right, and what each of them opens.
pub(super) fn trial(lab: &mut Lab<'_>, folder: &Path, board: &mut Board<'_>) -> Result<()> {
    let disks = Disks::make(folder)?;
    let mut machine = power_on(lab, folder, &disks)?;
    let (_, line) = machine.screen.find("a line to be let in", 0, BOOT, pair_line)?;
    let (_, first) = machine.screen.find("a code", 0, BOOT, code)?;
    board.decide("code", Ok(()));
    board.decide("strangers", strangers(lab, &mut machine));
    let second = wrong(lab, &mut machine, &line, &first);
    let code = second.as_ref().map_or(first, Clone::clone);
    board.decide("wrong-code", second.map(drop));
    let before = machine.screen.now();
    lab.client()?.pair(&line, &code)?;
    let paired = lab.client()?.paired().and_then(let_in);
    let lines = paired.as_ref().map(|paired| paired.lines.clone()).unwrap_or_default();
    board.decide("pair", paired.map(drop));
    board.decide("compare", compare(lab, &lines, &disks));
    let line = format!("{line} --writable");
    let refused = ask(lab, &mut machine, &line, before, "n").and_then(|paired| {
        ensure!(paired.status == REFUSED, "storagetm pair ended with {}", paired.status);
        Ok(())
    });
    board.decide("write-refused", refused);
    let before = machine.screen.now();
    let allowed = ask(lab, &mut machine, &line, before, "y").and_then(let_in);
    let lines = allowed.as_ref().map(|paired| paired.lines.clone()).unwrap_or_default();
    board.decide("write-allowed", allowed.map(drop));
    board.decide("written", written(lab, &lines, &disks));
    Ok(())
}

fn power_on(lab: &mut Lab<'_>, folder: &Path, disks: &Disks) -> Result<Machine> {
    let start = lab.maker.start(Way::Init, &format!("storagetm.writable={}", Disks::VIRTIO))?;
    lab.client()?;
    let mut devices = disks.devices();
    devices.extend(network_card(lab.maker.folder));
    devices.extend(lab.graphics_card());
    Machine::power_on(&start, &devices, folder, "keyed")
}

/// X01: who types only the line that attaches disks gets none.
fn strangers(lab: &mut Lab<'_>, machine: &mut Machine) -> Result<()> {
    let (_, line) = machine.screen.find("a line to attach", 0, SOON, attach_line)?;
    lab.client()?.is_refused(&line)
}

/// A code that is not the one on the screen; returns the one that the screen shows then.
fn wrong(lab: &mut Lab<'_>, machine: &mut Machine, line: &str, right: &str) -> Result<String> {
    let before = machine.screen.now();
    let guess = if right.starts_with('0') { "1234 5678" } else { "0000 0000" };
    lab.client()?.pair(line, guess)?;
    let paired = lab.client()?.paired()?;
    ensure!(paired.status == REFUSED, "storagetm pair ended with {}", paired.status);
    let another = |text: &str| code(text).filter(|code| code != right);
    Ok(machine.screen.find("another code", before, SOON, another)?.1)
}

/// Asks to write with the code that is shown since, and answers at the first machine's keyboard.
fn ask(
    lab: &mut Lab<'_>,
    machine: &mut Machine,
    line: &str,
    since: usize,
    answer: &str,
) -> Result<Paired> {
    let (_, code) = machine.screen.find("another code", since, SOON, code)?;
    let before = machine.screen.now();
    lab.client()?.pair(line, &code)?;
    machine.screen.shows("wants to CHANGE", before, SOON)?;
    machine.type_key(answer)?;
    lab.client()?.paired()
}

fn let_in(paired: Paired) -> Result<Paired> {
    ensure!(paired.status == 0, "storagetm pair ended with {}", paired.status);
    ensure!(!paired.lines.is_empty(), "storagetm pair printed no line to type");
    Ok(paired)
}

/// What was printed attaches all disks, and they are read as they are.
fn compare(lab: &mut Lab<'_>, lines: &[String], disks: &Disks) -> Result<()> {
    attach(lab, lines)?;
    let sums = lab.client()?.sums()?;
    lab.client()?.detach()?;
    same(disks.sums(), &sums)?;
    disks.unchanged()
}

/// What was written to the disk that may be written to is in its image, and the other one is as it was.
fn written(lab: &mut Lab<'_>, lines: &[String], disks: &Disks) -> Result<()> {
    attach(lab, lines)?;
    let protection = lab.client()?.protection()?;
    let wanted = [format!("{}:ro", Disks::NVME_SIZE), format!("{}:rw", Disks::VIRTIO_SIZE)];
    ensure!(protection == wanted, "expected {wanted:?}, the second machine has {protection:?}");
    let sum = lab.client()?.write()?;
    lab.client()?.detach()?;
    let sums = disks.read()?;
    ensure!(sums != disks.sums(), "nothing was written");
    ensure!(sums.contains(&sum), "the image is not what the second machine has written");
    ensure!(sums.iter().any(|sum| disks.sums().contains(sum)), "both disks were written to");
    Ok(())
}

fn attach(lab: &mut Lab<'_>, lines: &[String]) -> Result<()> {
    let all = lines.iter().find(|line| line.starts_with("nvme connect-all "));
    let line = all.or_else(|| lines.first()).context("there is no line to type")?;
    lab.client()?.attach(line, 2).map(drop)
}
