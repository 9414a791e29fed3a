//! A machine in target mode lets another one in by the code on its screen, and nobody else. Whoever
//! sits at the second machine types only what the first one shows.

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

/// What `storagetm pair` exits with if the other machine said no.
const REFUSED: i32 = 3;

/// What the first machine's screen shows to whoever wants to be let in.
#[derive(Debug)]
struct Sight {
    /// The line to type.
    line: String,
    /// The code.
    code: String,
}

/// Codes that are wrong and right, and what each of them opens.
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

/// X01: who types only the line that attaches disks gets none.
fn strangers(lab: &mut Lab<'_>, machine: &mut Machine) -> Result<()> {
    let (_, line) = machine.screen.find("a line to attach", 0, SOON, attach_line)?;
    lab.client()?.is_refused(&line)
}

/// A code that is not the one on the screen, which then shows another one.
fn wrong(lab: &mut Lab<'_>, machine: &mut Machine, sight: &mut Sight) -> Result<()> {
    let since = machine.screen.now();
    let guess = if sight.code.starts_with('0') { "1234 5678" } else { "0000 0000" };
    lab.client()?.pair(&sight.line, guess)?;
    lab.client()?.paired().and_then(turned_away)?;
    another_code(machine, sight, since)
}

/// Types what the screen shows; if it then asks something, somebody at the first machine answers. The code is good
/// once: the next one is in sight afterwards.
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

/// The lines, none if there was an error, and whether there was.
fn lines_of(outcome: Result<Vec<String>>) -> (Vec<String>, Result<()>) {
    match outcome {
        Ok(lines) => (lines, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    }
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
