//! The interface that every service has, `org.varlink.service` (<https://varlink.org/Service>): what the
//! service is, and which interfaces it has; and the errors that every method may return.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::message::{Call, Reply};

/// The name of the interface.
const NAME: &str = "org.varlink.service";

/// Its description, in the interface definition language (<https://varlink.org/Interface-Definition>).
const DESCRIPTION: &str = "\
# Introspection
interface org.varlink.service

# Returns what the service is, and the names of its interfaces
method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

# Returns the description of an interface
method GetInterfaceDescription(interface: string) -> (description: string)

# The service has no such interface
error InterfaceNotFound (interface: string)

# The interface has no such method
error MethodNotFound (method: string)

# The service does not implement the method
error MethodNotImplemented (method: string)

# A parameter has another type or value than the method takes
error InvalidParameter (parameter: string)

# The caller must not call the method
error PermissionDenied ()

# The method must be called with \"more\"
error ExpectedMore ()
";

/// An interface.
#[derive(Debug, Clone, Copy)]
pub struct Interface {
    /// Its name: `org.example.Interface`.
    pub name: &'static str,
    /// Its description in the interface definition language. Each method begins a line.
    pub description: &'static str,
}

/// A service.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    pub vendor: &'static str,
    pub product: &'static str,
    pub version: &'static str,
    pub url: &'static str,
    /// Its interfaces, beside `org.varlink.service`.
    pub interfaces: &'static [Interface],
}

#[derive(Debug, Serialize)]
struct Info<'a> {
    vendor: &'a str,
    product: &'a str,
    version: &'a str,
    url: &'a str,
    interfaces: Vec<&'a str>,
}

impl Service {
    /// Returns the reply to a call that the service's own interfaces do not answer: one of
    /// `org.varlink.service`, one that does not exist, or one that asks for another protocol (`upgrade`). Returns
    /// `None` for a method of an interface of the service.
    pub fn answer(&self, call: &Call) -> Option<Reply> {
        let (interface, method) = call.split();
        let Some(description) = self.description(interface) else {
            let name = "org.varlink.service.InterfaceNotFound";
            return Some(Reply::error(name, json!({ "interface": interface })));
        };
        let declaration = format!("method {method}(");
        if !description.lines().any(|line| line.starts_with(&declaration)) {
            let name = "org.varlink.service.MethodNotFound";
            return Some(Reply::error(name, json!({ "method": call.method })));
        }
        if call.upgrade {
            let name = "org.varlink.service.MethodNotImplemented";
            return Some(Reply::error(name, json!({ "method": call.method })));
        }
        if interface != NAME {
            return None;
        }
        Some(match method {
            "GetInfo" => Reply::new(self.info()),
            _ => self.describe(call),
        })
    }

    fn info(&self) -> Info<'static> {
        let Self { vendor, product, version, url, interfaces } = *self;
        let own = interfaces.iter().map(|interface| interface.name);
        Info {
            vendor,
            product,
            version,
            url,
            interfaces: std::iter::once(NAME).chain(own).collect(),
        }
    }

    fn describe(&self, call: &Call) -> Reply {
        let Some(name) = call.parameters.get("interface").and_then(|name| name.as_str()) else {
            return invalid_parameter("interface");
        };
        match self.description(name) {
            Some(description) => Reply::new(json!({ "description": description })),
            None => {
                let error = "org.varlink.service.InterfaceNotFound";
                Reply::error(error, json!({ "interface": name }))
            }
        }
    }

    fn description(&self, name: &str) -> Option<&'static str> {
        if name == NAME {
            return Some(DESCRIPTION);
        }
        self.interfaces.iter().find(|known| known.name == name).map(|known| known.description)
    }
}

/// Returns the input of a call.
///
/// # Errors
/// Fails with the reply if a parameter is missing, unknown (where `T` denies that) or has another type.
pub fn input<T: DeserializeOwned>(call: &Call) -> Result<T, Reply> {
    let parameters = serde_json::Value::Object(call.parameters.clone());
    serde_json::from_value(parameters).map_err(|error| {
        let text = error.to_string();
        // serde names the member in back quotes if it is missing or unknown.
        let quoted = text.split('`').nth(1).filter(|_| text.contains(" field `"));
        invalid_parameter(quoted.unwrap_or_else(|| misfit::<T>(call)))
    })
}

/// The most parameters of a call of which the unusable one is looked for.
const MAX_SEARCHED: usize = 32;

/// Returns the first parameter without which the others are accepted, or an empty name.
fn misfit<T: DeserializeOwned>(call: &Call) -> &str {
    // Each attempt reads all of them.
    if call.parameters.len() > MAX_SEARCHED {
        return "";
    }
    let fits_without = |name: &&String| {
        let mut others = call.parameters.clone();
        others.remove(name.as_str());
        match serde_json::from_value::<T>(serde_json::Value::Object(others)) {
            Ok(_) => true,
            Err(error) => error.to_string().contains(&format!("missing field `{name}`")),
        }
    };
    call.parameters.keys().find(fits_without).map_or("", String::as_str)
}

/// Returns the reply to a call with an unusable parameter.
pub fn invalid_parameter(name: &str) -> Reply {
    Reply::error("org.varlink.service.InvalidParameter", json!({ "parameter": name }))
}

/// Returns the reply to a caller without the right to call the method.
pub fn permission_denied() -> Reply {
    Reply::error("org.varlink.service.PermissionDenied", json!({}))
}

/// Returns the reply to a call that must be made with `more`.
pub fn expected_more() -> Reply {
    Reply::error("org.varlink.service.ExpectedMore", json!({}))
}

#[cfg(test)]
mod test {
    use super::*;
    use serde::Deserialize;
    use serde_json::Value;

    const SERVICE: Service = Service {
        vendor: "v",
        product: "p",
        version: "1",
        url: "u",
        interfaces: &[Interface {
            name: "org.example.Ping",
            description: "interface org.example.Ping\nmethod Ping(ping: string) -> ()\n",
        }],
    };

    fn answer(method: &str, parameters: Value) -> Option<(Option<String>, Value)> {
        let reply = SERVICE.answer(&Call::new(method, parameters))?;
        Some((reply.error, Value::Object(reply.parameters)))
    }

    #[test]
    fn service_describes_itself_and_its_interfaces() {
        let (error, info) = answer("org.varlink.service.GetInfo", json!({})).unwrap();
        assert_eq!(error, None);
        assert_eq!(info["interfaces"], json!(["org.varlink.service", "org.example.Ping"]));
        for name in ["org.varlink.service", "org.example.Ping"] {
            let asked = json!({ "interface": name });
            let got = answer("org.varlink.service.GetInterfaceDescription", asked).unwrap();
            let text = got.1["description"].as_str().unwrap().to_owned();
            assert!(got.0.is_none() && text.contains(&format!("interface {name}\n")), "{text}");
        }
    }

    #[test]
    fn unknown_interfaces_and_methods_are_errors() {
        let service = |name: &str| Some(format!("org.varlink.service.{name}"));
        for (method, parameters, error) in [
            ("org.varlink.service.GetInfos", json!({}), "MethodNotFound"),
            ("org.varlink.service.GetInterfaceDescription", json!({}), "InvalidParameter"),
            (
                "org.varlink.service.GetInterfaceDescription",
                json!({"interface": "org.example.Pong"}),
                "InterfaceNotFound",
            ),
            ("org.example.Ping.Pong", json!({}), "MethodNotFound"),
            ("org.example.Ping.", json!({}), "MethodNotFound"),
            ("org.example.Pong.Ping", json!({}), "InterfaceNotFound"),
            ("Ping", json!({}), "InterfaceNotFound"),
        ] {
            assert_eq!(answer(method, parameters).unwrap().0, service(error), "{method}");
        }
        assert_eq!(answer("org.example.Ping.Ping", json!({})), None);
        let upgrade = Call { upgrade: true, ..Call::new("org.example.Ping.Ping", json!({})) };
        assert_eq!(SERVICE.answer(&upgrade).unwrap().error, service("MethodNotImplemented"));
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read by Debug")]
    struct Input {
        name: String,
        size: Option<u64>,
    }

    #[test]
    fn unusable_parameter_is_named() {
        for (parameters, name) in [
            (json!({}), "name"),
            (json!({"name": 1}), "name"),
            (json!({"name": "a", "size": -1}), "size"),
            (json!({"name": "a", "more": 1}), "more"),
        ] {
            let reply = input::<Input>(&Call::new("a.B", &parameters)).unwrap_err();
            assert_eq!(reply, invalid_parameter(name), "{parameters}");
        }
        let mut many = crate::message::Parameters::new();
        many.insert("name".to_owned(), json!(1));
        many.extend((0..10_000).map(|n| (format!("z{n}"), Value::Null)));
        let call = Call { parameters: many, ..Call::new("a.B", json!({})) };
        assert_eq!(input::<Input>(&call).unwrap_err(), invalid_parameter(""));
        let input = input::<Input>(&Call::new("a.B", json!({"name": "a", "size": null}))).unwrap();
        assert_eq!(input, Input { name: "a".to_owned(), size: None });
    }
}
