//! The proxy for a request, as the environment names it: `HTTPS_PROXY` and `HTTP_PROXY` by the kind of the address, else
//! `ALL_PROXY`; `NO_PROXY` lists hosts and domains that are asked directly. Lower-case names are the same.

use std::net::IpAddr;

use ureq::Proxy;
use ureq::http::Uri;

/// Returns the proxy for requests that begin at an address. This machine itself is never asked through one: a proxy that
/// is asked for `localhost` connects to its own.
pub(crate) fn proxy(uri: &Uri) -> Option<Proxy> {
    proxy_of(uri, &variable)
}

/// Returns which variable of the environment names a proxy that cannot be used; its value may have a password.
pub fn unusable_proxy() -> Option<&'static str> {
    let named = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"].into_iter();
    named.into_iter().find(|name| variable(name).is_some_and(|value| Proxy::new(&value).is_err()))
}

/// Returns a variable that is not empty.
fn variable(name: &str) -> Option<String> {
    let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    read(&name.to_ascii_lowercase()).or_else(|| read(name))
}

fn proxy_of(uri: &Uri, variable: &dyn Fn(&str) -> Option<String>) -> Option<Proxy> {
    if uri.host().is_none_or(is_loopback) {
        return None;
    }
    let own = if uri.scheme_str() == Some("https") { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let named = Proxy::new(&variable(own).or_else(|| variable("ALL_PROXY"))?).ok()?;
    let mut builder = Proxy::builder(named.protocol()).host(named.host()).port(named.port());
    if let Some(user) = named.username() {
        builder = builder.username(user);
    }
    if let Some(password) = named.password() {
        builder = builder.password(password);
    }
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        builder = builder.no_proxy(host);
    }
    let excluded = variable("NO_PROXY").unwrap_or_default();
    for entry in excluded.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()) {
        // A domain is itself and what is below it.
        let name = entry.trim_start_matches("*.").trim_start_matches('.');
        builder = builder.no_proxy(entry).no_proxy(name).no_proxy(&format!(".{name}"));
    }
    builder.build().ok()
}

/// Returns whether a host of a URL is this machine by its name or address.
pub(crate) fn is_loopback(host: &str) -> bool {
    let ip: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    host == "localhost" || ip.is_some_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod test {
    use super::*;

    /// Returns the proxy for an address, with variables `NAME=VALUE`; `direct` without one.
    fn of(uri: &str, variables: &[&str]) -> String {
        let uri: Uri = uri.parse().unwrap();
        let variable = |name: &str| {
            let of_name = |it: &&str| it.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
            variables.iter().find_map(of_name)
        };
        let proxy = proxy_of(&uri, &variable).filter(|proxy| !proxy.is_no_proxy(&uri));
        proxy.map_or_else(
            || "direct".to_owned(),
            |proxy| format!("{:?} {}:{}", proxy.protocol(), proxy.host(), proxy.port()),
        )
    }

    #[test]
    fn proxy_is_that_of_the_kind_of_address() {
        let all = ["HTTP_PROXY=a:1", "HTTPS_PROXY=http://b:2", "ALL_PROXY=socks5://c:3"];
        assert_eq!(of("http://host/x", &all), "Http a:1");
        assert_eq!(of("https://host/x", &all), "Http b:2");
        assert_eq!(of("https://host/x", &all[2..]), "Socks5 c:3");
        assert_eq!(of("https://host/x", &all[..1]), "direct");
    }

    #[test]
    fn excluded_hosts_and_this_machine_are_asked_directly() {
        let asked = |uri| of(uri, &["ALL_PROXY=p:1", "NO_PROXY=a.example, b.example ,.c.example"]);
        for uri in
            ["http://a.example/", "http://x.b.example/", "http://c.example/", "http://y.c.example/"]
        {
            assert_eq!(asked(uri), "direct", "{uri}");
        }
        for uri in ["http://localhost:5000/", "http://127.0.0.9/", "http://[::1]:1/"] {
            assert_eq!(asked(uri), "direct", "{uri}");
        }
        assert_eq!(asked("http://notb.example/"), "Http p:1");
        assert_eq!(of("http://host/", &["ALL_PROXY=p:1", "NO_PROXY=*"]), "direct");
    }
}
