//! Control of running `storagetm serve`: the varlink interface that it has on a Unix socket, where
//! that socket is, and its clients `storagetm status`, `add` and `remove`.

mod client;
pub(crate) mod interface;
mod metrics;
mod status;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub(crate) use client::{add, remove};
pub(crate) use status::status;

/// The directory of the sockets: `/run/storagetm` for root, `$XDG_RUNTIME_DIR/storagetm` for others.
/// Returns `None` if there is no such variable.
fn folder() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/run/storagetm"));
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)?;
    runtime.is_absolute().then(|| runtime.join("storagetm"))
}

/// Returns the paths where a process may listen, the preferred one first: another process may listen
/// there. Makes their directory; if that fails, listening there does. Empty if there is none.
pub(crate) fn own_paths() -> Vec<PathBuf> {
    let Some(folder) = folder() else { return Vec::new() };
    let _ = fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder);
    let numbered = format!("{}.{}", interface::NAME, std::process::id());
    vec![folder.join(interface::NAME), folder.join(numbered)]
}

/// Returns the paths in the directory where processes may listen, sorted.
fn known_paths() -> Vec<PathBuf> {
    folder().map(|folder| sockets(&folder)).unwrap_or_default()
}

fn sockets(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let names = entries.map(|entry| entry.path());
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let rest = name.and_then(|name| name.strip_prefix(interface::NAME));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let mut paths: Vec<PathBuf> = names.filter(is_ours).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod test {
    use super::*;
    use testkit::Scratch;

    #[test]
    fn sockets_of_several_processes_are_found() {
        let folder = Scratch::new();
        let names = ["io.github.storagetm.Serve.77", "io.github.storagetm.Serve", "other"];
        for name in names {
            fs::write(folder.0.join(name), "").unwrap();
        }
        let found = sockets(&folder.0);
        assert_eq!(found, [folder.0.join(names[1]), folder.0.join(names[0])]);
        assert_eq!(sockets(&folder.0.join("none")), [] as [PathBuf; 0]);
    }
}
