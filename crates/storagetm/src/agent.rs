//! `storagetm agent`: `storagetm copy` with the options that the environment or a JSON object names. The
//! names of Tinkerbell's image2disk and oci2disk are understood.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::time::Duration;

use clap::CommandFactory;
use fetch::{Access, Body, Location};
use serde_json::{Map, Value};

use crate::copy;
use crate::options::agent::Agent;
use crate::options::copy::Copy;
use crate::options::{Options, Task, parse};
use failure::Failure;

/// The longest JSON object in bytes.
const MAX_ORDERS: u64 = 1 << 20;
/// How long a lost connection to the server of the JSON object is made again.
const PATIENCE: Duration = Duration::from_secs(60);
/// The beginning of the names of variables for options of `copy`.
const PREFIX: &str = "STORAGETM_";
/// Names of Tinkerbell's actions.
const TINKERBELL: [&str; 5] = [
    "IMG_URL",
    "DEST_DISK",
    "PROGRESS_INTERVAL_SECONDS",
    "RETRY_DURATION_MINUTES",
    "RETRY_ENABLED",
];
/// A variable with this beginning that is none of them.
const TARGET_MODE: &str = "STORAGETM_TARGET_MODE";
/// The two values of `copy` that are no options.
const SOURCE: &str = "source";
const DESTINATION: &str = "destination";
/// The options of `copy` that the agent always sets.
const ALWAYS: [&str; 2] = ["json", "yes"];

/// What is to be done: values by the names of the options of `copy`.
type Orders = BTreeMap<String, String>;

/// Copies.
///
/// # Errors
/// Fails if the orders cannot be read or are incomplete, and as [`copy::copy`].
pub(crate) fn agent(options: &Agent) -> Result<(), Failure> {
    let mut orders = match &options.orders {
        None => Orders::new(),
        Some(place) => read(place)?,
    };
    orders.extend(environment(std::env::vars_os(), &names()).map_err(Failure::usage)?);
    copy::copy(&parsed(orders)?)
}

/// Reads a JSON object from a file, or from a file of a web server.
fn read(place: &str) -> Result<Orders, Failure> {
    let mut bytes = Vec::new();
    let (name, read) = if place.contains("://") {
        let location: Location = place.parse().ok().filter(Location::is_web).ok_or_else(|| {
            Failure::usage("the orders are a file, or an http:// or https:// URL")
        })?;
        let name = location.to_string();
        let body = Body::open(&location, &Access::default(), PATIENCE);
        let body = body.map_err(|reason| {
            Failure::new(format!("the orders {name} cannot be read: {reason}"))
        })?;
        (name, body.take(MAX_ORDERS + 1).read_to_end(&mut bytes))
    } else {
        let file = File::open(place);
        (place.to_owned(), file.and_then(|it| it.take(MAX_ORDERS + 1).read_to_end(&mut bytes)))
    };
    read.map_err(|error| Failure::new(format!("the orders {name} cannot be read: {error}")))?;
    if bytes.len() as u64 > MAX_ORDERS {
        return Err(Failure::new(format!("the orders {name} are longer than {MAX_ORDERS} bytes")));
    }
    object(&bytes).map_err(|reason| Failure::usage(format!("the orders {name}: {reason}")))
}

/// Parses a JSON object. A member `null` is left out.
fn object(json: &[u8]) -> Result<Orders, String> {
    let members: Map<String, Value> = serde_json::from_slice(json)
        .map_err(|error| format!("they are no JSON object: {error}"))?;
    let mut orders = Orders::new();
    for (name, value) in members {
        let value = match value {
            Value::Bool(value) => value.to_string(),
            Value::Null => continue,
            Value::Number(number) => number.to_string(),
            Value::String(text) => text,
            Value::Array(_) | Value::Object(_) => {
                return Err(format!("{name} is neither a text, a number, true nor false"));
            }
        };
        orders.insert(name.replace('_', "-"), value);
    }
    Ok(orders)
}

/// Returns the names of the options of `copy`, and whether each takes a value.
fn names() -> BTreeMap<String, bool> {
    let command = Options::command();
    let copy = command.find_subcommand("copy");
    let options = copy.into_iter().flat_map(clap::Command::get_arguments);
    let options = options.filter_map(|it| Some((it.get_long()?, it.get_action().takes_values())));
    let ends = [(SOURCE, true), (DESTINATION, true)];
    options.chain(ends).map(|(name, takes)| (name.to_owned(), takes)).collect()
}

/// Returns what the environment says. Empty variables of Tinkerbell's actions have no effect, as there.
///
/// # Errors
/// Fails if a variable of this program names no option or is empty, if one is neither true nor false and has to be,
/// or if one is not UTF-8.
fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
    names: &BTreeMap<String, bool>,
) -> Result<Orders, String> {
    let mut orders = Orders::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        let option = name.strip_prefix(PREFIX).filter(|_| name != TARGET_MODE);
        let is_tinkerbell = TINKERBELL.contains(&name.as_str()) && !value.is_empty();
        if option.is_none() && !is_tinkerbell {
            continue;
        }
        let value = value.into_string().map_err(|_| format!("{name} is not UTF-8"))?;
        if let Some((option, value)) = order(&name, option, value, names)?
            // A name of this program takes precedence.
            && (name.starts_with(PREFIX) || !orders.contains_key(&option))
        {
            orders.insert(option, value);
        }
    }
    Ok(orders)
}

/// Returns the option of `copy` that a variable stands for, and its value; `None` for one without effect.
fn order(
    name: &str,
    option: Option<&str>,
    value: String,
    names: &BTreeMap<String, bool>,
) -> Result<Option<(String, String)>, String> {
    let named = |option: &str, value: String| Ok(Some((option.to_owned(), value)));
    let Some(option) = option else {
        return match name {
            "IMG_URL" if value.contains("://") => named(SOURCE, value),
            "IMG_URL" => named(SOURCE, format!("oci://{value}")),
            "DEST_DISK" => named(DESTINATION, value),
            "RETRY_ENABLED" => named("wait", is_true(name, &value)?.to_string()),
            "PROGRESS_INTERVAL_SECONDS" => named("progress-interval", value),
            "RETRY_DURATION_MINUTES" => {
                let minutes: Option<u64> = value.parse().ok();
                let seconds = minutes.and_then(|minutes| minutes.checked_mul(60));
                let seconds =
                    seconds.ok_or_else(|| format!("{name} is {value}, no number of minutes"))?;
                named("patience", seconds.to_string())
            }
            _ => Ok(None),
        };
    };
    let option = option.to_ascii_lowercase().replace('_', "-");
    match names.get(&option) {
        None => Err(format!("{name} is no option: storagetm copy has no --{option}")),
        // A command that failed to print a hash must not leave the hash out.
        Some(_) if value.is_empty() => {
            Err(format!("{name} is empty: give it a value, or do not set it"))
        }
        Some(true) => named(&option, value),
        Some(false) => named(&option, is_true(name, &value)?.to_string()),
    }
}

/// Parses a boolean as Go does, in which the actions of Tinkerbell are written.
fn is_true(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err(format!("{name} is {value}, neither true nor false")),
    }
}

/// Parses the orders as the command line of `copy` that they are.
fn parsed(mut orders: Orders) -> Result<Copy, Failure> {
    let mut take = |name: &str, variable: &str| {
        orders.remove(name).ok_or_else(|| {
            Failure::usage(format!(
                "no {name} is named: set {variable}, or \"{name}\" in the orders"
            ))
        })
    };
    let ends = [take(SOURCE, "IMG_URL")?, take(DESTINATION, "DEST_DISK")?];
    let takes_value = names();
    let mut words = vec!["storagetm".to_owned(), "copy".to_owned()];
    for name in ALWAYS {
        if let Some(value) = orders.insert(name.to_owned(), "true".to_owned())
            && value != "true"
        {
            return Err(Failure::usage(format!(
                "{name} is {value}, and cannot be: the agent asks nothing, and writes JSON events"
            )));
        }
    }
    for (name, value) in orders {
        match (takes_value.get(&name), value.as_str()) {
            (Some(false), "true") => words.push(format!("--{name}")),
            (Some(false), "false") => {}
            _ => words.push(format!("--{name}={value}")),
        }
    }
    words.push("--".to_owned());
    words.extend(ends);
    match parse(words).map(|options| options.task) {
        Ok(Task::Copy(copy)) => Ok(*copy),
        Ok(_) => Err(Failure::usage("the orders are no copy")),
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Err(Failure::usage(line.strip_prefix("error: ").unwrap_or(line)))
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn orders_of(variables: &[(&str, &str)]) -> Result<Orders, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
        environment(variables.iter().map(owned), &names())
    }

    #[test]
    fn variables_of_image2disk_are_a_copy() {
        let variables = [
            ("IMG_URL", "http://192.168.1.2/ubuntu.raw.gz"),
            ("DEST_DISK", "/dev/sda"),
            ("COMPRESSED", "true"),
            ("PATH", "/bin"),
        ];
        let copy = parsed(orders_of(&variables).unwrap()).unwrap();
        assert_eq!(copy.source.to_string(), "http://192.168.1.2/ubuntu.raw.gz");
        assert_eq!(copy.destination.to_string(), "/dev/sda");
        assert!(copy.yes && copy.json && copy.patience == 300 && !copy.force && !copy.wait);
    }

    #[test]
    fn retries_of_image2disk_include_the_first_request() {
        let variables =
            [("IMG_URL", "http://a/b"), ("DEST_DISK", "/dev/sda"), ("RETRY_ENABLED", "true")];
        assert!(parsed(orders_of(&variables).unwrap()).unwrap().wait);
        let variables = [variables[0], variables[1], ("RETRY_ENABLED", "false")];
        assert!(!parsed(orders_of(&variables).unwrap()).unwrap().wait);
        assert!(orders_of(&[("RETRY_ENABLED", "often")]).is_err());
    }

    #[test]
    fn variables_of_oci2disk_are_a_copy() {
        let image = "registry.example:5000/ubuntu:22.04";
        let variables =
            [("IMG_URL", image), ("DEST_DISK", "/dev/sda"), ("RETRY_DURATION_MINUTES", "10")];
        let copy = parsed(orders_of(&variables).unwrap()).unwrap();
        assert_eq!(copy.source.to_string(), format!("oci://{image}"));
        assert_eq!(copy.patience, 600);
    }

    #[test]
    fn every_option_of_copy_can_be_set() {
        let variables = [
            ("STORAGETM_SOURCE", "a"),
            ("IMG_URL", "https://b.example/c"),
            ("STORAGETM_DESTINATION", "b"),
            ("STORAGETM_EXPAND", "true"),
            ("STORAGETM_NEW_IDS", "0"),
            ("STORAGETM_NO_VERIFY", "1"),
            ("STORAGETM_RETRIES", "7"),
            ("STORAGETM_TARGET_MODE", "x"),
        ];
        let copy = parsed(orders_of(&variables).unwrap()).unwrap();
        assert_eq!(copy.source.to_string(), "a");
        assert!(copy.expand && !copy.new_ids && copy.no_verify && copy.retries == 7);
        assert!(orders_of(&[("STORAGETM_EXPAND", "perhaps")]).is_err());
        // A name that is mistyped must not leave the hash out.
        assert!(orders_of(&[("STORAGETM_SHA265", "0")]).unwrap_err().contains("no --sha265"));
        assert!(orders_of(&[("RETRY_DURATION_MINUTES", "long")]).is_err());
    }

    #[test]
    fn empty_variable_does_not_leave_an_option_out() {
        for name in ["SHA256", "HASH_FILE", "KEYRING", "SIGNATURE", "EXPAND", "SHA265"] {
            let name = format!("STORAGETM_{name}");
            let reason = orders_of(&[(&name, "")]).unwrap_err();
            assert!(reason.contains(&name), "{reason}");
        }
        // Where image2disk takes them as unset.
        let empty = [("IMG_URL", ""), ("RETRY_ENABLED", ""), ("RETRY_DURATION_MINUTES", "")];
        assert_eq!(orders_of(&empty), Ok(Orders::new()));
        assert_eq!(orders_of(&[("STORAGETM_TARGET_MODE", ""), ("LANG", "")]), Ok(Orders::new()));
    }

    #[test]
    fn agent_neither_asks_nor_writes_text() {
        let ends = [("IMG_URL", "https://a.example/b"), ("DEST_DISK", "/dev/sda")];
        let with = |name, value| parsed(orders_of(&[ends[0], ends[1], (name, value)]).unwrap());
        assert!(with("STORAGETM_YES", "1").unwrap().yes);
        for name in ["STORAGETM_YES", "STORAGETM_JSON"] {
            let failure = with(name, "false").unwrap_err();
            assert_eq!(failure.status(), 2, "{name}: {failure}");
        }
        for (member, is_right) in [
            (r#""yes": true"#, true),
            (r#""yes": false"#, false),
            (r#""yes": "never""#, false),
            (r#""json": false"#, false),
        ] {
            let json = format!(r#"{{"source": "a", "destination": "b", {member}}}"#);
            let found = parsed(object(json.as_bytes()).unwrap());
            assert_eq!(found.map_err(|failure| failure.status()).is_ok(), is_right, "{member}");
        }
    }

    #[test]
    fn json_object_has_the_names_of_options() {
        let json = br#"{"source": "a", "destination": "b", "new_ids": true, "fix-gpt": false,
                        "retries": 3, "rate": "20M", "map": null}"#;
        let copy = parsed(object(json).unwrap()).unwrap();
        assert!(copy.new_ids && !copy.fix_gpt && copy.retries == 3 && copy.map.is_none());
        for json in ["", "[]", r#"{"retries": [3]}"#] {
            object(json.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn wrong_orders_are_usage_errors() {
        let parse = |json: &str| parsed(object(json.as_bytes()).unwrap()).unwrap_err();
        for json in [
            r#"{"source": "a"}"#,
            r#"{"source": "a", "destination": "b", "colour": "red"}"#,
            r#"{"source": "a", "destination": "b", "expand": "yes"}"#,
            r#"{"source": "ftp://a/b", "destination": "b"}"#,
        ] {
            assert_eq!(parse(json).status(), 2, "{json}");
        }
        let named = parse(r#"{"destination": "b"}"#).to_string();
        assert!(named.contains("IMG_URL"), "{named}");
    }

    #[test]
    fn end_that_looks_like_an_option_is_a_path() {
        let copy = parsed(object(br#"{"source": "--help", "destination": "b"}"#).unwrap()).unwrap();
        assert_eq!(copy.source.to_string(), "--help");
    }
}
