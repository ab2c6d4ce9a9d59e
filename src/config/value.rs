//! One text, one value: how each form of setting is read. Pure, except that paths of programs and folders are looked at.
//!
//! An error is what is wrong, as the second half of a sentence; [`shown`] decides whether the text may be quoted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use secrecy::SecretString;

use super::{AgentKind, Preset};

/// The value, or what is wrong with the text.
type Parsed<T> = Result<T, String>;

/// Longest text quoted in an error.
const MAX_SHOWN: usize = 60;

/// The journal's file, from `sqlite://PATH`.
pub(super) struct DatabaseUrl(pub PathBuf);

/// `text` in quotes when it is short and can't hold a key; what kind of text it is otherwise.
fn shown(text: &str) -> String {
    let looks_secret = text.contains('@') || ["sk-", "sgamp", "xox"].iter().any(|start| text.starts_with(start));
    match text.chars().count() {
        _ if looks_secret => "the value (not shown: it may hold a key)".into(),
        0..=MAX_SHOWN => format!("`{}`", text.escape_debug()),
        count => format!("a text of {count} characters"),
    }
}

pub(super) fn flag(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("{} is neither true nor false", shown(text))),
    }
}

pub(super) fn count<T: TryFrom<u64>>(text: &str, min: u64, max: u64) -> Parsed<T> {
    let number: u64 = match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse().unwrap_or(u64::MAX),
        false => return Err(format!("{} is not a whole number", shown(text))),
    };
    let number = Some(number).filter(|number| (min..=max).contains(number)).and_then(|number| number.try_into().ok());
    number.ok_or_else(|| format!("{} is not between {min} and {max}", shown(text)))
}

pub(super) fn span(text: &str, min: Duration, max: Duration) -> Parsed<Duration> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{} has no unit: write s, m or h behind it", shown(text)));
    }
    let span = humantime::parse_duration(text).map_err(|_| format!("{} is not a time", shown(text)))?;
    if span < min || span > max {
        let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
        return Err(format!("{} is not between {min} and {max}", shown(text)));
    }
    Ok(span)
}

pub(super) fn size(text: &str, min: u64, max: u64) -> Parsed<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if digits > 0 && unit.is_empty() {
        return Err(format!("{} has no unit: write MiB or GiB behind it", shown(text)));
    }
    let factor = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor);
    let (Some(factor), true) = (factor, digits > 0) else {
        return Err(format!("{} is not a size", shown(text)));
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes
        .filter(|bytes| (min..=max).contains(bytes))
        .ok_or_else(|| format!("{} is too small or too large", shown(text)))
}

/// A key or token. Nothing of it is ever quoted.
pub(super) fn secret(text: &str) -> Parsed<SecretString> {
    const QUOTES: [char; 3] = ['"', '\'', '`'];
    const PLACEHOLDERS: [&str; 11] = [
        "changeme",
        "change-me",
        "change_me",
        "secret",
        "token",
        "key",
        "apikey",
        "placeholder",
        "none",
        "null",
        "todo",
    ];
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("there is white space inside: part of a command or a second value may have got into it".into());
    }
    if text.starts_with(QUOTES) || text.ends_with(QUOTES) {
        return Err("the quote marks around it are part of the value: leave them out".into());
    }
    let word = text.to_ascii_lowercase();
    let mut bytes = word.bytes();
    let first = bytes.next();
    let placeholder = PLACEHOLDERS.contains(&word.as_str())
        || ["<", "$", "{", "your-", "your_", "my-api", "my_api"].iter().any(|start| word.starts_with(start))
        || ["...", "your-api", "your_api", "your-key", "your_key"].iter().any(|part| word.contains(part))
        || (word.len() > 1 && bytes.all(|byte| Some(byte) == first));
    if placeholder {
        return Err("it is a placeholder, not a key".into());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it has characters that can't be sent in a header".into());
    }
    Ok(text.into())
}

pub(super) fn agent(text: &str) -> Parsed<AgentKind> {
    let found = AgentKind::ALL.into_iter().find(|agent| agent.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("{} is no agent: there are amp, claude and shell", shown(text)))
}

/// A word that is handed on as an argument: never one that could be taken for a flag.
pub(super) fn word(text: &str) -> Parsed<String> {
    let fits = text.len() <= 100
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/[]".contains(c));
    if fits { Ok(text.into()) } else { Err(format!("{} is not one plain word", shown(text))) }
}

pub(super) fn version(text: &str) -> Parsed<String> {
    let fits = text.len() <= 100
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.split('.').count() >= 3
        && text.split('.').all(|part| !part.is_empty())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-.+".contains(c));
    if fits {
        Ok(text.into())
    } else {
        Err(format!("{} is not one exact version, as a range or a tag is not", shown(text)))
    }
}

pub(super) fn prefix(text: &str, max: usize) -> Parsed<String> {
    let fits = text.len() <= max
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let rule =
        "it starts with a lower-case letter, goes on with those, digits and hyphens, and does not end with a hyphen";
    if fits { Ok(text.into()) } else { Err(format!("{} does not do: {rule}; at most {max} characters", shown(text))) }
}

/// The parts of a comma-separated list, trimmed, without empty ones.
fn list(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split(',').map(str::trim).enumerate().filter(|(_, part)| !part.is_empty()).map(|(at, part)| (at + 1, part))
}

pub(super) fn ids(text: &str) -> Parsed<BTreeSet<String>> {
    let id = |(at, part): (usize, &str)| {
        let fits = part.len() <= 64 && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
        if fits { Ok(part.to_owned()) } else { Err(format!("item {at} is not an id (names and @names do not do)")) }
    };
    list(text).map(id).collect()
}

/// One id.
pub(super) fn id(text: &str) -> Parsed<String> {
    let mut ids = ids(text)?;
    match (ids.pop_first(), ids.is_empty()) {
        (Some(id), true) => Ok(id),
        (_, _) => Err(format!("{} is not one id", shown(text))),
    }
}

/// `ID=NUMBER` items.
pub(super) fn weights(text: &str, max: u64) -> Parsed<BTreeMap<String, usize>> {
    let weight = |(at, part): (usize, &str)| {
        let (id, number) = part.split_once('=').ok_or_else(|| format!("item {at} is not of the form id=number"))?;
        let id = ids(id)?.pop_first().ok_or_else(|| format!("item {at} has no id before its `=`"))?;
        Ok((id, count(number.trim(), 1, max).map_err(|problem| format!("item {at}: {problem}"))?))
    };
    list(text).map(weight).collect()
}

pub(super) fn hosts(text: &str) -> Parsed<BTreeSet<String>> {
    let host = |(at, part): (usize, &str)| {
        let name = part.to_ascii_lowercase();
        let plain = name.strip_prefix("*.").unwrap_or(&name);
        let wrong = if plain.contains('*') {
            "allows too much: `*.` may only stand before a whole name"
        } else if plain.contains("://") || plain.contains('/') || plain.contains(':') {
            "has more than a name: leave out scheme, port and path"
        } else if plain.parse::<IpAddr>().is_ok() {
            "is an address; sprites reach names only"
        } else if !is_host_name(plain) {
            "is not a host name"
        } else {
            return Ok(name);
        };
        Err(format!("item {at} {wrong}"))
    };
    list(text).map(host).collect()
}

pub(super) fn presets(text: &str) -> Parsed<BTreeSet<Preset>> {
    let names = Preset::ALL.map(Preset::name).join(", ");
    let preset = |(at, part): (usize, &str)| {
        Preset::named(part).ok_or_else(|| format!("item {at} is no list of hosts: there are {names}"))
    };
    list(text).map(preset).collect()
}

/// `ID=HOST` items; an id may stand there more than once.
pub(super) fn channel_hosts(text: &str) -> Parsed<BTreeMap<String, BTreeSet<String>>> {
    let mut channels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (at, part) in list(text) {
        let (id, host) = part.split_once('=').ok_or_else(|| format!("item {at} is not of the form id=host"))?;
        let id = ids(id)?.pop_first().ok_or_else(|| format!("item {at} has no id before its `=`"))?;
        let host = hosts(host).map_err(|problem| format!("item {at}: {problem}"))?;
        channels.entry(id).or_default().extend(host);
    }
    Ok(channels)
}

pub(super) fn tools(text: &str) -> Parsed<BTreeSet<String>> {
    let tool = |(at, part): (usize, &str)| {
        let fits = part.len() <= 128 && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-:*.".contains(c));
        if fits { Ok(part.to_owned()) } else { Err(format!("item {at} is not a tool's name")) }
    };
    list(text).map(tool).collect()
}

fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(label)
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    let path = Path::new(text);
    match path.is_absolute() {
        true => Ok(path.into()),
        false => Err(format!("{} is not an absolute path (`~` and variables are not replaced here)", shown(text))),
    }
}

pub(super) fn file(text: &str) -> Parsed<PathBuf> {
    let path = path(text)?;
    if path.is_file() { Ok(path) } else { Err(format!("{} is not a file on this machine", shown(text))) }
}

pub(super) fn folder(text: &str) -> Parsed<PathBuf> {
    let path = path(text)?;
    if path.is_dir() { Ok(path) } else { Err(format!("{} is not a folder on this machine", shown(text))) }
}

pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| format!("{} is not an address with a port, as in 127.0.0.1:0", shown(text)))
}

pub(super) fn loopback(text: &str) -> Parsed<SocketAddr> {
    let address = address(text)?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err(format!("{} is not a loopback address: whoever reaches the host can run programs", shown(text))),
    }
}

pub(super) fn database(text: &str) -> Parsed<DatabaseUrl> {
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        return Err("PostgreSQL comes later: today the journal is one SQLite file".into());
    }
    let path = text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:"));
    let path = path.ok_or("the URL does not begin with sqlite://")?;
    if path.contains(":memory:") {
        return Err("a journal in memory would forget every job".into());
    }
    if path.contains(['?', '#']) {
        return Err("options behind the path are not used".into());
    }
    match Path::new(path).is_absolute() && !path.ends_with('/') {
        true => Ok(DatabaseUrl(path.into())),
        false => Err("the path behind sqlite:// is not an absolute one".into()),
    }
}

/// An http or https URL, without a slash at its end.
pub(super) fn url(text: &str) -> Parsed<String> {
    let url = Url::parse(text).map_err(|_| format!("{} is not a URL", shown(text)))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(format!("{} does not begin with https:// or http:// and a host", shown(text)));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("there is a user name or password in it: they would end up in logs".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("there is a `?` or `#` in it: leave that out".into());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A URL of which only scheme, host and port are used.
pub(super) fn origin(text: &str) -> Parsed<String> {
    let origin = url(text)?;
    let has_path = Url::parse(&origin).is_ok_and(|url| url.path() != "/");
    if has_path { Err("there is a path in it: leave that out".into()) } else { Ok(origin) }
}

/// Where others reach this service, credentials in their requests.
pub(super) fn public_url(text: &str) -> Parsed<String> {
    let url = origin(text)?;
    match url.starts_with("http://") {
        true => Err("it is plain http: what sprites send could be read on the way".into()),
        false => Ok(url),
    }
}

/// The Sprites API. A token over plain http can be read by everybody on the way, so that is for this machine only.
pub(super) fn api_url(text: &str) -> Parsed<String> {
    let api = url(text)?;
    match api.starts_with("http://") && !is_loopback(&api) {
        true => Err("it is plain http to another machine: the token could be read on the way".into()),
        false => Ok(api),
    }
}

/// A WebSocket gateway, without a slash at its end. A token over plain ws can be read by everybody on the way.
pub(super) fn gateway_url(text: &str) -> Parsed<String> {
    let (secure, rest) = match (text.strip_prefix("wss://"), text.strip_prefix("ws://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err(format!("{} does not begin with wss:// or ws://", shown(text))),
    };
    // What may be in it is the same as in any URL.
    let checked = url(&format!("http://{rest}"))?;
    match secure || is_loopback(&checked) {
        true => Ok(checked.replacen("http", if secure { "wss" } else { "ws" }, 1)),
        false => Err("it is plain ws to another machine: the token could be read on the way".into()),
    }
}

/// Host and port of a plain HTTP server on this machine.
pub(super) fn loopback_name(text: &str) -> Parsed<String> {
    let url = url(&format!("http://{text}")).map_err(|_| format!("{} is not a host and a port", shown(text)))?;
    let name = url.trim_start_matches("http://");
    if name.contains('/') || name.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(format!("{} is not a host and a port, as in 127.0.0.1:9002", shown(text)));
    }
    match is_loopback(&url) {
        true => Ok(name.to_owned()),
        false => Err("it is another machine: the token could be read on the way".into()),
    }
}

/// Whether the URL leads to this machine.
pub(super) fn is_loopback(url: &str) -> bool {
    host(url).is_some_and(|(name, ip)| name == "localhost" || ip.is_some_and(|ip| ip.is_loopback()))
}

/// Whether the URL leads to this machine or its private network, as far as the text alone shows.
pub(super) fn is_private(url: &str) -> bool {
    let private = |ip| match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip == Ipv6Addr::UNSPECIFIED,
    };
    is_loopback(url) || host(url).and_then(|(_, ip)| ip).is_some_and(private)
}

/// The URL's host, and its address when it is written as one.
pub(super) fn host(url: &str) -> Option<(String, Option<IpAddr>)> {
    let name = Url::parse(url).ok()?.host_str()?.to_ascii_lowercase();
    let ip = name.trim_matches(['[', ']']).parse().ok();
    Some((name, ip))
}
