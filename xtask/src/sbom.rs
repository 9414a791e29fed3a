//! A bill of materials in CycloneDX's format: the crates that are linked into the program, and the packages of
//! the distribution in its images.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::architecture::Architecture;
use crate::cargo::{text, workspace};
use crate::credits;

/// Returns the bill of a release. `packages` are the names of Debian's package files:
/// `NAME_VERSION_ARCHITECTURE.deb`.
pub(crate) fn bill(
    version: &str,
    architecture: Architecture,
    packages: &[String],
) -> Result<Value> {
    let own = format!("pkg:github/storagetm/storagetm@{version}");
    let mut components = crates(architecture)?;
    components.extend(packages.iter().filter_map(|file| package(file)));
    let linked = components.iter().map(|it| text(it, "bom-ref").to_owned()).collect::<Vec<_>>();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "application",
            "bom-ref": own,
            "name": "storagetm",
            "version": version,
            "purl": own,
            "licenses": [{ "expression": "Apache-2.0 OR MIT" }],
        } },
        "components": components,
        "dependencies": [{ "ref": own, "dependsOn": linked }],
    }))
}

/// Returns the foreign crates, with the checksums of the lock file.
fn crates(architecture: Architecture) -> Result<Vec<Value>> {
    let lock = std::fs::read_to_string(workspace().join("Cargo.lock")).context("Cargo.lock")?;
    let lock: toml::Table = lock.parse().context("Cargo.lock")?;
    let locked = lock.get("package").and_then(toml::Value::as_array).map_or(&[][..], Vec::as_slice);
    let checksum = |name: &str, version: &str| {
        let word =
            |it: &toml::Value, key| it.get(key).and_then(toml::Value::as_str).map(str::to_owned);
        let is_it = |it: &&toml::Value| {
            word(it, "name").as_deref() == Some(name)
                && word(it, "version").as_deref() == Some(version)
        };
        locked.iter().find(is_it).and_then(|it| word(it, "checksum"))
    };
    let metadata = credits::metadata(architecture)?;
    let linked = credits::foreign(&metadata)?;
    Ok(linked.into_iter().map(|package| component(package, checksum)).collect())
}

fn component(package: &Value, checksum: impl Fn(&str, &str) -> Option<String>) -> Value {
    let (name, version) = (text(package, "name"), text(package, "version"));
    let purl = format!("pkg:cargo/{name}@{version}");
    let mut component = json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        // Older crates write a slash.
        "licenses": [{ "expression": text(package, "license").replace('/', " OR ") }],
    });
    if let Some(sum) = checksum(name, version) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    component
}

/// Returns a package of the distribution, from the name of its file.
fn package(file: &str) -> Option<Value> {
    let (name, rest) = file.strip_suffix(".deb")?.split_once('_')?;
    let (version, architecture) = rest.rsplit_once('_')?;
    // apt writes the colon of an epoch as %3a in names of files; so does a package URL.
    let purl = format!("pkg:deb/debian/{name}@{version}?arch={architecture}");
    Some(json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version.replace("%3a", ":"),
        "purl": purl,
        "description": "In the images only.",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo::list;

    #[test]
    fn crates_and_packages_are_listed() {
        let files = ["shim-signed_1.51~1+deb13u1_arm64.deb".to_owned(), "no package".to_owned()];
        let bill = bill("1.0", Architecture::Aarch64, &files).unwrap();
        let components = list(&bill, "components");
        let find = |name| components.iter().find(|it| text(it, "name") == name);
        let hash = &list(find("rustix").unwrap(), "hashes")[0];
        assert_eq!(text(hash, "content").len(), 64);
        assert!(find("proptest").is_none(), "only tests use it");
        assert_eq!(text(find("shim-signed").unwrap(), "version"), "1.51~1+deb13u1");
        assert!(find("nvme").is_none(), "the project's own");
    }
}
