//! Finds the commands that attach disks on a screen.

/// The address family of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// Returns the family of a command.
    pub(super) fn of(line: &str) -> Self {
        if line.contains(" fe80:") { Self::V6 } else { Self::V4 }
    }

    pub(super) fn other(self) -> Self {
        if self == Self::V4 { Self::V6 } else { Self::V4 }
    }

    /// Returns the command if it is of this family.
    pub(super) fn filter(self, line: Option<String>) -> Option<String> {
        line.filter(|line| Self::of(line) == self)
    }

    /// Its part in the names of tests.
    pub(super) fn name(self) -> &'static str {
        if self == Self::V4 { "ipv4" } else { "ipv6" }
    }
}

/// Returns the command that attaches all disks over the link, if this line of the screen has one.
pub(super) fn attach_line(text: &str) -> Option<String> {
    line_from(text, "nvme connect-all ")
}

/// Returns the pairing command over the link.
pub(super) fn pair_line(text: &str) -> Option<String> {
    let line = text.get(text.find("storagetm pair ")?..)?.trim_end();
    let is_near = ["169.254.", "fe80:"].iter().any(|near| line.contains(near));
    is_near.then(|| line.to_owned())
}

/// Returns the pairing code: two groups of four digits at the end of a line.
pub(super) fn code(text: &str) -> Option<String> {
    let code = text.get(text.len().checked_sub(9)?..)?;
    let is_group = |group: &str| group.len() == 4 && group.bytes().all(|it| it.is_ascii_digit());
    let (first, second) = code.split_once(' ')?;
    (text.contains("code") && is_group(first) && is_group(second)).then(|| code.to_owned())
}

/// Returns the text from `start` to the end of the line, if its address is on the link.
pub(super) fn line_from(text: &str, start: &str) -> Option<String> {
    let line = text.get(text.find(start)?..)?.trim_end();
    let is_near = [" -a 169.254.", " -a fe80:"].iter().any(|near| line.contains(near));
    is_near.then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_found_on_either_screen() {
        let line = "nvme connect-all -t tcp -a fe80::1%eth0 -s 4420";
        assert_eq!(attach_line(&format!("    {line}")).as_deref(), Some(line));
        let theirs = format!("          \u{2514}\u{2500} Try for all devices: {line}");
        assert_eq!(attach_line(&theirs).as_deref(), Some(line));
        assert_eq!(attach_line("To attach all disks, type on the other machine"), None);
        assert_eq!(attach_line("nvme connect-all -t tcp -a 127.0.0.1 -s 4420"), None);
    }

    #[test]
    fn code_is_found_on_the_screen() {
        let line = "    storagetm pair 169.254.7.9";
        assert_eq!(pair_line(line).as_deref(), Some("storagetm pair 169.254.7.9"));
        assert_eq!(pair_line("storagetm pair 192.168.1.5"), None);
        assert_eq!(code("and then this code, good once:  1234 5678").as_deref(), Some("1234 5678"));
        for other in ["serial 1234 5678", "the code is 12345 678", "code"] {
            assert_eq!(code(other), None);
        }
    }

    #[test]
    fn families_are_distinguished() {
        let four = "nvme connect-all -t tcp -a 169.254.1.2 -s 4420";
        assert_eq!(Family::of(four), Family::V4);
        assert_eq!(Family::of("nvme connect-all -t tcp -a fe80::1 -s 1"), Family::V6);
        assert_eq!(Family::V6.filter(Some(four.to_owned())), None);
    }
}
