//! Kernel modules and their dependencies, in load order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A decompressed module.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name, with underscores.
    pub(super) name: String,
    /// The image for the kernel.
    pub(super) image: Vec<u8>,
}

/// Returns modules in load order, dependencies first. A name without a module is built in (or gone,
/// as crc32c variants are in newer kernels) and left out.
pub(super) fn collect(kernel: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut paths = BTreeMap::new();
    for root in ["lib/modules", "usr/lib/modules"] {
        if kernel.join(root).is_dir() {
            index(&kernel.join(root), &mut paths)?;
        }
    }
    ensure!(!paths.is_empty(), "{} holds no kernel modules", kernel.display());
    let mut order = Vec::new();
    for name in wanted {
        add(name, &paths, &mut order)?;
    }
    Ok(order)
}

/// Returns the version of an unpacked kernel, and the directory of its modules.
pub(super) fn folder(kernel: &Path) -> Result<(String, PathBuf)> {
    for root in ["usr/lib/modules", "lib/modules"] {
        let Ok(mut entries) = kernel.join(root).read_dir() else { continue };
        if let Some(entry) = entries.next() {
            let path = entry?.path();
            let version = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Ok((version, path));
        }
    }
    anyhow::bail!("{} holds no kernel modules", kernel.display())
}

fn index(folder: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in folder.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            index(&entry.path(), paths)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            paths.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn add(name: &str, paths: &BTreeMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<()> {
    let name = name.replace('-', "_");
    let Some(path) = paths.get(&name) else { return Ok(()) };
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let image = read(path)?;
    for dependency in dependencies(&image) {
        add(&dependency, paths, order)?;
    }
    order.push(Module { name, image });
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(std::fs::read(path)?);
    }
    let output =
        Command::new("xz").arg("-dc").arg(path).output().context("xz cannot be started")?;
    ensure!(output.status.success(), "{} cannot be unpacked", path.display());
    Ok(output.stdout)
}

/// Returns the names in the module's own `depends=` record.
fn dependencies(image: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = image.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value: Vec<u8> =
        image.iter().skip(at + key.len()).take_while(|&&byte| byte != 0).copied().collect();
    let value = String::from_utf8_lossy(&value).into_owned();
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        let image = b"\x7fELF..license=GPL\0depends=nvme-core,nvme-fabrics\0name=nvme_tcp\0";
        assert_eq!(dependencies(image), ["nvme-core", "nvme-fabrics"]);
        assert!(dependencies(b"license=GPL\0depends=\0").is_empty());
        assert!(dependencies(b"").is_empty());
    }
}
