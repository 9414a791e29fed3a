//! `storagetm agent`: `storagetm copy` with the options that the environment or a JSON object names. The
//! names of Tinkerbell's image2disk and oci2disk are understood.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use clap::CommandFactory;
use fetch::{Body, Location};
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
/// The two values of `copy` that are no options.
const SOURCE: &str = "source";
const DESTINATION: &str = "destination";

/// What is to be done: values by the names of the options of `copy`.
type Orders = BTreeMap<String, String>;

/// Copies.
///
/// # Errors
/// Fails if the orders cannot be read or are incomplete, and as [`copy::copy`].
pub(crate) fn agent(options: &Agent) -> Result<(), Failure> {
    let mut orders = match &options.orders {
        None => Orders::new(),
        Some(place) => object(&read(place)?)
            .map_err(|reason| Failure::usage(format!("the orders in {place}: {reason}")))?,
    };
    orders.extend(environment(std::env::vars(), &names()).map_err(Failure::usage)?);
    copy::copy(&parsed(orders)?)
}

/// Reads a file, or a file of a web server.
fn read(place: &str) -> Result<Vec<u8>, Failure> {
    let cannot = |reason: String| Failure::new(format!("the orders cannot be read: {reason}"));
    let mut bytes = Vec::new();
    let read = match place.parse::<Location>() {
        Ok(location) => {
            let body = Body::open(location.clone(), None, PATIENCE);
            let body = body.map_err(|reason| cannot(format!("{location}: {reason}")))?;
            Web(body).take(MAX_ORDERS + 1).read_to_end(&mut bytes)
        }
        Err(_) => File::open(place).and_then(|it| it.take(MAX_ORDERS + 1).read_to_end(&mut bytes)),
    };
    read.map_err(|error| cannot(error.to_string()))?;
    match bytes.len() as u64 {
        0..=MAX_ORDERS => Ok(bytes),
        _ => Err(cannot(format!("they are longer than {MAX_ORDERS} bytes"))),
    }
}

/// A [`Body`] as a reader.
struct Web(Body);

impl Read for Web {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes).map_err(io::Error::other)
    }
}

/// Parses a JSON object. A member `false` or `null` is left out.
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

/// Returns what the environment says.
///
/// # Errors
/// Fails if a variable is neither true nor false, and has to be.
fn environment(
    variables: impl Iterator<Item = (String, String)>,
    names: &BTreeMap<String, bool>,
) -> Result<Orders, String> {
    let mut orders = Orders::new();
    for (name, value) in variables.filter(|(_, value)| !value.is_empty()) {
        let (option, value) = match name.as_str() {
            "IMG_URL" if value.contains("://") => (SOURCE.to_owned(), value),
            "IMG_URL" => (SOURCE.to_owned(), format!("oci://{value}")),
            "DEST_DISK" => (DESTINATION.to_owned(), value),
            "PROGRESS_INTERVAL_SECONDS" => ("progress-interval".to_owned(), value),
            "RETRY_ENABLED" if !is_true(&name, &value)? => ("patience".to_owned(), "0".to_owned()),
            other => {
                let option = other.strip_prefix(PREFIX).unwrap_or_default();
                let option = option.to_ascii_lowercase().replace('_', "-");
                match names.get(&option) {
                    None => continue,
                    Some(true) => (option, value),
                    Some(false) => (option, is_true(&name, &value)?.to_string()),
                }
            }
        };
        // A name of this program takes precedence.
        if name.starts_with(PREFIX) || !orders.contains_key(&option) {
            orders.insert(option, value);
        }
    }
    Ok(orders)
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
    let mut words = ["storagetm", "copy", "--json", "--yes"].map(str::to_owned).to_vec();
    for (name, value) in orders.into_iter().filter(|(name, _)| name != "json" && name != "yes") {
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
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
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
        assert!(copy.yes && copy.json && copy.patience == 300 && !copy.force);
    }

    #[test]
    fn variables_of_oci2disk_are_a_copy() {
        let image = "registry.example:5000/ubuntu:22.04";
        let variables = [("IMG_URL", image), ("DEST_DISK", "/dev/sda"), ("RETRY_ENABLED", "false")];
        let copy = parsed(orders_of(&variables).unwrap()).unwrap();
        assert_eq!(copy.source.to_string(), format!("oci://{image}"));
        assert_eq!(copy.patience, 0);
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
            ("STORAGETM_STATE", "x"),
        ];
        let copy = parsed(orders_of(&variables).unwrap()).unwrap();
        assert_eq!(copy.source.to_string(), "a");
        assert!(copy.expand && !copy.new_ids && copy.no_verify && copy.retries == 7);
        assert!(orders_of(&[("STORAGETM_EXPAND", "perhaps")]).is_err());
        assert!(orders_of(&[("RETRY_ENABLED", "perhaps")]).is_err());
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
