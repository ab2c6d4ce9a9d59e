//! Where settings come from: the environment and the TOML file, as texts with their origins, and what was wrong there.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::keys::{self, About, JANEBOT_CONFIG, Key};

/// A settings file is a page of text; anything larger is some other file.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Blotting out shorter ones would make errors unreadable and hide nothing.
const SHORTEST_SECRET: usize = 4;

/// Where a setting was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Environment,
    File(PathBuf),
    /// `--config`.
    CommandLine,
    /// Nowhere: it is missing.
    Missing,
}

/// One wrong setting. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub key: String,
    pub origin: Origin,
    pub problem: String,
    /// A line with a right value, where there is one.
    pub example: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        match &self.origin {
            Origin::Environment => write!(f, " (environment)")?,
            Origin::File(path) => write!(f, " ({})", path.display())?,
            Origin::CommandLine => write!(f, " (command line)")?,
            Origin::Missing => write!(f, " (not set)")?,
        }
        write!(f, ": {}", self.problem)?;
        self.example.as_ref().map_or(Ok(()), |example| write!(f, "; for example {example}"))
    }
}

/// All that is wrong with the settings, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "one setting is wrong:")?,
            count => write!(f, "{count} settings are wrong:")?,
        }
        self.0.iter().try_for_each(|error| write!(f, "\n- {error}"))
    }
}

/// A setting's text. Has no `Debug`, since it may be a key.
struct Setting {
    text: String,
    origin: Origin,
}

/// Settings by name, and what has been found wrong with them so far.
pub(super) struct Source {
    settings: BTreeMap<&'static str, Setting>,
    errors: Vec<ConfigError>,
}

impl Source {
    /// Reads both sources; a text of nothing but white space counts as unset.
    pub fn read(env: &BTreeMap<String, String>, file: Option<&Path>) -> Self {
        let mut source = Self { settings: BTreeMap::new(), errors: Vec::new() };
        for about in keys::ALL {
            if let Some(text) = env.get(about.name) {
                source.set(about, text, Origin::Environment);
            }
        }
        let named = source.get(&JANEBOT_CONFIG);
        match (file, named) {
            (Some(path), _) => source.read_file(path, "--config", Origin::CommandLine),
            (None, Some(path)) => source.read_file(&path, JANEBOT_CONFIG.about.name, Origin::Environment),
            (None, None) => {}
        }
        source
    }

    fn set(&mut self, about: &'static About, text: &str, origin: Origin) {
        let text = text.trim();
        if !text.is_empty() {
            self.settings.entry(about.name).or_insert_with(|| Setting { text: text.to_owned(), origin });
        }
    }

    /// `key` and `named_in` say who named the file.
    fn read_file(&mut self, path: &Path, key: &str, named_in: Origin) {
        let mut wrong = |problem| {
            self.errors.push(ConfigError { key: key.into(), origin: named_in.clone(), problem, example: None });
        };
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
        if let Err(error) = read {
            return wrong(format!("the file {} can't be read: {error}", path.display()));
        }
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return wrong(format!("the file {} is larger than {MAX_FILE_BYTES} bytes", path.display()));
        }
        let Ok(text) = String::from_utf8(bytes) else {
            return wrong(format!("the file {} is not UTF-8 text", path.display()));
        };
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                // The parser's own words quote the line, which may hold a key.
                let before = &text[..error.span().map_or(0, |span| text.floor_char_boundary(span.start))];
                let line = before.matches('\n').count() + 1;
                let hint = "a text needs quote marks, a list square brackets, and a key may stand there once only";
                return wrong(format!("the file {} is not valid TOML in line {line}: {hint}", path.display()));
            }
        };
        for (name, value) in &table {
            self.read_entry(path, name, value);
        }
    }

    fn read_entry(&mut self, path: &Path, name: &str, value: &toml::Value) {
        let origin = Origin::File(path.to_owned());
        let about =
            keys::ALL.into_iter().find(|about| file_name(about) == name && about.name != JANEBOT_CONFIG.about.name);
        let Some(about) = about else {
            let problem = match nearest(name) {
                Some(known) => format!("there is no such setting: is `{known}` meant?"),
                None => "there is no such setting".into(),
            };
            self.errors.push(ConfigError { key: shorten(name), origin, problem, example: None });
            return;
        };
        match text_of(value, about.list) {
            Ok(text) => self.set(about, &text, origin),
            Err(problem) => self.errors.push(wrong_value(about, origin, problem)),
        }
    }

    /// The value of `key`: what is set, or its default. `None` when there is neither, and when the text is wrong.
    pub fn get<T>(&mut self, key: &Key<T>) -> Option<T> {
        let Some(setting) = self.settings.get(key.about.name) else {
            return match key.about.default {
                keys::Unset::Value(text) => (key.parse)(text).ok(),
                keys::Unset::Derived(_) | keys::Unset::Nothing => None,
            };
        };
        (key.parse)(&setting.text).map_err(|problem| self.complain(&key.about, problem)).ok()
    }

    /// Every secret that is set, with its setting's name.
    pub fn secrets(&self) -> Vec<(&'static str, SecretString)> {
        let secrets = keys::ALL.into_iter().filter(|about| about.secret);
        secrets.filter_map(|about| Some((about.name, self.settings.get(about.name)?.text.as_str().into()))).collect()
    }

    /// Whether it is set, rightly or wrongly.
    pub fn is_set(&self, about: &About) -> bool {
        self.settings.contains_key(about.name)
    }

    /// Adds an error about a setting where it was set.
    pub fn complain(&mut self, about: &About, problem: String) {
        self.complain_for(about, problem, about);
    }

    /// Adds an error about a setting whose remedy is to set another one.
    pub fn complain_for(&mut self, about: &About, problem: String, remedy: &About) {
        let origin = self.settings.get(about.name).map_or(Origin::Missing, |setting| setting.origin.clone());
        let example = wrong_value(remedy, origin.clone(), String::new()).example;
        self.errors.push(ConfigError { example, ..wrong_value(about, origin, problem) });
    }

    /// All errors, or `None` when nothing is wrong. A secret that was set for another key by mistake is blotted out.
    pub fn into_errors(self) -> Option<ConfigErrors> {
        let secrets = keys::ALL.into_iter().filter(|about| about.secret);
        let texts = secrets.filter_map(|about| self.settings.get(about.name)).map(|setting| setting.text.as_str());
        let secrets: Vec<&str> = texts.filter(|text| text.len() >= SHORTEST_SECRET).collect();
        let blot = |text: String| {
            secrets.iter().fold(text, |text, secret| {
                text.replace(secret, "[REDACTED]").replace(&secret.escape_debug().to_string(), "[REDACTED]")
            })
        };
        let errors: Vec<_> = self
            .errors
            .into_iter()
            .map(|error| ConfigError { problem: blot(error.problem), key: blot(error.key), ..error })
            .collect();
        (!errors.is_empty()).then_some(ConfigErrors(errors))
    }
}

fn file_name(about: &About) -> String {
    about.name.to_ascii_lowercase()
}

fn wrong_value(about: &About, origin: Origin, problem: String) -> ConfigError {
    let (key, example) = match &origin {
        Origin::File(_) => (file_name(about), format!("{} = \"{}\"", file_name(about), about.example)),
        Origin::Environment | Origin::CommandLine | Origin::Missing => {
            (about.name.to_owned(), format!("{}={}", about.name, about.example))
        }
    };
    ConfigError { key, origin, problem, example: Some(example) }
}

/// A TOML value as the text that the environment would have had.
fn text_of(value: &toml::Value, list: bool) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        toml::Value::Array(items) if list => {
            let items: Result<Vec<_>, _> = items.iter().map(|item| text_of(item, false)).collect();
            let items = items?;
            match items.iter().position(|item| item.contains(',')) {
                Some(at) => Err(format!("item {} has a comma in it", at + 1)),
                None => Ok(items.join(",")),
            }
        }
        toml::Value::Array(_) => Err("a list is too much: it takes one value".into()),
        toml::Value::Table(_) => Err("a table is too much: settings stand side by side, not in sections".into()),
        toml::Value::Datetime(_) => Err("it is a date".into()),
    }
}

/// The known key that is likely meant by `name`.
fn nearest(name: &str) -> Option<String> {
    /// A third of the letters wrong is another word.
    const LETTERS_PER_SLIP: usize = 3;
    let wanted = name.to_ascii_lowercase().replace('-', "_");
    if wanted.len() > 40 {
        return None;
    }
    let known = keys::ALL.into_iter().filter(|about| about.name != JANEBOT_CONFIG.about.name).map(file_name);
    let (slips, known) = known.map(|known| (distance(&wanted, &known), known)).min()?;
    (slips <= known.len().div_ceil(LETTERS_PER_SLIP)).then_some(known)
}

/// Letters to insert, drop or replace to make one text of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for column in 0..b.len() {
            let replaced = diagonal + usize::from(letter != b[column]);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

/// A key from a file, short enough for a line.
fn shorten(name: &str) -> String {
    name.chars().take(40).flat_map(char::escape_debug).collect()
}
