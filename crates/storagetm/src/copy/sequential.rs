//! Destinations that are written from their first byte to their last: qcow2 images, and objects of a bucket. What is copied
//! comes through a pipe, and a thread writes it.

use ::copy::{Disk, Report};
use failure::Failure;

use super::data::data;
use super::interrupt::Interrupt;
use super::local_disk::CopyEnd;
use super::object::{self, NewObject, Object};
use super::qcow2::{self, Image, NewImage};
use crate::options::copy::Copy;
use ::remote::uri::Locator;

/// A destination that is to be written.
pub(super) enum New {
    Image(NewImage),
    Object(Box<NewObject>),
}

/// A destination that is being written.
pub(super) enum Running {
    Image(Image),
    Object(Object),
}

/// Fails if the destination is one of these, and the options ask for what it cannot be.
pub(super) fn check(options: &Copy) -> Result<(), Failure> {
    let (what, way) = match &options.destination {
        _ if qcow2::is_wanted(options) => (
            "is a qcow2 image",
            "copy to a raw image (another name, or --format raw), and convert that with \"qemu-img convert -O qcow2\"",
        ),
        Locator::Web(location) if location.is_object() => {
            ("is an object", "copy to a file first, and copy that")
        }
        _ => return Ok(()),
    };
    let reason = match () {
        () if options.map.is_some() => "cannot be continued from a map",
        () if options.files => "cannot be looked at for --files",
        () if options.expand || options.new_ids || options.fix_gpt => {
            "cannot be changed after the copy (--expand, --new-ids, --fix-gpt)"
        }
        () => return object::check_name(options),
    };
    Err(Failure::usage(format!("{} {what}, which {reason}: {way}", options.destination)))
}

impl New {
    /// Makes a destination that is named as a qcow2 image become one: from then on it is a pipe.
    ///
    /// # Errors
    /// As [`data`].
    pub(super) fn image(
        destination: &mut CopyEnd,
        options: &Copy,
        source: Option<&Disk>,
    ) -> Result<Option<Self>, Failure> {
        let Locator::Path(path) = &options.destination else { return Ok(None) };
        if !qcow2::is_wanted(options) {
            return Ok(None);
        }
        let (data, end) = data(options, source)?;
        destination.end = end;
        destination.notes.push(format!(
            "{} becomes a qcow2 image, of what is not zero; --format raw copies byte by byte",
            options.destination
        ));
        Ok(Some(Self::Image(NewImage { path: path.clone(), data })))
    }

    /// Starts to write. An upload ends soon after the first signal, and is aborted by the second.
    ///
    /// # Errors
    /// Fails if the destination cannot be written.
    pub(super) fn start(self, interrupt: &Interrupt) -> Result<Running, Failure> {
        match self {
            Self::Image(image) => image.start().map(Running::Image),
            Self::Object(object) => object.start(interrupt).map(Running::Object),
        }
    }
}

impl Running {
    /// Completes the destination of a copy that has ended, and compares it if `verify` is set. Without success it is removed.
    /// Returns a note for the user.
    pub(super) fn finish(self, report: &mut Report, verify: bool) -> Option<String> {
        match self {
            Self::Image(image) => {
                image.finish(report, verify);
                None
            }
            Self::Object(object) => object.finish(report),
        }
    }
}
