//! One page of the manual: the options by clap_mangen, then sections from the text after the
//! options in the program's help, and the sections FILES, EXIT STATUS and SEE ALSO.

use std::fmt::Write;

use anyhow::Result;

use super::{section, title};

/// Lines of the help that begin a section, and its name in the manual.
const HEADINGS: [(&str, &str); 3] = [
    ("Examples:", "EXAMPLES"),
    ("Exit status:", "EXIT STATUS"),
    ("On the kernel command line:", "KERNEL COMMAND LINE"),
];

/// The exit status of commands whose help does not list it.
const EXIT_STATUS: &str = "0 if it was done, 1 if not, 2 if the options are wrong.";

/// Files by the page that they belong to; those of keys go with the option `--keys`.
const FILES: &[(&str, &[(&str, &str)])] = &[
    (
        "storagetm",
        &[(
            "/usr/share/doc/storagetm",
            "README.md, and in docs/ how to boot, copy, find and share safely",
        )],
    ),
    (
        "storagetm-serve",
        &[
            (
                "/etc/default/storagetm",
                "OPTIONS= of storagetm@.service, which lends one disk of a running system",
            ),
            ("/etc/nvmet/config.json", "what nvmetcli saves, for --nvmet-config"),
        ],
    ),
    (
        "storagetm-image",
        &[
            (
                "/boot/vmlinuz-VERSION, /lib/modules/VERSION",
                "the kernel of this machine and its drivers",
            ),
            (
                "/usr/lib/systemd/boot/efi/linuxx64.efi.stub",
                "systemd's EFI stub, for an EFI program or a disk",
            ),
        ],
    ),
    (
        "storagetm-attach",
        &[(
            "/etc/nvme/hostnqn, /etc/nvme/hostid",
            "the name and identifier of this machine, if they are there",
        )],
    ),
    ("storagetm-status", &[CONTROL]),
    ("storagetm-add", &[CONTROL]),
    ("storagetm-remove", &[CONTROL]),
];
const CONTROL: (&str, &str) = (
    "/run/storagetm, $XDG_RUNTIME_DIR/storagetm",
    "the sockets of the running storagetm serve, for root and for others",
);
const KEYS: (&str, &str) = (
    "/var/lib/storagetm, ~/.local/state/storagetm",
    "hosts, keys, the machines that were paired with, and reservations of disks, for root and for others; $STATE_DIRECTORY in a service",
);

/// Pages besides storagetm(1) to which a page refers.
const RELATED: &[(&str, &[&str])] = &[
    ("storagetm", &["storage-target-mode.target", "nvme(1)", "nbdkit(1)"]),
    (
        "storagetm-attach",
        &[
            "storagetm-detach",
            "storagetm-pair",
            "storagetm-find",
            "storagetm-tls-agent",
            "nvme-connect(1)",
            "tlshd(8)",
        ],
    ),
    ("storagetm-add", &["storagetm-remove", "storagetm-serve", "storagetm-status"]),
    ("storagetm-agent", &["storagetm-copy"]),
    ("storagetm-boot", &["storagetm-image", "storage-target-mode.target"]),
    ("storagetm-copy", &["storagetm-find", "storagetm-pair", "ddrescue(1)", "nbdcopy(1)"]),
    ("storagetm-detach", &["storagetm-attach", "nvme-disconnect(1)"]),
    ("storagetm-find", &["storagetm-attach", "storagetm-copy", "avahi-browse(1)"]),
    ("storagetm-hold", &["storage-target-mode.target"]),
    ("storagetm-host", &["storagetm-key", "storagetm-pair", "storagetm-serve"]),
    ("storagetm-image", &["storagetm-boot", "storage-target-mode.target", "ukify(1)", "sbsign(1)"]),
    ("storagetm-key", &["storagetm-host", "storagetm-pair", "nvme-tls-key(1)"]),
    ("storagetm-list", &["storagetm-serve", "lsblk(8)"]),
    ("storagetm-overlay", &["storagetm-serve", "qemu-img(1)"]),
    ("storagetm-pair", &["storagetm-attach", "storagetm-copy", "storagetm-host"]),
    ("storagetm-provider", &["storagetm-serve", "systemd-nspawn(1)"]),
    ("storagetm-remove", &["storagetm-add", "storagetm-serve", "storagetm-status"]),
    (
        "storagetm-serve",
        &[
            "storagetm-list",
            "storagetm-pair",
            "storagetm-host",
            "storage-target-mode.target",
            "nvme-connect(1)",
            "nbdinfo(1)",
        ],
    ),
    ("storagetm-status", &["storagetm-add", "storagetm-remove", "storagetm-serve"]),
];

/// Renders the page of a command.
pub(super) fn render(command: &clap::Command, manual: clap_mangen::Man) -> Result<String> {
    let name = title(command);
    let source = concat!("storagetm ", env!("CARGO_PKG_VERSION"));
    let manual = manual.source(source).manual("storagetm");
    let mut page = Vec::new();
    manual.render_title(&mut page)?;
    manual.render_name_section(&mut page)?;
    manual.render_synopsis_section(&mut page)?;
    manual.render_description_section(&mut page)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        manual.render_options_section(&mut page)?;
    }
    if command.get_subcommands().any(|part| !part.is_hide_set()) {
        manual.render_subcommands_section(&mut page)?;
    }
    let mut page = without_repeated_preamble(&String::from_utf8(page)?);
    let help = command.get_after_long_help().or_else(|| command.get_after_help());
    let mut sections = sections(&help.map(ToString::to_string).unwrap_or_default());
    if !sections.iter().any(|(heading, _)| heading == "EXIT STATUS") {
        sections.push(("EXIT STATUS".to_owned(), EXIT_STATUS.to_owned()));
    }
    for (heading, body) in sections {
        writeln!(page, ".SH \"{heading}\"\n{}", paragraphs(&body).trim_end())?;
    }
    page.push_str(&files(command, name));
    page.push_str(&related(command, name));
    Ok(page)
}

/// clap_mangen begins each section with the definition of the apostrophe: keeps one.
fn without_repeated_preamble(page: &str) -> String {
    let is_preamble = |line: &str| line.starts_with(".ie ") || line.starts_with(".el ");
    let lines = page.lines().enumerate();
    let kept = lines.filter(|(at, line)| *at < 2 || !is_preamble(line));
    kept.map(|(_, line)| format!("{line}\n")).collect()
}

/// Splits the text after the options into sections. Text before the first heading becomes NOTES.
fn sections(text: &str) -> Vec<(String, String)> {
    let mut sections = vec![("NOTES".to_owned(), String::new())];
    for line in text.lines() {
        let heading =
            HEADINGS.iter().find_map(|(words, name)| Some((name, line.strip_prefix(words)?)));
        let rest = heading.map_or(line, |(name, rest)| {
            sections.push(((*name).to_owned(), String::new()));
            rest.trim_start()
        });
        if let Some((_, body)) = sections.last_mut() {
            body.push_str(rest);
            body.push('\n');
        }
    }
    sections.retain(|(_, body)| !body.trim().is_empty());
    sections
}

/// Keeps indented lines as they are, fills others.
fn paragraphs(text: &str) -> String {
    let mut page = String::new();
    let mut is_fixed = false;
    for line in text.trim_matches('\n').lines() {
        let fixed = line.starts_with(' ') || (is_fixed && line.is_empty());
        if fixed != is_fixed {
            page.push_str(if fixed { ".nf\n" } else { ".fi\n.PP\n" });
            is_fixed = fixed;
        }
        page.push_str(&escaped(line));
        page.push('\n');
    }
    if is_fixed {
        page.push_str(".fi\n");
    }
    page
}

/// Escapes text for troff.
fn escaped(line: &str) -> String {
    let text = line.replace('\\', "\\\\").replace('-', "\\-").replace('\'', "\\*(Aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

fn files(command: &clap::Command, name: &str) -> String {
    let own = FILES.iter().filter(|(page, _)| *page == name).flat_map(|(_, files)| *files);
    let has_keys = command.get_arguments().any(|argument| argument.get_long() == Some("keys"));
    let all: Vec<_> = own.chain(has_keys.then_some(&KEYS)).collect();
    let mut text = String::new();
    for (path, what) in &all {
        text.push_str(&format!(".TP\n\\fI{}\\fR\n{}\n", escaped(path), escaped(what)));
    }
    if all.is_empty() { text } else { format!(".SH FILES\n{text}") }
}

/// Returns the related pages, and those of the command's subcommands or parent.
fn related(command: &clap::Command, name: &str) -> String {
    let mut names: Vec<String> = Vec::new();
    if name != "storagetm" {
        names.push("storagetm".to_owned());
    }
    if let Some((parent, _)) = name.rsplit_once('-').filter(|(parent, _)| parent.contains('-')) {
        names.push(parent.to_owned());
    }
    let parts = command.get_subcommands().filter(|part| !part.is_hide_set());
    names.extend(parts.map(|part| title(part).to_owned()));
    let others = RELATED.iter().filter(|(page, _)| *page == name).flat_map(|(_, others)| *others);
    names.extend(others.map(|&other| other.to_owned()));
    let pages: Vec<String> = names.iter().map(|name| reference(name)).collect();
    format!(".SH \"SEE ALSO\"\n{}\n", pages.join(",\n"))
}

/// Returns a reference to a page: one of ours by its name, others with the section.
fn reference(name: &str) -> String {
    let (page, section) = match name.strip_suffix(')').and_then(|name| name.split_once('(')) {
        Some(parts) => parts,
        None => (name, section(name)),
    };
    format!("\\fB{}\\fR({section})", escaped(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_keep_their_lines() {
        let help = "First words.\n\nExamples:\n  Do it:\n    storagetm it\n\n  Again.\n\nAll of it.\n\n\
                    Exit status: 0 if it's done.";
        let sections = sections(help);
        let names: Vec<&str> = sections.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["NOTES", "EXAMPLES", "EXIT STATUS"]);
        assert_eq!(
            paragraphs(&sections[1].1),
            ".nf\n  Do it:\n    storagetm it\n\n  Again.\n\n.fi\n.PP\nAll of it.\n"
        );
        assert_eq!(paragraphs(&sections[2].1), "0 if it\\*(Aqs done.\n");
    }

    #[test]
    fn pages_have_all_sections_and_a_header() {
        let mut command = storagetm::options::command();
        command.build();
        let key = command.get_subcommands().find(|part| part.get_name() == "key").unwrap();
        let page = render(key, clap_mangen::Man::new(key.clone()).section("1")).unwrap();
        let header =
            format!(".TH storagetm-key 1  \"storagetm {}\" storagetm\n", env!("CARGO_PKG_VERSION"));
        assert!(page.contains(&header), "{page}");
        assert!(!page.contains("EXTRA"));
        for section in ["EXAMPLES", "EXIT STATUS", "SEE ALSO"] {
            assert_eq!(page.matches(&format!(".SH \"{section}\"\n")).count(), 1, "{section}");
        }
        assert!(page.contains(".SH FILES\n.TP\n\\fI/var/lib/storagetm"));
        assert!(page.contains("\\fBstoragetm\\-key\\-export\\fR(1)"));
        assert_eq!(page.matches(".ie ").count(), 1);
    }
}
