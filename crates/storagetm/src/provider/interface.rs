//! The interface `io.systemd.StorageProvider` of systemd 261 and 262: names, types and errors are
//! theirs, so that their programs take this for a provider.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use varlink::message::{Call, Reply};
use varlink::service::{self, Interface, Service};

/// This service.
pub(super) const SERVICE: Service = Service {
    vendor: "storagetm",
    product: "storagetm",
    version: env!("CARGO_PKG_VERSION"),
    url: env!("CARGO_PKG_REPOSITORY"),
    interfaces: &[Interface { name: "io.systemd.StorageProvider", description: DESCRIPTION }],
};

const DESCRIPTION: &str = "\
# Volumes of a storage provider
interface io.systemd.StorageProvider

# What a volume is: a block device, a regular file or a directory
type VolumeType (blk, reg, dir)

# Whether a volume is opened, created, or either
type CreateMode (any, new, open)

# Opens a volume and passes its file descriptor. Volumes of storagetm are block devices that exist; they are read-only
# unless readOnly is false
method Acquire(
  name: string,
  createMode: ?CreateMode,
  template: ?string,
  readOnly: ?bool,
  requestAs: ?VolumeType,
  createSizeBytes: ?int,
  allowInteractiveAuthentication: ?bool
) -> (
  fileDescriptorIndex: int,
  type: VolumeType,
  readOnly: bool,
  baseUID: ?int,
  baseGID: ?int
)

# Lists the volumes whose names match a pattern of the shell. Call it with more
method ListVolumes(matchName: ?string) -> (
  name: string,
  aliases: ?[]string,
  type: VolumeType,
  readOnly: ?bool,
  sizeBytes: ?int,
  usedBytes: ?int
)

# Lists templates of new volumes. Call it with more
method ListTemplates(matchName: ?string) -> (name: string, type: VolumeType)

# There is no volume of this name
error NoSuchVolume ()

# There is a volume of this name already
error VolumeExists ()

# There is no template of this name
error NoSuchTemplate ()

# The provider has no volumes of this type
error TypeNotSupported ()

# The volume has another type
error WrongType ()

# The provider creates no volumes
error CreateNotSupported ()

# A new volume needs a size
error CreateSizeRequired ()

# The volume cannot be written to
error ReadOnlyVolume ()

# The template is for another type of volume
error BadTemplate ()
";

/// What kind of volume is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum VolumeType {
    Blk,
    Reg,
    Dir,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CreateMode {
    Any,
    New,
    Open,
}

/// The input of `ListVolumes` and `ListTemplates`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ListInput {
    pub(super) match_name: Option<String>,
}

/// The input of `Acquire`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct AcquireInput {
    pub(super) name: String,
    create_mode: Option<CreateMode>,
    template: Option<String>,
    pub(super) read_only: Option<bool>,
    request_as: Option<VolumeType>,
    #[serde(rename = "createSizeBytes")]
    _create_size: Option<Value>,
    #[serde(default, deserialize_with = "or_false")]
    pub(super) allow_interactive_authentication: bool,
}

fn or_false<'de, D: serde::Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Option::<bool>::deserialize(from).map(Option::unwrap_or_default)
}

impl AcquireInput {
    /// Returns the input of a call.
    ///
    /// # Errors
    /// Fails with the reply if it asks for what no volume of this provider can be.
    pub(super) fn of(call: &Call) -> Result<Self, Reply> {
        let input: Self = service::input(call)?;
        let is_valid = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
        if !is_valid(&input.name) {
            return Err(service::invalid_parameter("name"));
        }
        if input.create_mode == Some(CreateMode::New) {
            return Err(error("CreateNotSupported"));
        }
        match input.template.as_deref() {
            None | Some("") => {}
            Some(template) if is_valid(template) => return Err(error("NoSuchTemplate")),
            Some(_) => return Err(service::invalid_parameter("template")),
        }
        if input.request_as == Some(VolumeType::Dir) {
            return Err(error("TypeNotSupported"));
        }
        Ok(input)
    }

    /// Succeeds unless a regular file is asked for. mount.storage does so first, then asks for a
    /// block device, and shows the first error: those that concern the volume must come before this one.
    ///
    /// # Errors
    /// Fails with the reply.
    pub(super) fn check_type(&self) -> Result<(), Reply> {
        match self.request_as {
            Some(VolumeType::Reg | VolumeType::Dir) => Err(error("TypeNotSupported")),
            Some(VolumeType::Blk) | None => Ok(()),
        }
    }
}

/// A volume, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Volume {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) aliases: Vec<String>,
    pub(super) r#type: VolumeType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) read_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size_bytes: Option<u64>,
}

fn error(name: &str) -> Reply {
    Reply::error(&format!("io.systemd.StorageProvider.{name}"), json!({}))
}

pub(super) fn no_such_volume() -> Reply {
    error("NoSuchVolume")
}

pub(super) fn read_only_volume() -> Reply {
    error("ReadOnlyVolume")
}

/// Returns the reply to a list of templates, of which there are none.
pub(super) fn no_templates(call: &Call) -> Result<Vec<Reply>, Reply> {
    service::input::<ListInput>(call)?;
    Err(error("NoSuchTemplate"))
}

/// Returns the reply to a caller that may acquire the volume after a password was asked for.
pub(super) fn authentication_required() -> Reply {
    Reply::error("io.systemd.InteractiveAuthenticationRequired", json!({}))
}

/// Returns the reply for a failure without an error of the interface, as sd-varlink sends it.
pub(super) fn system_error(errno: Errno) -> Reply {
    Reply::error("io.systemd.System", json!({ "origin": "linux", "errno": errno.raw_os_error() }))
}

/// Returns the reply with an open volume.
pub(super) fn acquired(read_only: bool) -> Reply {
    let (index, kind) = (0, VolumeType::Blk);
    Reply::new(json!({ "fileDescriptorIndex": index, "type": kind, "readOnly": read_only }))
}

#[cfg(test)]
mod test {
    use super::*;

    fn acquire(parameters: Value) -> Result<AcquireInput, String> {
        AcquireInput::of(&Call::new("io.systemd.StorageProvider.Acquire", parameters))
            .map_err(|reply| reply.error.unwrap_or_default())
    }

    #[test]
    fn what_no_volume_can_be_is_refused() {
        let own = |name: &str| format!("io.systemd.StorageProvider.{name}");
        let invalid = || "org.varlink.service.InvalidParameter".to_owned();
        for (parameters, error) in [
            (json!({}), invalid()),
            (json!({"name": ""}), invalid()),
            (json!({"name": "desk/a\n"}), invalid()),
            (json!({"name": "desk/a", "readOnly": "yes"}), invalid()),
            (json!({"name": "desk/a", "createMode": "never"}), invalid()),
            (json!({"name": "desk/a", "color": "red"}), invalid()),
            (json!({"name": "desk/a", "template": "\u{7}"}), invalid()),
            (json!({"name": "desk/a", "createMode": "new"}), own("CreateNotSupported")),
            (json!({"name": "desk/a", "template": "big"}), own("NoSuchTemplate")),
            (json!({"name": "desk/a", "requestAs": "dir"}), own("TypeNotSupported")),
        ] {
            assert_eq!(acquire(parameters.clone()).unwrap_err(), error, "{parameters}");
        }
    }

    #[test]
    fn calls_of_systemd_are_understood() {
        let plain = acquire(json!({"name": "desk/a"})).unwrap();
        assert_eq!(plain.check_type(), Ok(()));
        let file = acquire(json!({"name": "desk/a", "requestAs": "reg"})).unwrap();
        assert_eq!(file.check_type(), Err(error("TypeNotSupported")));
        assert_eq!((plain.read_only, plain.allow_interactive_authentication), (None, false));
        let full = acquire(json!({
            "name": "desk/a", "createMode": "any", "template": "", "readOnly": false,
            "requestAs": "blk", "createSizeBytes": 1 << 30, "allowInteractiveAuthentication": true,
        }));
        let full = full.unwrap();
        assert_eq!((full.read_only, full.allow_interactive_authentication), (Some(false), true));
    }
}
