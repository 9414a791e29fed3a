//! The options of `storagetm agent`.

use clap::Args;

/// The long description.
pub(super) const ABOUT: &str = "\
Copies as `storagetm copy` does, with everything that is typed there taken from environment variables or from a JSON \
object: for containers and installers, where nobody types. It does not ask before a disk is overwritten (--yes), and \
writes JSON events, one per line.

Environment:
  IMG_URL                     SRC; a name without a scheme is one of a registry (oci://)
  DEST_DISK                   DST
  COMPRESSED                  without effect: what is compressed is recognized by its contents
  RETRY_DURATION_MINUTES      as --patience, in minutes
  RETRY_ENABLED               as --wait: true or false
  PROGRESS_INTERVAL_SECONDS   as --progress-interval
  REGISTRY_USERNAME, REGISTRY_PASSWORD
                              the user of the registry
  AWS_ACCESS_KEY_ID and others
                              the credentials and the server for s3://, as for copy
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY
                              proxies
  STORAGETM_SOURCE, STORAGETM_DESTINATION
                              SRC and DST
  STORAGETM_OPTION            any other option of copy: STORAGETM_SHA256=..., STORAGETM_EXPAND=true; another name or an
                              empty value is an error

The JSON object has the same names as the options: source, destination, sha256, expand ... What is in the environment \
takes precedence. yes and json are always true: another value is an error.";

const EXAMPLES: &str = "\
Examples:
  IMG_URL=https://example.com/system.raw.zst DEST_DISK=/dev/sda storagetm agent
  echo '{\"source\": \"oci://registry.example/system:1\", \"destination\": \"/dev/sda\", \"expand\": true}' > orders.json
  storagetm agent orders.json

Exit status: that of storagetm copy.";

/// The options of `storagetm agent`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Agent {
    /// File or URL (http://, https://) of a JSON object with the options
    #[arg(value_name = "ORDERS")]
    pub orders: Option<String>,
}
