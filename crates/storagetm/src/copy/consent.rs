//! Asks whether a disk may be overwritten. It knows nothing of disks but what it is told of this one.

use std::io::{self, BufRead, IsTerminal, Write};

use console::{printable, printable_lines};

use super::ending::refused;
use super::local::Stake;
use crate::failure::Failure;

/// Bytes of the longest answer that is read.
const LONGEST: u64 = 256;

/// Has whoever sits at the terminal agree by typing the disk's name.
///
/// # Errors
/// They do not, or nobody sits there.
pub(super) fn ask(stake: &Stake, source: &str, size: &str) -> Result<(), Failure> {
    let input = io::stdin();
    if !input.is_terminal() || !io::stderr().is_terminal() {
        return Err(refused(format!(
            "{stake} would be overwritten, all of it; if that may be, add --yes"
        )));
    }
    let question = format!(
        "{stake}\nwill be overwritten with {source}{size}. Nothing that is on it can be had back."
    );
    let mut output = io::stderr();
    let _ = writeln!(output, "{}", printable_lines(&question));
    let _ = write!(output, "Type {} to go on: ", printable(&stake.name, true));
    let _ = output.flush();
    agreed(input.lock(), &stake.name)
        .then_some(())
        .ok_or_else(|| refused(format!("{} is left as it is: that was not its name", stake.path)))
}

/// Whether the line that comes is the disk's name, or yes.
fn agreed(input: impl BufRead, name: &str) -> bool {
    let mut line = String::new();
    let read = input.take(LONGEST).read_line(&mut line);
    let line = line.trim();
    read.is_ok() && (line == name || line == "yes" || line.strip_prefix("/dev/") == Some(name))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_the_name_or_yes_is_an_agreement() {
        for (typed, agrees) in [
            ("sdb\n", true),
            (" yes \n", true),
            ("/dev/sdb\n", true),
            ("sda\n", false),
            ("y\n", false),
            ("\n", false),
            ("", false),
            ("sdb sdb\n", false),
        ] {
            assert_eq!(agreed(typed.as_bytes(), "sdb"), agrees, "{typed:?}");
        }
        let long = "x".repeat(1000);
        assert!(!agreed(long.as_bytes(), "sdb"));
    }

    /// The tests have no terminal.
    #[test]
    fn without_a_terminal_nobody_agrees() {
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            println!("skip asking without a terminal: there is one");
            return;
        }
        let stake = Stake {
            path: "/dev/sdb".to_owned(),
            name: "sdb".to_owned(),
            description: "1 TB".to_owned(),
            bytes: 1 << 40,
        };
        let failure = ask(&stake, "a", "").unwrap_err();
        assert_eq!(failure.status(), 5);
        assert!(
            failure.to_string().contains("/dev/sdb (1 TB)")
                && failure.to_string().contains("--yes")
        );
    }
}
