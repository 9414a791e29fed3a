//! Module settings of the kernel command line: parameters and blacklists.

use super::pattern::normal;
use std::collections::{HashMap, HashSet};

/// The parameters that blacklist modules: of the kernel, of modprobe and of dracut.
const BLACKLIST_PARAMETERS: &[&str] =
    &["module_blacklist", "modprobe.blacklist", "rd.driver.blacklist"];

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    blacklisted: HashSet<String>,
    parameters: HashMap<String, String>,
}

impl Settings {
    /// Parses a kernel command line.
    pub(super) fn parse(line: &str) -> Self {
        let mut settings = Self::default();
        // It makes a bond by itself, with the wrong settings.
        settings.add("bonding.max_bonds=0");
        // The part after "--" is for init.
        for parameter in split_parameters(line).into_iter().take_while(|it| it != "--") {
            settings.add(&parameter);
        }
        settings
    }

    fn add(&mut self, parameter: &str) {
        let (key, value) =
            parameter.split_once('=').map_or((parameter, None), |(key, value)| (key, Some(value)));
        if BLACKLIST_PARAMETERS.contains(&key) {
            self.blacklisted
                .extend(value.unwrap_or_default().split(',').map(|name| normal(name).into_owned()));
        } else if let Some((module, name)) = key.split_once('.') {
            let list = self.parameters.entry(normal(module).into_owned()).or_default();
            if !list.is_empty() {
                list.push(' ');
            }
            list.push_str(name);
            if let Some(value) = value {
                list.push_str(&format!("={}", quoted(value)));
            }
        }
    }

    /// Returns whether the module is blacklisted.
    pub(super) fn is_blacklisted(&self, name: &str) -> bool {
        self.blacklisted.contains(name)
    }

    /// Returns the parameters of a module in the kernel's syntax.
    pub(super) fn parameters(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }
}

/// Splits a kernel command line at blanks that are not quoted, and removes the quotes.
fn split_parameters(line: &str) -> Vec<String> {
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
    fn each_blacklist_parameter_is_applied() {
        let line =
            "module_blacklist=a-b,c modprobe.blacklist=d rd.driver.blacklist=e module_blacklist";
        let settings = Settings::parse(line);
        assert!(["a_b", "c", "d", "e"].iter().all(|name| settings.is_blacklisted(name)));
        assert!(!settings.is_blacklisted("a") && settings.parameters("modprobe").is_empty());
    }

    #[test]
    fn malformed_command_line_does_not_panic() {
        for line in ["", "\"", "= . .= a. .b=\"", "\0\0=\0.\0"] {
            let _ = Settings::parse(line);
        }
    }
}
