//! Runs cargo: commands that must succeed, metadata, and the path of a built program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Returns the root directory of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or_else(|| own.clone(), PathBuf::from)
}

/// Returns a cargo command that runs in the workspace.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace());
    command
}

/// Runs cargo with inherited output.
///
/// # Errors
/// Fails if cargo does, with the command.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let status = command(arguments).status().context("cargo cannot be started")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// Returns whether `cargo NAME` is installed.
pub(crate) fn has(subcommand: &str) -> bool {
    let mut probe = command(&[subcommand, "--version"]);
    probe.stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// Returns `cargo metadata`, of the members only or of all dependencies on the machines that are built for.
pub(crate) fn metadata(dependencies: bool) -> Result<Value> {
    let mut arguments = vec!["metadata", "--format-version", "1"];
    if dependencies {
        // Those of `deny.toml`.
        arguments.extend(["--filter-platform", "x86_64-unknown-linux-gnu"]);
        arguments.extend(["--filter-platform", "aarch64-unknown-linux-gnu"]);
    } else {
        arguments.push("--no-deps");
    }
    let output = command(&arguments).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo metadata failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Returns the target directory.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let metadata = metadata(false)?;
    let path = metadata.get("target_directory").and_then(Value::as_str);
    Ok(PathBuf::from(path.context("cargo metadata names no target directory")?))
}

/// Returns the array under a key of a JSON object; empty if there is none.
pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Returns the string under a key of a JSON object; empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Builds a program in release and returns its path.
pub(crate) fn build_program(package: &str) -> Result<PathBuf> {
    build(package, &["--release"])
}

/// Builds a program as the tests do, and returns the path.
pub(crate) fn build_tested(package: &str) -> Result<PathBuf> {
    build(package, &[])
}

fn build(package: &str, options: &[&str]) -> Result<PathBuf> {
    let arguments = ["build", "-p", package, "--message-format=json-render-diagnostics"];
    let output = command(&[&arguments, options].concat()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{package} does not build");
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut paths = messages.lines().filter_map(|line| executable(line, package));
    match paths.next_back() {
        Some(path) => Ok(path),
        None => bail!("cargo named no program of {package}"),
    }
}

/// Returns the executable in a build message of cargo, if it is that of `name`.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?;
    (text(message.get("target")?, "name") == name).then(|| PathBuf::from(path))
}

/// Returns the Rust files below a folder.
pub(crate) fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_executable_is_returned() {
        let message = r#"{"target":{"name":"storagetm"},"executable":"/t/storagetm"}"#;
        assert_eq!(executable(message, "storagetm"), Some(PathBuf::from("/t/storagetm")));
        assert_eq!(executable(message, "other"), None);
        let library = r#"{"target":{"name":"storagetm"},"executable":null}"#;
        assert_eq!(executable(library, "storagetm"), None);
    }
}
