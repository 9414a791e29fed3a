//! `cargo xtask container`: a container image with nothing but the program and the certificates of
//! this machine's certificate authorities (OCI Image Specification 1.1), as an archive of the image
//! layout. Its command is `storagetm agent`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::architecture::Architecture;
use crate::cargo;
use crate::cross;
use crate::deb;
use crate::tally::Tally;

/// The certificates that the program trusts, at their place in Debian, here and in the image.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Options of `cargo xtask container`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A static program of storagetm; repeated for an image for several architectures. Default: a new build for this one
    #[arg(long, value_name = "PATH")]
    program: Vec<PathBuf>,
    /// The archive; default: storagetm-VERSION.oci.tar in the target directory
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Makes the image.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut programs = options.program.clone();
    if programs.is_empty() {
        programs.push(cargo::build_program("storagetm")?);
    }
    let to = match &options.to {
        Some(to) => to.clone(),
        None => cargo::target_directory()?.join(format!("storagetm-{}.oci.tar", deb::version()?)),
    };
    tally.check("container image", make(&programs, &to));
    println!("# {}", to.display());
    Ok(tally)
}

/// Writes an image for the architectures of these programs, the same byte for byte from the same
/// programs.
///
/// # Errors
/// Fails if a program is not static, or if this machine has no certificates.
pub(crate) fn make(programs: &[PathBuf], to: &Path) -> Result<()> {
    let layout = Layout::new(&cargo::target_directory()?.join("container"))?;
    let mut manifests = Vec::new();
    for program in programs {
        let architecture = Architecture::of(program)?;
        let mut manifest = layout.image(program, architecture)?;
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture.debian() });
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        manifests.push(manifest);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    // One name stands for one manifest: several are a list, which has the name.
    let top = match manifests.len() {
        0 => bail!("an image without a program"),
        1 => index,
        _ => {
            let mut list = layout.blob(&serde_json::to_vec(&unnamed(index))?, INDEX)?;
            list["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
            json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [list] })
        }
    };
    fs::write(layout.folder.join("index.json"), serde_json::to_vec(&top)?)?;
    fs::write(layout.folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive(&layout.folder, to)
}

fn unnamed(mut index: Value) -> Value {
    for manifest in index["manifests"].as_array_mut().into_iter().flatten() {
        manifest.as_object_mut().map(|fields| fields.remove("annotations"));
    }
    index
}

/// A directory with the image layout.
struct Layout {
    folder: PathBuf,
}

impl Layout {
    fn new(folder: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Adds a blob, and returns its descriptor.
    fn blob(&self, bytes: &[u8], kind: &str) -> Result<Value> {
        let hash = hexadecimal(bytes);
        fs::write(self.folder.join("blobs/sha256").join(&hash), bytes)?;
        let digest = format!("sha256:{hash}");
        Ok(json!({ "mediaType": kind, "digest": digest, "size": bytes.len() }))
    }

    /// Adds the image with a program, and returns the descriptor of its manifest.
    fn image(&self, program: &Path, architecture: Architecture) -> Result<Value> {
        let root = self.folder.with_extension("root");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        for folder in ["usr/bin", "etc/ssl/certs", "tmp", "var/lib/storagetm"] {
            fs::create_dir_all(root.join(folder))?;
        }
        // Fails if it is not static.
        image::program::strip(&fs::read(program)?)
            .with_context(|| program.display().to_string())?;
        cross::strip(program, &root.join("usr/bin/storagetm"))?;
        let certificates = Path::new("/").join(CERTIFICATES);
        fs::copy(&certificates, root.join(CERTIFICATES)).with_context(|| {
            format!("{}: install the package ca-certificates", certificates.display())
        })?;
        let tar = self.folder.with_extension("layer");
        archive(&root, &tar)?;
        let bytes = fs::read(&tar)?;
        let layer = self.blob(&bytes, LAYER)?;
        let config = json!({
            "architecture": architecture.debian(),
            "os": "linux",
            "config": {
                "Entrypoint": ["/usr/bin/storagetm"],
                "Cmd": ["agent"],
                "Env": ["PATH=/usr/bin"],
                "Labels": { "org.opencontainers.image.version": deb::version()? },
            },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        });
        let config = self.blob(&serde_json::to_vec(&config)?, CONFIG)?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        });
        self.blob(&serde_json::to_vec(&manifest)?, MANIFEST)
    }
}

/// Packs the contents of a directory.
fn archive(folder: &Path, to: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.args(["--mode=u=rwX,go=rX", "--format=ustar"]).arg(format!("--mtime=@{}", deb::epoch()?));
    tar.arg("--file").arg(to).arg("--directory").arg(folder);
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    let status = tar.args(names).status().context("tar cannot be started")?;
    ensure!(status.success(), "tar failed");
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
