//! Adapts the partition table to the destination: block size, position of the GPT backup, padding
//! to whole blocks. Rejects what does not fit, or presents the source with a changed table
//! ([`PatchedDisk`]).

use std::sync::{Arc, Mutex, PoisonError};

use ::copy::{Connection, CopyError, Disk, End, Endpoint, EndpointError, Outcome, Report};
use console::decimal;
use filesystem::Survey;
use linux::gpt::{Edit, Expanded, Patch, Shape};
use linux::partition::Scheme;
use protocol::commands::quoted;
use rustix::rand::{GetRandomFlags, getrandom};

use super::patched::PatchedDisk;
use super::recorded::{Reads, Recorded};
use super::summary::{padded, refused};
use super::sync_disk::SyncDisk;
use crate::inspect;
use crate::options::copy::Copy;
use ::remote::uri::Locator;
use failure::Failure;

/// Layers whose contents are not visible from outside.
const LAYERS: [&str; 7] = ["luks1", "luks2", "bitlocker", "lvm2", "md", "firmware-raid", "zfs"];

/// What is done to the destination after the copy.
#[derive(Default)]
pub(super) struct PostCopy {
    destination: Option<Arc<dyn Endpoint>>,
    /// The destination as it was confirmed.
    confirmed: Option<Disk>,
    /// Parts of the partition table beyond the source's size.
    patches: Vec<Patch>,
    /// Whether the GPT backup is to be moved to the end of the disk.
    relocates_backup: bool,
    /// Further changes of the partition table.
    edit: Edit,
    /// Advice for the user.
    advice: Option<String>,
    /// The destination of a copied pipe: its table can only be examined afterwards.
    checks_after: Option<Locator>,
}

/// Both ends, as known before the copy.
pub(super) struct CopyEnds<'a> {
    pub(super) options: &'a Copy,
    pub(super) from: &'a Disk,
    /// Contents of the source; `None` if they cannot be read.
    pub(super) survey: Option<&'a Survey>,
    /// The destination, if it is a disk.
    pub(super) to: Option<&'a Disk>,
    /// Logical block size of the destination, if known.
    pub(super) sector: Option<u32>,
}

/// An endpoint that checks at the next open that it still is the confirmed disk.
struct CheckedEndpoint {
    place: Arc<dyn Endpoint>,
    /// The confirmed disk, until it has been opened once more. Later reconnects are checked by the
    /// copy itself.
    confirmed: Mutex<Option<Disk>>,
}

impl Endpoint for CheckedEndpoint {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        let (disk, connection) = self.place.open()?;
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = confirmed.as_ref()
            && let Some(reason) = identity_change(before, &disk)
        {
            return Err(EndpointError::Permanent(format!(
                "{} is not the disk any more that was looked at: {reason}; nothing was written, try again",
                disk.name
            )));
        }
        *confirmed = None;
        Ok((disk, connection))
    }

    fn prepare(&self, bytes: u64) -> Result<(), EndpointError> {
        self.place.prepare(bytes)
    }
}

/// Returns how a disk differs from the confirmed one.
fn identity_change(before: &Disk, now: &Disk) -> Option<String> {
    if (now.bytes, now.block) != (before.bytes, before.block) {
        return Some(format!(
            "it has {} bytes in blocks of {}, it had {} in blocks of {}",
            now.bytes, now.block, before.bytes, before.block
        ));
    }
    let renamed = now.identity != before.identity;
    renamed.then(|| format!("it is \"{}\", it was \"{}\"", now.identity, before.identity))
}

impl PostCopy {
    /// Keeps the destination for [`PostCopy::complete`]. The returned end checks that it still is
    /// the `confirmed` disk.
    pub(super) fn keep(&mut self, end: End, confirmed: Option<Disk>) -> End {
        let End::Disk(place) = end else { return end };
        let place: Arc<dyn Endpoint> = place.into();
        self.destination = Some(place.clone());
        self.confirmed.clone_from(&confirmed);
        End::Disk(Box::new(CheckedEndpoint { place, confirmed: Mutex::new(confirmed) }))
    }

    /// Returns the destination that is kept, if it is a disk or a file.
    pub(super) fn destination(&self) -> Option<Arc<dyn Endpoint>> {
        self.destination.clone()
    }

    /// After a pipe was copied: changes the partition table as the options say. On a disk it relocates
    /// the GPT backup if `--fix-gpt` is given, else checks whether that is advisable.
    ///
    /// # Errors
    /// Fails if there are no random numbers.
    pub(super) fn of_pipe(options: &Copy, is_disk: bool) -> Result<Self, Failure> {
        let checks_after = is_disk.then(|| options.destination.clone());
        let relocates_backup = is_disk && options.fix_gpt;
        Ok(Self { relocates_backup, edit: edit(options)?, checks_after, ..Self::default() })
    }

    /// Finishes a successful copy; a failure becomes the outcome. Returns advice for the user.
    pub(super) fn complete(self, report: &mut Report) -> Option<String> {
        if !matches!(report.outcome, Outcome::Success | Outcome::BadSectors) {
            return None;
        }
        let place = self.destination?;
        let confirmed = self.confirmed.as_ref();
        match write(&*place, confirmed, self.patches, self.relocates_backup, self.edit) {
            Err(reason) => {
                let name = self.confirmed.map(|disk| disk.name).unwrap_or_default();
                report.outcome = Outcome::Failed(CopyError::PartitionTable { name, reason });
                None
            }
            Ok(Some(changed)) => Some(changed),
            Ok(None) => self.advice.or_else(|| backup_advice(&*place, &self.checks_after?)),
        }
    }
}

/// Returns advice if the GPT backup on the destination is not at its end.
fn backup_advice(place: &dyn Endpoint, destination: &Locator) -> Option<String> {
    let sync_disk = SyncDisk::open(place).ok()?;
    let disk = sync_disk.disk();
    let survey = inspect::survey(&sync_disk, disk.bytes, disk.sector).ok()?;
    is_backup_misplaced(&survey, disk.sector, disk.bytes).then(|| manual_command(destination))
}

/// Returns the changes of the partition table that the options ask for.
fn edit(options: &Copy) -> Result<Edit, Failure> {
    let mut ids = [0; 16];
    if options.new_ids {
        // Fewer than 256 bytes are never cut short (getrandom(2)).
        getrandom(&mut ids, GetRandomFlags::empty())
            .map_err(|error| refused(format!("there are no random numbers: {error}")))?;
    }
    Ok(Edit { expand: options.expand, ids: options.new_ids.then_some(ids) })
}

/// Writes the rest of the partition table, and verifies it. Returns what was changed by `edit`, for
/// the user.
fn write(
    place: &dyn Endpoint,
    confirmed: Option<&Disk>,
    patches: Vec<Patch>,
    relocates_backup: bool,
    edit: Edit,
) -> Result<Option<String>, String> {
    let edits = edit != Edit::default();
    if patches.is_empty() && !relocates_backup && !edits {
        return Ok(None);
    }
    let sync_disk = SyncDisk::open(place)?;
    let disk = sync_disk.disk();
    if let Some(reason) = confirmed.and_then(|before| identity_change(before, disk)) {
        return Err(format!("it is not the disk any more that was copied to: {reason}"));
    }
    let write_all = |patches: Vec<Patch>| {
        patches.into_iter().try_for_each(|patch| {
            sync_disk.write(patch.offset, &patch.bytes).map_err(|error| error.to_string())
        })
    };
    write_all(patches)?;
    if !relocates_backup && !edits {
        return Ok(None);
    }
    let survey = inspect::survey(&sync_disk, disk.bytes, disk.sector)?;
    if edits && survey.table.is_none() {
        return Err("there is no partition table".to_owned());
    }
    if edit.expand && disk.sector.is_none() && !survey.block_is_certain() {
        return Err("the block size that its MBR was written for is not known".to_owned());
    }
    if !edits && !is_backup_misplaced(&survey, disk.sector, disk.bytes) {
        return Ok(None);
    }
    let shape = Shape { block: survey.block, bytes: disk.bytes };
    let fitted = inspect::fit(&sync_disk, shape, shape, edit)??;
    write_all(fitted.patches)?;
    Ok(edits.then(|| changes(edit, fitted.expanded)))
}

/// Returns a sentence about changes of the partition table, with what is left to do.
fn changes(edit: Edit, expanded: Option<Expanded>) -> String {
    let mut parts = Vec::new();
    if edit.expand {
        parts.push(match expanded {
            Some(Expanded { number, from, to }) => format!(
                "partition {number} was expanded from {} to {}; expand the file system in it, too (resize2fs, xfs_growfs, btrfs \
                 filesystem resize)",
                decimal(from),
                decimal(to)
            ),
            None => "no partition was expanded: behind the last one there is no space, or its type is that of swap space, of a boot \
                     loader, of a recovery environment or of an extended partition"
                .to_owned(),
        });
    }
    if edit.ids.is_some() {
        parts.push(
            "the identifiers of the disk and of its partitions are new: what names partitions by PARTUUID there (fstab, kernel \
             command lines, boot entries) has to be changed; those of file systems, LVM, LUKS and RAID are as before"
                .to_owned(),
        );
    }
    if !(edit.ids.is_none() && expanded.is_none()) {
        parts.push("a hash that is shown is that of the copy before this".to_owned());
    }
    parts.join("; ")
}

/// Returns whether there is a GPT for this block size whose backup is not at the end of the disk.
fn is_backup_misplaced(survey: &Survey, sector: Option<u32>, bytes: u64) -> bool {
    let fits = sector.is_none_or(|sector| sector == survey.block);
    survey.table == Some(Scheme::Gpt) && fits && !is_backup_at_end(survey, bytes)
}

fn is_backup_at_end(survey: &Survey, bytes: u64) -> bool {
    let block = u64::from(survey.block.max(1));
    survey.backup_end.is_none_or(|end| end == bytes - bytes % block)
}

/// Returns the source as it is to be copied, notes, and what is to be done after the copy. Adds what was read of the source to
/// change its partition table to `reads`.
///
/// # Errors
/// Fails if the partition table does not fit.
pub(super) fn adapt(
    source: End,
    ends: &CopyEnds<'_>,
    reads: &mut Reads,
) -> Result<(End, Vec<String>, PostCopy), Failure> {
    let mut notes = Vec::new();
    let End::Disk(place) = source else { return Ok((source, notes, PostCopy::default())) };
    let patches = patches(&*place, ends, &mut notes, reads)?;
    let edit = edit(ends.options)?;
    if edit != Edit::default() {
        check_edit(&*place, ends, edit)?;
    }
    let own = ends.from.bytes;
    let bytes = own.next_multiple_of(u64::from(ends.to.map_or(1, |to| to.block.max(1))));
    if bytes > own {
        notes.push(padded(&ends.options.destination.to_string(), bytes - own));
    }
    let after = PostCopy {
        edit,
        // What lies beyond the source.
        patches: patches.iter().filter(|it| end(it) > bytes).cloned().collect(),
        advice: advice(ends, !patches.is_empty()),
        ..PostCopy::default()
    };
    if patches.is_empty() && bytes == own {
        return Ok((End::Disk(place), notes, after));
    }
    let identity_suffix = identity_suffix(ends, !patches.is_empty());
    let patched = PatchedDisk::new(place, own, bytes, patches, &identity_suffix);
    Ok((End::Disk(Box::new(patched)), notes, after))
}

/// Fails if the partition table of the source is one that cannot be changed.
fn check_edit(place: &dyn Endpoint, ends: &CopyEnds<'_>, edit: Edit) -> Result<(), Failure> {
    let Some(survey) = ends.survey else { return Ok(()) };
    let source = &ends.options.source;
    if survey.table.is_none() {
        return Err(refused(format!("there is no partition table on {source} to be changed")));
    }
    let sync_disk = SyncDisk::open(place).map_err(refused)?;
    let shape = Shape { block: survey.block, bytes: ends.from.bytes };
    inspect::fit(&sync_disk, shape, shape, edit).map_err(refused)?.map(drop).map_err(|reason| {
        refused(format!("the partition table of {source} cannot be changed: {reason}"))
    })
}

fn end(patch: &Patch) -> u64 {
    patch.offset.saturating_add(patch.bytes.len() as u64)
}

/// Suffix of the source's identity: a map of a copy with a changed table does not apply to the
/// unchanged disk.
fn identity_suffix(ends: &CopyEnds<'_>, changed: bool) -> String {
    let to = ends.to.filter(|_| changed);
    to.map(|to| format!("table {} {}", ends.sector.unwrap_or(0), to.bytes)).unwrap_or_default()
}

/// Returns the patches to the partition table for the destination, if it has to change.
fn patches(
    place: &dyn Endpoint,
    ends: &CopyEnds<'_>,
    notes: &mut Vec<String>,
    reads: &mut Reads,
) -> Result<Vec<Patch>, Failure> {
    let Some((survey, to)) = ends.survey.zip(ends.to) else { return patches_without_survey(ends) };
    if let Some(sector) = ends.sector {
        notes.extend(unmountable_notes(survey, sector, ends));
    }
    let sector = match (survey.table, ends.sector) {
        (None, _) => return Ok(Vec::new()),
        (Some(_), None) if ends.options.convert_sectors => {
            return Err(unknown_block_size_error(ends));
        }
        (Some(_), Some(sector)) if sector != survey.block => sector,
        _ if ends.options.fix_gpt && !is_backup_at_end(survey, to.bytes) => survey.block,
        (_, None) if !ends.options.keep_sectors => {
            notes.push(unknown_block_size_note(ends, survey));
            return Ok(Vec::new());
        }
        _ => return Ok(Vec::new()),
    };
    let identity_change = sector != survey.block;
    if identity_change && ends.options.keep_sectors {
        return Ok(Vec::new());
    }
    if identity_change && !ends.options.convert_sectors {
        return Err(block_size_error(ends, survey, sector));
    }
    // A file system found in a partition confirms the block size of an MBR.
    if ends.from.sector.is_none() && !survey.block_is_certain() {
        return Err(refused(format!(
            "it cannot be told for which block size the MBR of {} was written; --keep-sectors copies it as it is",
            ends.options.source
        )));
    }
    let from = Shape { block: survey.block, bytes: ends.from.bytes };
    let sync_disk = SyncDisk::open(place).map_err(refused)?;
    let to = Shape { block: sector, bytes: to.bytes };
    let recorded = Recorded::new(&sync_disk);
    let fitted = inspect::fit(&recorded, from, to, Edit::default());
    reads.extend(recorded.reads());
    let (source, destination) = (&ends.options.source, &ends.options.destination);
    fitted.map_err(refused)?.map(|fitted| fitted.patches).map_err(|reason| {
        refused(format!(
            "the partition table of {source} cannot be written for {destination}: {reason}"
        ))
    })
}

/// One of the ends is not a disk, or cannot be examined: the table cannot be changed.
fn patches_without_survey(ends: &CopyEnds<'_>) -> Result<Vec<Patch>, Failure> {
    let (source, destination) = (&ends.options.source, &ends.options.destination);
    let blocks = ends.from.sector.zip(ends.sector).filter(|(from, to)| from != to);
    if let (None, Some((from, to)), false) = (ends.survey, blocks, ends.options.keep_sectors) {
        return Err(refused(format!(
            "{source} has blocks of {from} bytes and {destination} of {to}, and whether {source} has a partition table, which \
             would not be found there, cannot be read; --keep-sectors copies it all the same"
        )));
    }
    if !ends.options.convert_sectors {
        return Ok(Vec::new());
    }
    Err(refused(match ends.to {
        None if *destination == Locator::Pipe => {
            "the destination is a pipe, and has no block size to convert to".to_owned()
        }
        None => format!("{destination} is a file, and has no block size to convert to"),
        Some(_) => format!("what is on {source} cannot be read, so it cannot be converted"),
    }))
}

fn unknown_block_size_error(ends: &CopyEnds<'_>) -> Failure {
    let (source, destination) = (&ends.options.source, &ends.options.destination);
    refused(format!(
        "the block size of {destination} is not known, so the partition table of {source} cannot be converted to it: leave \
         --convert-sectors out to copy it as it is"
    ))
}

fn unknown_block_size_note(ends: &CopyEnds<'_>, survey: &Survey) -> String {
    let (source, destination) = (&ends.options.source, &ends.options.destination);
    format!(
        "the block size of {destination} is not known; the partition table of {source} is for blocks of {} bytes, and is of \
         use only with these",
        survey.block
    )
}

fn block_size_error(ends: &CopyEnds<'_>, survey: &Survey, sector: u32) -> Failure {
    let (source, destination) = (&ends.options.source, &ends.options.destination);
    refused(block_size_sentence(
        &source.to_string(),
        survey.block,
        &destination.to_string(),
        sector,
    ))
}

fn block_size_sentence(source: &str, block: u32, destination: &str, sector: u32) -> String {
    format!(
        "the partition table of {source} is for blocks of {block} bytes, and {destination} has blocks of {sector}: no \
         partition would be found there; to have the table written for these, add --convert-sectors, to copy byte for byte all \
         the same, --keep-sectors"
    )
}

/// Notes about contents that do not work with the destination's block size.
fn unmountable_notes(survey: &Survey, sector: u32, ends: &CopyEnds<'_>) -> Vec<String> {
    if survey.table.is_some() && survey.block == sector {
        return Vec::new();
    }
    let mut notes = Vec::new();
    let destination = &ends.options.destination;
    let named: Vec<String> = survey
        .unmountable(sector)
        .map(|content| format!("{content} ({} bytes)", content.unit.unwrap_or(0)))
        .collect();
    if !named.is_empty() {
        notes.push(format!(
            "{destination} has blocks of {sector} bytes, and what has smaller ones cannot be mounted there: {}; make it \
             anew and copy its files",
            named.join(", ")
        ));
    }
    let identity_change =
        ends.from.sector.is_some_and(|from| from != sector) || survey.table.is_some();
    let layers = survey.contents.iter().filter(|it| identity_change && LAYERS.contains(&&*it.kind));
    let layers: Vec<String> = layers.map(ToString::to_string).collect();
    if !layers.is_empty() {
        notes.push(format!(
            "whether what is inside can be used with blocks of {sector} bytes is not known: {}",
            layers.join(", ")
        ));
    }
    notes
}

/// Returns advice if the GPT backup is not at the end of the destination.
fn advice(ends: &CopyEnds<'_>, changed: bool) -> Option<String> {
    let (survey, to) = ends.survey.zip(ends.to).filter(|_| !changed)?;
    is_backup_misplaced(survey, ends.sector, to.bytes)
        .then(|| manual_command(&ends.options.destination))
}

/// Returns the command that moves the GPT backup.
fn manual_command(destination: &Locator) -> String {
    let (disk, place) = match destination {
        Locator::Path(path) => (quoted(&path.display().to_string()), ""),
        _ => ("DISK".to_owned(), ", on the machine that has it or attaches it"),
    };
    format!(
        "the backup of the partition table is not at the end of {destination}{place}: sgdisk -e {disk} (or: sfdisk \
         --relocate gpt-bak-std {disk}); --fix-gpt does it with the copy"
    )
}

#[cfg(test)]
mod test {
    use std::path::Path;

    use ::copy::FileEndpoint;
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        copy: Copy,
    }

    fn disk(block: u32, sector: Option<u32>) -> Disk {
        Disk {
            name: "disk".to_owned(),
            bytes: 8 << 20,
            block,
            sector,
            writable: true,
            reports_extents: false,
            max_zero: 0,
            max_transfer: 1 << 20,
            max_connections: 1,
            remote: true,
            blank: false,
            in_memory: false,
            identity: String::new(),
        }
    }

    /// Returns the notes on a copy between disks of these block sizes, with a source table for 512.
    fn said(option: &str, from: Option<u32>, to: Option<u32>) -> Result<Vec<String>, String> {
        let words = ["copy", option, "nbd://a/b", "nbd://c/d"];
        let options =
            Line::try_parse_from(words.iter().filter(|word| !word.is_empty())).unwrap().copy;
        let survey =
            Survey { table: Some(Scheme::Gpt), block: 512, partitions: 1, ..Survey::default() };
        let (from, to) = (disk(1, from), disk(1, to));
        let ends = CopyEnds {
            options: &options,
            from: &from,
            survey: Some(&survey),
            to: Some(&to),
            sector: to.sector,
        };
        let place = FileEndpoint::source(Path::new("/dev/null"), "");
        let mut notes = Vec::new();
        let patches = patches(&place, &ends, &mut notes, &mut Reads::new())
            .map_err(|error| error.to_string())?;
        assert!(patches.is_empty());
        Ok(notes)
    }

    #[test]
    fn table_is_not_converted_to_an_unknown_block_size() {
        let refused = said("--convert-sectors", None, None).unwrap_err();
        assert!(refused.contains("is not known") && refused.contains("nbd://c/d"), "{refused}");
        assert_eq!(said("", None, None).unwrap().len(), 1);
        assert!(said("--keep-sectors", None, None).unwrap().is_empty());
        assert!(said("", None, Some(512)).unwrap().is_empty());
    }

    #[test]
    fn mbr_is_converted_only_if_its_block_size_is_known() {
        let options = ["copy", "--convert-sectors", "nbd://a/b", "nbd://c/d"];
        let options = Line::try_parse_from(options).unwrap().copy;
        let survey = Survey { table: Some(Scheme::Mbr), block: 512, ..Survey::default() };
        let (from, to) = (disk(1, None), disk(4096, Some(4096)));
        let place = FileEndpoint::source(Path::new("/dev/null"), "");
        let (survey, to, sector) = (Some(&survey), Some(&to), to.sector);
        let ends = CopyEnds { options: &options, from: &from, survey, to, sector };
        let refused =
            patches(&place, &ends, &mut Vec::new(), &mut Reads::new()).unwrap_err().to_string();
        assert!(
            refused.contains("cannot be told") && refused.contains("--keep-sectors"),
            "{refused}"
        );
    }

    #[test]
    fn unreadable_source_is_refused_for_other_blocks() {
        for (option, status) in [("--yes", false), ("--keep-sectors", true)] {
            let options = Line::try_parse_from(["copy", option, "nbd://a/b", "nbd://c/d"]);
            let options = options.unwrap().copy;
            let (from, to) = (disk(512, Some(512)), disk(4096, Some(4096)));
            let (to, sector) = (Some(&to), to.sector);
            let ends = CopyEnds { options: &options, from: &from, survey: None, to, sector };
            assert_eq!(patches_without_survey(&ends).is_ok(), status, "{option}");
        }
    }

    /// An endpoint that returns another disk at each open.
    struct Changing(Mutex<Vec<Disk>>, FileEndpoint);

    impl Endpoint for Changing {
        fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
            let disk = self.0.lock().unwrap().pop().unwrap();
            self.1.open().map(|(_, connection)| (disk, connection))
        }
    }

    #[test]
    fn disk_that_was_not_agreed_to_is_not_opened() {
        let confirmed = disk(512, Some(512));
        let identity = "another".to_owned();
        for now in [
            Disk { bytes: 4 << 20, ..confirmed.clone() },
            Disk { block: 4096, ..confirmed.clone() },
            Disk { identity, ..confirmed.clone() },
        ] {
            let mut after = PostCopy::default();
            // After one successful open the copy itself checks reconnects.
            for (disks, success) in [
                (vec![now.clone()], [false].as_slice()),
                (vec![now.clone(), confirmed.clone()], &[true, true]),
            ] {
                let file = FileEndpoint::source(Path::new("/proc/self/exe"), "");
                let place = Changing(Mutex::new(disks), file);
                let End::Disk(place) =
                    after.keep(End::Disk(Box::new(place)), Some(confirmed.clone()))
                else {
                    panic!("a disk")
                };
                for success in success {
                    assert_eq!(place.open().is_ok(), *success, "{now:?}");
                }
            }
        }
    }

    #[test]
    fn backup_of_a_table_for_other_blocks_is_left_alone() {
        let survey = Survey {
            table: Some(Scheme::Gpt),
            block: 512,
            backup_end: Some(4 << 20),
            ..Survey::default()
        };
        assert!(!is_backup_misplaced(&survey, Some(4096), 8 << 20));
        assert!(
            is_backup_misplaced(&survey, Some(512), 8 << 20)
                && is_backup_misplaced(&survey, None, 8 << 20)
        );
    }
}
