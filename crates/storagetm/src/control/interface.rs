//! The interface `io.github.storagetm.Serve`. Members that events have too (docs/json-events.md) are
//! called as there.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use varlink::service::{Interface, Service};

/// Its name.
pub(crate) const NAME: &str = "io.github.storagetm.Serve";

/// The service on the socket of `storagetm serve`.
pub(crate) const SERVICE: Service = Service {
    vendor: "storagetm",
    product: "storagetm",
    version: env!("CARGO_PKG_VERSION"),
    url: env!("CARGO_PKG_REPOSITORY"),
    interfaces: &[Interface { name: NAME, description: DESCRIPTION }],
};

const DESCRIPTION: &str = "\
# Control of storagetm serve
interface io.github.storagetm.Serve

# A disk that is lent. attach, nbd and iscsi are what is to be typed on other machines, for the addresses of now; read
# and written are the bytes that hosts have read and written since it is lent
type Export (
  disk: string,
  name: string,
  nqn: string,
  iqn: string,
  bytes: int,
  block_size: int,
  access: string,
  model: string,
  serial: string,
  attach: []string,
  nbd: []string,
  iscsi: []string,
  read: int,
  written: int,
  attached: int
)

# A host that has attached a disk: its name in the access rules if it showed a key, its NQN or IQN, and its address
type Host (name: string, disk: string, key: ?string, host: string, address: string)

# Where hosts can connect: an address with its port, or the path of a Unix socket; with HTTPS, SHA-256 of the
# certificate in hexadecimal and of its public key in base64
type Endpoint (
  protocol: string,
  address: ?string,
  port: ?int,
  path: ?string,
  keyed: bool,
  certificate: ?string,
  public_key: ?string
)

# Returns the disks that are lent
method List() -> (exports: []Export)

# Returns the hosts that have attached disks
method Hosts() -> (hosts: []Host)

# Returns what is served where, and the messages that the screen shows
method Status() -> (
  machine: string,
  version: string,
  process: int,
  disks: int,
  attached: int,
  endpoints: []Endpoint,
  notes: []string
)

# Lends a disk or an image by absolute path or by name, read-only unless it is to be writable, or to have an overlay:
# what hosts write is then kept in memory, or in files in overlay_dir (an absolute path), for each host, or shared by all.
# One that is to have an overlay cannot be writable as well.
# Returns when it is lent
method Add(
  disk: string,
  writable: ?bool,
  overlay: ?bool,
  overlay_shared: ?bool,
  overlay_dir: ?string
) -> (export: Export)

# Withdraws a disk by its name, path or NQN. With force also one that hosts have attached, which lose it, and one with
# changes in memory. Returns when what was written is on stable storage; released is false if the disk is still open then
method Remove(name: string, force: ?bool) -> (released: bool)

# Returns the events of storagetm serve --json as they happen, after those of a start for what is lent now. Call it
# with more
method Events() -> (event: object)

# The disk is not lent, for this reason
error NotLent (reason: string)

# No disk of this name is lent
error NoSuchExport (name: string)

# Hosts have attached the disk
error Attached (name: string, hosts: []string)

# Hosts have written so many bytes to an overlay in memory, which ends with the disk
error HasChanges (name: string, bytes: int)

# The disk is withdrawn, and what was written to it last may be lost
error NotFlushed (name: string, reason: string)

# Too many disks are being added
error Busy ()
";

/// The full name of a method or an error.
pub(crate) fn full(name: &str) -> String {
    format!("{NAME}.{name}")
}

/// The input of `Add`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddInput {
    pub(crate) disk: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) writable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overlay: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overlay_shared: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overlay_dir: Option<PathBuf>,
}

/// The input of `Remove`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveInput {
    pub(crate) name: String,
    pub(crate) force: Option<bool>,
}

/// The input of methods without parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoInput {}

/// A host that has attached a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AttachedHost {
    /// The short name of the disk.
    pub(crate) name: String,
    pub(crate) disk: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    pub(crate) host: String,
    pub(crate) address: String,
}

/// An address where hosts can connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndpointInfo {
    pub(crate) protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    pub(crate) keyed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) public_key: Option<String>,
}

/// The output of `Status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusOutput {
    pub(crate) machine: String,
    pub(crate) version: String,
    pub(crate) process: u32,
    pub(crate) disks: usize,
    pub(crate) attached: usize,
    pub(crate) endpoints: Vec<EndpointInfo>,
    pub(crate) notes: Vec<String>,
}
