//! Pairing with a machine in target mode by the code on its screen. The second machine runs only
//! commands that the first one shows.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Lab;
use super::client::{Paired, same};
use super::disks::Disks;
use super::lines::{attach_line, code, pair_line};
use super::machine::{Machine, network_card};
use super::trial::{BOOT, SOON};
use super::ways::Way;
use crate::vm::case::Results;

/// The exit status of `storagetm pair` if it is refused.
const REFUSED: i32 = 3;

/// What the first machine's screen shows for pairing.
#[derive(Debug)]
struct Sight {
    /// The command.
    line: String,
    /// The code.
    code: String,
}

/// Pairs with wrong and right codes, and checks the access that each grants.
pub(super) fn trial(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let disks = Disks::make(folder)?;
    let mut machine = power_on(lab, folder, &disks)?;
    let (_, line) = machine.screen.find("a line to be let in", 0, BOOT, pair_line)?;
    let (_, code) = machine.screen.find("a code", 0, BOOT, code)?;
    let mut sight = Sight { line, code };
    results.decide("code", Ok(()));
    results.decide("strangers", strangers(lab, &mut machine));
    results.decide("wrong-code", wrong(lab, &mut machine, &mut sight));
    let (lines, paired) = lines_of(typed(lab, &mut machine, &mut sight, None).and_then(let_in));
    results.decide("pair", paired);
    results.decide("compare", compare(lab, &lines, &disks));
    sight.line.push_str(" --writable");
    let refused = typed(lab, &mut machine, &mut sight, Some("n")).and_then(turned_away);
    results.decide("write-refused", refused);
    let allowed = typed(lab, &mut machine, &mut sight, Some("y")).and_then(let_in);
    let (lines, allowed) = lines_of(allowed);
    results.decide("write-allowed", allowed);
    results.decide("written", written(lab, &lines, &disks));
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

/// X01: the attach command without pairing attaches nothing.
fn strangers(lab: &mut Lab<'_>, machine: &mut Machine) -> Result<()> {
    let (_, line) = machine.screen.find("a line to attach", 0, SOON, attach_line)?;
    lab.client()?.is_refused(&line)
}

/// A wrong code; the screen shows a new one afterwards.
fn wrong(lab: &mut Lab<'_>, machine: &mut Machine, sight: &mut Sight) -> Result<()> {
    let since = machine.screen.now();
    let guess = if sight.code.starts_with('0') { "1234 5678" } else { "0000 0000" };
    lab.client()?.pair(&sight.line, guess)?;
    lab.client()?.paired().and_then(turned_away)?;
    another_code(machine, sight, since)
}

/// Runs what the screen shows; confirms on the first machine if asked. The code is valid once: the
/// next one is shown afterwards.
fn typed(
    lab: &mut Lab<'_>,
    machine: &mut Machine,
    sight: &mut Sight,
    answer: Option<&str>,
) -> Result<Paired> {
    let since = machine.screen.now();
    lab.client()?.pair(&sight.line, &sight.code)?;
    if let Some(answer) = answer {
        machine.screen.shows("wants to CHANGE", since, SOON)?;
        machine.type_key(answer)?;
    }
    let paired = lab.client()?.paired()?;
    another_code(machine, sight, since)?;
    Ok(paired)
}

fn another_code(machine: &mut Machine, sight: &mut Sight, since: usize) -> Result<()> {
    let another = |text: &str| code(text).filter(|code| *code != sight.code);
    sight.code = machine.screen.find("another code", since, SOON, another)?.1;
    Ok(())
}

fn turned_away(paired: Paired) -> Result<()> {
    ensure!(paired.status == REFUSED, "storagetm pair ended with {}", paired.status);
    Ok(())
}

fn let_in(paired: Paired) -> Result<Vec<String>> {
    ensure!(paired.status == 0, "storagetm pair ended with {}", paired.status);
    ensure!(!paired.lines.is_empty(), "storagetm pair printed no line to type");
    Ok(paired.lines)
}

/// Returns the commands, empty on an error, and whether there was one.
fn lines_of(outcome: Result<Vec<String>>) -> (Vec<String>, Result<()>) {
    match outcome {
        Ok(lines) => (lines, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    }
}

/// Checks that the printed commands attach all disks, unchanged.
fn compare(lab: &mut Lab<'_>, lines: &[String], disks: &Disks) -> Result<()> {
    attach(lab, lines)?;
    let sums = lab.client()?.sums()?;
    lab.client()?.detach()?;
    same(disks.sums(), &sums)?;
    disks.unchanged()
}

/// Checks that data written to the writable disk is in its image, and that the other one is
/// unchanged.
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
