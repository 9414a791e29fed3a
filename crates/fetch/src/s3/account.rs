//! The server and the credentials, as the environment and the files of the AWS command line name them.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use ureq::http::Uri;

/// The largest file of profiles in bytes.
const MAX_FILE: u64 = 1 << 20;
const DEFAULT_REGION: &str = "us-east-1";

/// An access key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) id: String,
    pub(super) secret: String,
    /// The session token of temporary credentials.
    pub(super) token: Option<String>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

/// The address of a server that is not Amazon's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) is_encrypted: bool,
    /// Host and port.
    pub(super) authority: String,
}

/// Where objects are, and the credentials for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub(super) endpoint: Option<Endpoint>,
    pub(super) region: String,
    /// Whether the bucket is in the path and not in the host name; `None` by the server and the bucket.
    pub(super) path_style: Option<bool>,
    /// Requests are not signed without one.
    pub(super) key: Option<Key>,
}

impl Default for Account {
    fn default() -> Self {
        let region = DEFAULT_REGION.to_owned();
        Self { endpoint: None, region, path_style: None, key: None }
    }
}

/// The credentials or the address of a server cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AccountError(String);

/// Reads an environment variable; `None` if it is not set.
type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Account {
    /// Reads the variables `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_PROFILE`, `AWS_REGION`,
    /// `AWS_DEFAULT_REGION`, `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` and `AWS_S3_FORCE_PATH_STYLE`, and the profile in
    /// `~/.aws/credentials` and `~/.aws/config` (`AWS_SHARED_CREDENTIALS_FILE`, `AWS_CONFIG_FILE`) for what they do not have.
    /// Without credentials requests are not signed, as public buckets allow.
    ///
    /// # Errors
    /// Fails if they contradict each other, if a file cannot be read, or if the credentials have to be asked for elsewhere.
    pub fn read(variable: Variables<'_>) -> Result<Self, AccountError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let profile = Profile::read(&set)?;
        let first = |names: &[&str]| names.iter().find_map(|name| set(name));
        let region = first(&["AWS_REGION", "AWS_DEFAULT_REGION"]).or_else(|| profile.get("region"));
        let region = region.unwrap_or_else(|| DEFAULT_REGION.to_owned());
        if !region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(AccountError(format!("{region:?} is not the name of a region")));
        }
        let endpoint = first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
        let endpoint = endpoint.or_else(|| profile.get("endpoint_url"));
        let endpoint = endpoint.map(|url| endpoint_of(&url)).transpose()?;
        let path_style = set("AWS_S3_FORCE_PATH_STYLE").map(|value| match value.as_str() {
            "1" | "true" | "True" | "TRUE" => Ok(true),
            "0" | "false" | "False" | "FALSE" => Ok(false),
            _ => Err(AccountError("AWS_S3_FORCE_PATH_STYLE is neither true nor false".to_owned())),
        });
        let key = key(&set, &profile)?;
        Ok(Self { endpoint, region, path_style: path_style.transpose()?, key })
    }
}

impl Account {
    /// Returns the server whose names of buckets these are: its address, or the partition of Amazon's if that is not the usual
    /// one. `None` for Amazon's.
    pub(crate) fn server(&self) -> Option<&str> {
        let partition = [("cn-", "amazonaws.com.cn"), ("us-gov-", "aws-us-gov")];
        let partition = partition.into_iter().find(|(start, _)| self.region.starts_with(start));
        let endpoint = self.endpoint.as_ref().map(|endpoint| endpoint.authority.as_str());
        endpoint.or_else(|| partition.map(|(_, name)| name))
    }
}

fn key(set: Variables<'_>, profile: &Profile) -> Result<Option<Key>, AccountError> {
    let words = |text: &str| AccountError(text.to_owned());
    match (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => return checked(id, secret, set("AWS_SESSION_TOKEN")).map(Some),
        (None, None) => {}
        _ => {
            return Err(words("only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set"));
        }
    }
    match (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")) {
        (Some(id), Some(secret)) => {
            return checked(id, secret, profile.get("aws_session_token")).map(Some);
        }
        (None, None) => {}
        _ => return Err(words("the AWS profile has only one half of an access key")),
    }
    let elsewhere =
        ["role_arn", "sso_session", "sso_start_url", "credential_process", "login_session"];
    let variables = ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"];
    if elsewhere.iter().any(|name| profile.get(name).is_some())
        || variables.iter().any(|name| set(name).is_some())
        || profile.is_named
    {
        return Err(words(
            "the AWS profile or environment has no access key, and roles and single sign-on are not asked: set what \
             \"aws configure export-credentials --format env\" shows",
        ));
    }
    Ok(None)
}

/// Returns an access key without characters that a header cannot have.
fn checked(id: String, secret: String, token: Option<String>) -> Result<Key, AccountError> {
    let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_graphic());
    if !is_plain(&id) || !token.as_deref().is_none_or(is_plain) {
        return Err(AccountError("the AWS access key ID or session token is malformed".to_owned()));
    }
    Ok(Key { id, secret, token })
}

fn endpoint_of(url: &str) -> Result<Endpoint, AccountError> {
    let refused = || {
        AccountError(
            "the endpoint for S3 (AWS_ENDPOINT_URL) is not a URL, as in https://HOST:PORT"
                .to_owned(),
        )
    };
    let uri: Uri = url.parse().map_err(|_| refused())?;
    let is_encrypted = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(refused()),
    };
    let authority = uri.authority().map(|it| it.as_str()).unwrap_or_default();
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    let is_whole = matches!(uri.path(), "" | "/") && uri.query().is_none();
    if !has_host || !is_whole || authority.contains('@') {
        return Err(refused());
    }
    // The port that is not named in the header Host, either.
    let default = if is_encrypted { ":443" } else { ":80" };
    let authority = authority.strip_suffix(default).unwrap_or(authority).to_owned();
    Ok(Endpoint { is_encrypted, authority })
}

/// A profile of the AWS command line.
struct Profile {
    /// Whether the user has named it.
    is_named: bool,
    values: Vec<(String, String)>,
}

impl Profile {
    fn read(set: Variables<'_>) -> Result<Self, AccountError> {
        let named = set("AWS_PROFILE");
        let name = named.as_deref().unwrap_or("default");
        let home = set("HOME").map(PathBuf::from);
        let path = |variable: &str, file: &str| {
            let beside = home.as_ref().map(|home| home.join(".aws").join(file));
            set(variable).map(PathBuf::from).or(beside)
        };
        let credentials = contents(path("AWS_SHARED_CREDENTIALS_FILE", "credentials"))?;
        let config = contents(path("AWS_CONFIG_FILE", "config"))?;
        let section = if name == "default" { name.to_owned() } else { format!("profile {name}") };
        let (first, second) = (values(&credentials, name), values(&config, &section));
        if named.is_some() && first.is_none() && second.is_none() {
            return Err(AccountError(format!("there is no AWS profile {name:?}")));
        }
        let values = first.into_iter().chain(second).flatten().collect();
        Ok(Self { is_named: named.is_some(), values })
    }

    fn get(&self, name: &str) -> Option<String> {
        let value = self.values.iter().find(|(it, value)| it == name && !value.is_empty());
        value.map(|(_, value)| value.clone())
    }
}

/// Reads a file; it is empty without one.
fn contents(path: Option<PathBuf>) -> Result<String, AccountError> {
    let Some(path) = path else { return Ok(String::new()) };
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)) {
        Ok(_) => Ok(text),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(String::new())
        }
        Err(error) => Err(AccountError(format!("{} cannot be read: {error}", path.display()))),
    }
}

/// Returns the values of a section; `None` without such a section. Lines that are indented belong to the value
/// before them, and are left out.
fn values(text: &str, section: &str) -> Option<Vec<(String, String)>> {
    let (mut is_inside, mut found) = (false, None);
    for line in text.lines() {
        if let Some(name) = line.trim_end().strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            is_inside = name.split_whitespace().eq(section.split_whitespace());
            if is_inside {
                found.get_or_insert_with(Vec::new);
            }
        } else if let (true, Some((name, value))) = (is_inside, line.split_once('='))
            && !line.starts_with(['#', ';', ' ', '\t'])
        {
            let pair = (name.trim().to_owned(), value.trim().to_owned());
            found.get_or_insert_with(Vec::new).push(pair);
        }
    }
    found
}

#[cfg(test)]
mod test {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Account, AccountError> {
        let value = |name: &str| {
            let found = variables.iter().find(|(it, _)| *it == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Account::read(&value)
    }

    /// A directory with both files, removed when dropped.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str, credentials: &str, config: &str) -> Self {
            let name = format!("storagetm-account-{name}-{}", std::process::id());
            let home = std::env::temp_dir().join(name);
            std::fs::create_dir_all(home.join(".aws")).unwrap();
            std::fs::write(home.join(".aws/credentials"), credentials).unwrap();
            std::fs::write(home.join(".aws/config"), config).unwrap();
            Self(home)
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn environment_names_server_and_credentials() {
        let account = read(&[
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "s3cret"),
            ("AWS_SESSION_TOKEN", "t0ken"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("AWS_ENDPOINT_URL", "https://other.example"),
            ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:80/"),
            ("AWS_S3_FORCE_PATH_STYLE", "false"),
        ]);
        let account = account.unwrap();
        let endpoint = Endpoint { is_encrypted: false, authority: "127.0.0.1".to_owned() };
        assert_eq!(account.endpoint, Some(endpoint));
        assert_eq!((account.region.as_str(), account.path_style), ("eu-west-1", Some(false)));
        assert_eq!(account.key.as_ref().unwrap().token.as_deref(), Some("t0ken"));
        let shown = format!("{account:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("t0ken"), "{shown}");
        assert_eq!(read(&[]).unwrap(), Account::default());
    }

    #[test]
    fn profiles_are_read_from_both_files() {
        let files = Files::new(
            "profiles",
            "# c\n[default]\naws_access_key_id = A\naws_secret_access_key=B\n[lab]\naws_access_key_id=C\n\
             aws_secret_access_key=D==\n",
            "[default]\nregion = eu-west-2\n[profile lab]\nregion=eu-west-3\ns3 =\n  endpoint_url = http://no\n\
             endpoint_url = https://lab.example:9000\n[profile sso]\nsso_session = x\n",
        );
        let home = files.0.to_str().unwrap();
        let account = read(&[("HOME", home)]).unwrap();
        assert_eq!(account.region, "eu-west-2");
        assert_eq!(account.key.unwrap().secret, "B");
        let account = read(&[("HOME", home), ("AWS_PROFILE", "lab")]).unwrap();
        assert_eq!(account.endpoint.unwrap().authority, "lab.example:9000");
        assert_eq!((account.region.as_str(), &*account.key.unwrap().secret), ("eu-west-3", "D=="));
        let error = read(&[("HOME", home), ("AWS_PROFILE", "sso")]).unwrap_err();
        assert!(error.to_string().contains("export-credentials"), "{error}");
        let error = read(&[("HOME", home), ("AWS_PROFILE", "none")]).unwrap_err();
        assert!(error.to_string().contains("no AWS profile"), "{error}");
    }

    #[test]
    fn contradictions_and_malformed_values_are_refused() {
        for variables in [
            &[("AWS_ACCESS_KEY_ID", "a")][..],
            &[("AWS_SECRET_ACCESS_KEY", "a")],
            &[("AWS_ACCESS_KEY_ID", "a\nb"), ("AWS_SECRET_ACCESS_KEY", "c")],
            &[("AWS_REGION", "a/b")],
            &[("AWS_ENDPOINT_URL", "ftp://a")],
            &[("AWS_ENDPOINT_URL", "https://u:p@a")],
            &[("AWS_ENDPOINT_URL", "https://a/b")],
            &[("AWS_S3_FORCE_PATH_STYLE", "perhaps")],
            &[("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")],
        ] {
            assert!(read(variables).is_err(), "{variables:?}");
        }
    }
}
