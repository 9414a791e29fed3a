//! Module settings of the kernel command line: parameters and blacklists.

use super::pattern::normal;
use std::collections::{HashMap, HashSet};

/// The parameters that blacklist modules: the kernel's own, that of modprobe, and that of dracut.
const FORBID: &[&str] = &["module_blacklist", "modprobe.blacklist", "rd.driver.blacklist"];

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    forbidden: HashSet<String>,
    parameters: HashMap<String, String>,
}

impl Settings {
    /// Reads a kernel command line.
    pub(super) fn parse(line: &str) -> Self {
        let mut settings = Self::default();
        // The part after "--" is for init.
        for word in words(line).into_iter().take_while(|word| word != "--") {
            settings.follow(&word);
        }
        settings
    }

    fn follow(&mut self, word: &str) {
        let (key, value) =
            word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        if FORBID.contains(&key) {
            self.forbidden
                .extend(value.unwrap_or_default().split(',').map(|name| normal(name).into_owned()));
        } else if let Some((module, parameter)) = key.split_once('.') {
            let list = self.parameters.entry(normal(module).into_owned()).or_default();
            if !list.is_empty() {
                list.push(' ');
            }
            list.push_str(parameter);
            if let Some(value) = value {
                list.push_str(&format!("={}", quoted(value)));
            }
        }
    }

    /// Returns whether the module is blacklisted.
    pub(super) fn is_forbidden(&self, name: &str) -> bool {
        self.forbidden.contains(name)
    }

    /// Returns the parameters of a module in the kernel's syntax.
    pub(super) fn parameters(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }
}

/// Splits a kernel command line: quotes keep blanks together, and are removed.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut inside = false;
    for c in line.trim().chars() {
        match (c, words.last_mut()) {
            ('"', _) => inside = !inside,
            (c, _) if c.is_whitespace() && !inside => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn quoted(value: &str) -> String {
    if value.contains(char::is_whitespace) { format!("\"{value}\"") } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_collected_by_module() {
        let line = "quiet nvme-core.io_timeout=5 console=ttyS0,9600 nvme_core.multipath=N \
            usbcore.x=\"a b\" \"usbcore.y=c d\" loop.flag -- nvme_core.late=1";
        let settings = Settings::parse(line);
        assert_eq!(settings.parameters("nvme_core"), "io_timeout=5 multipath=N");
        assert_eq!(settings.parameters("usbcore"), "x=\"a b\" y=\"c d\"");
        assert_eq!((settings.parameters("loop"), settings.parameters("quiet")), ("flag", ""));
    }

    #[test]
    fn each_blacklist_parameter_is_followed() {
        let line =
            "module_blacklist=a-b,c modprobe.blacklist=d rd.driver.blacklist=e module_blacklist";
        let settings = Settings::parse(line);
        assert!(["a_b", "c", "d", "e"].iter().all(|name| settings.is_forbidden(name)));
        assert!(!settings.is_forbidden("a") && settings.parameters("modprobe").is_empty());
    }

    #[test]
    fn malformed_command_line_does_not_panic() {
        for line in ["", "\"", "= . .= a. .b=\"", "\0\0=\0.\0"] {
            let _ = Settings::parse(line);
        }
    }
}
