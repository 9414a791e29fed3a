//! The index files of a directory of kernel modules, as `depmod` writes them. Malformed lines are
//! skipped.

use super::pattern::{Aliases, normal};
use crate::tree::Tree;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

/// A module: its file, relative to the directory, and the names of its dependencies.
#[derive(Debug)]
struct Module {
    file: PathBuf,
    needs: Vec<String>,
}

/// Soft dependencies.
#[derive(Debug, Default)]
struct Soft {
    before: Vec<String>,
    after: Vec<String>,
}

/// A directory of modules. Names have underscores, as in `/sys/module`; arguments may have dashes.
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    modules: HashMap<String, Module>,
    builtin: HashSet<String>,
    soft: HashMap<String, Soft>,
    weak: HashMap<String, Vec<String>>,
    aliases: Aliases,
}

impl Index {
    /// Reads `modules.dep`, and `modules.alias`, `.softdep`, `.weakdep` and `.builtin` if they
    /// exist.
    ///
    /// # Errors
    /// Fails if `modules.dep` cannot be read.
    pub fn read(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        let tree = Tree::at(&folder);
        let text = |name| tree.text(name).unwrap_or_default();
        Ok(Self {
            modules: tree.text("modules.dep")?.lines().filter_map(module).collect(),
            builtin: text("modules.builtin").lines().filter_map(name_of).collect(),
            soft: soft(&text("modules.softdep")),
            weak: weak(&text("modules.weakdep")),
            aliases: Aliases::parse(&text("modules.alias")),
            folder,
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the names of all modules, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.modules.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Returns the file of a module, relative to the directory.
    pub fn file(&self, name: &str) -> Option<&Path> {
        Some(&self.modules.get(normal(name).as_ref())?.file)
    }

    /// Returns whether a module is built into the kernel.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(normal(name).as_ref())
    }

    /// Returns the modules for a modalias.
    pub fn matching(&self, modalias: &str) -> Vec<&str> {
        self.aliases.find(modalias)
    }

    /// Returns all alias patterns with their modules, in no particular order.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.all()
    }

    /// Returns the soft dependencies of a module: those before it, and those after.
    pub fn soft(&self, name: &str) -> (&[String], &[String]) {
        self.soft.get(normal(name).as_ref()).map_or((&[], &[]), |soft| (&soft.before, &soft.after))
    }

    /// Returns the weak dependencies of a module.
    pub fn weak(&self, name: &str) -> &[String] {
        self.weak.get(normal(name).as_ref()).map_or(&[], Vec::as_slice)
    }

    /// Returns the direct dependencies of a module.
    pub fn needs(&self, name: &str) -> &[String] {
        self.modules.get(normal(name).as_ref()).map_or(&[], |module| &module.needs)
    }

    /// Returns the names of the modules to load for a module, in this order, including itself;
    /// empty for an unknown module. Soft dependencies are included if they exist.
    pub fn closure(&self, name: &str) -> Vec<&str> {
        let mut order = Vec::new();
        self.visit(name, &mut HashSet::new(), &mut order);
        order
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut HashSet<&'a str>, order: &mut Vec<&'a str>) {
        let Some((name, module)) = self.modules.get_key_value(normal(name).as_ref()) else {
            return;
        };
        if !seen.insert(name) {
            return;
        }
        let (before, after) = self.soft(name);
        for wanted in before.iter().flat_map(|wanted| self.resolve(wanted)) {
            self.visit(wanted, seen, order);
        }
        for needed in module.needs.iter().rev() {
            self.visit(needed, seen, order);
        }
        order.push(name);
        for wanted in after.iter().flat_map(|wanted| self.resolve(wanted)) {
            self.visit(wanted, seen, order);
        }
    }

    /// Resolves a name: that of a module, or an alias.
    pub fn resolve(&self, name: &str) -> Vec<&str> {
        match self.modules.get_key_value(normal(name).as_ref()) {
            Some((name, _)) => vec![name],
            None if self.is_builtin(name) => Vec::new(),
            None => self.matching(name),
        }
    }
}

/// Returns the module name of a file: `kernel/drivers/nvme/host/nvme-core.ko.xz` is `nvme_core`.
pub fn name_of(file: &str) -> Option<String> {
    let file = file.trim().rsplit('/').next()?;
    let (name, ending) = file.split_once(".ko")?;
    let whole = ending.is_empty() || ending.starts_with('.');
    (whole && !name.is_empty()).then(|| normal(name).into_owned())
}

/// `FILE: FILE...`
fn module(line: &str) -> Option<(String, Module)> {
    let (file, needs) = line.split_once(':')?;
    let needs = needs.split_whitespace().filter_map(name_of).collect();
    Some((name_of(file)?, Module { file: inside(file.trim())?, needs }))
}

/// Accepts a path that stays below the directory, or an absolute one, which `depmod` found
/// elsewhere.
fn inside(file: &str) -> Option<PathBuf> {
    let up = file.split('/').any(|part| part == "..");
    (!up).then(|| PathBuf::from(file))
}

/// `softdep MODULE pre: NAME... post: NAME...`
fn soft(text: &str) -> HashMap<String, Soft> {
    let mut all: HashMap<String, Soft> = HashMap::new();
    for mut words in text.lines().map(str::split_whitespace) {
        let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { continue };
        let soft = all.entry(normal(name).into_owned()).or_default();
        let mut list = None;
        for word in words {
            match (word, &mut list) {
                ("pre:", _) => list = Some(false),
                ("post:", _) => list = Some(true),
                (name, Some(false)) => soft.before.push(normal(name).into_owned()),
                (name, Some(true)) => soft.after.push(normal(name).into_owned()),
                (_, None) => {}
            }
        }
    }
    all
}

/// `weakdep MODULE NAME...`
fn weak(text: &str) -> HashMap<String, Vec<String>> {
    let mut all: HashMap<String, Vec<String>> = HashMap::new();
    for mut words in text.lines().map(str::split_whitespace) {
        let (Some("weakdep"), Some(name)) = (words.next(), words.next()) else { continue };
        all.entry(normal(name).into_owned())
            .or_default()
            .extend(words.map(|name| normal(name).into_owned()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    const DEP: &str = "kernel/drivers/nvme/host/nvme.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz \
        kernel/lib/t10.ko.xz\n\
        kernel/drivers/nvme/host/nvme-core.ko.xz: kernel/lib/t10.ko.xz\nkernel/lib/t10.ko.xz:\n\
        kernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/a.ko\n\
        kernel/fs/jbd2.ko.zst:\nkernel/crypto/crc32c-generic.ko:\nkernel/late.ko:\n";

    fn index(files: &[(&str, &str)]) -> (Fake, Index) {
        let fake = Fake::new();
        for (name, text) in files {
            fake.file(name, text);
        }
        let index = Index::read(&fake.root).unwrap();
        (fake, index)
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let (_fake, index) = index(&[("modules.dep", DEP)]);
        assert_eq!(index.closure("nvme"), ["t10", "nvme_core", "nvme"]);
        assert_eq!(index.closure("nvme-core"), ["t10", "nvme_core"]);
        assert_eq!(index.closure("absent"), Vec::<&str>::new());
        let file = Path::new("kernel/drivers/nvme/host/nvme-core.ko.xz");
        assert_eq!(index.file("nvme-core"), Some(file));
    }

    #[test]
    fn soft_dependencies_are_resolved_by_alias() {
        let soft =
            "# comment\nsoftdep jbd2 pre: crypto-crc32c gone post: late\nsoftdep nvme stray\n";
        let alias = "alias crypto-crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\n";
        let (_fake, index) =
            index(&[("modules.dep", DEP), ("modules.softdep", soft), ("modules.alias", alias)]);
        assert_eq!(index.closure("jbd2"), ["crc32c_generic", "jbd2", "late"]);
        assert_eq!(index.closure("nvme"), ["t10", "nvme_core", "nvme"]);
    }

    #[test]
    fn circular_dependencies_end() {
        let soft = "softdep late pre: late post: t10\nsoftdep t10 pre: late\n";
        let (_fake, index) = index(&[("modules.dep", DEP), ("modules.softdep", soft)]);
        assert_eq!(index.closure("a"), ["b", "a"]);
        assert_eq!(index.closure("late"), ["late", "t10"]);
    }

    #[test]
    fn builtin_module_needs_no_file() {
        let builtin = "kernel/net/ipv6/ipv6.ko\nkernel/drivers/virtio/virtio-ring.ko\n";
        let weak = "weakdep nvme a late\nweakdep\n";
        let (_fake, index) =
            index(&[("modules.dep", DEP), ("modules.builtin", builtin), ("modules.weakdep", weak)]);
        assert!(index.is_builtin("ipv6") && index.is_builtin("virtio_ring"));
        assert!(index.resolve("ipv6").is_empty() && index.closure("ipv6").is_empty());
        assert_eq!(index.weak("nvme"), ["a", "late"]);
    }

    #[test]
    fn malformed_lines_are_skipped() {
        let dep =
            "\0\n:\n: a.ko\n.ko:\nx\nkernel/x.kox: y\n../../etc/evil.ko:\nkernel/x.ko: : .ko ..\n";
        let alias = "alias\nalias x\n\u{0}\u{fffd}[\nalias [ broken\nalias ok* x\n";
        let soft = "softdep\nsoftdep x\nsoftdep x pre: post: pre:\n";
        let files = [("modules.dep", dep), ("modules.alias", alias), ("modules.softdep", soft)];
        let (_fake, index) = index(&files);
        assert_eq!(index.names(), ["x"]);
        assert_eq!(index.matching("okay"), ["x"]);
        assert_eq!(index.matching("["), Vec::<&str>::new());
    }

    #[test]
    fn directory_without_index_is_an_error() {
        assert!(Index::read("/proc/self/absent").is_err());
    }
}
