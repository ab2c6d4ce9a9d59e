//! One line of an agent's output as a typed record. Every field may be absent or of another kind than expected, and is
//! then as if it were absent: a CLI that changes one field must not make the rest of the line unreadable.
//!
//! Nothing that is not shown is kept: tool results, images and tool inputs are read past, so that a line of many MiB
//! costs little more than its own bytes.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::agent::text::one_line;

/// Content blocks of one message that are looked at. Messages have a handful; a flood is not worth its memory.
const MAX_BLOCKS: usize = 256;
/// Characters of a tool call's summary.
const MAX_SUMMARY_CHARS: usize = 120;

/// All record types in one: what a type does not have is `None`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Record {
    #[serde(rename = "type", deserialize_with = "lenient")]
    pub kind: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub subtype: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub session_id: Option<String>,
    /// `init`: the model that the agent means to use.
    #[serde(deserialize_with = "lenient")]
    pub model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub message: Option<Message>,
    /// Set on the messages of a sub-agent.
    #[serde(deserialize_with = "lenient")]
    pub parent_tool_use_id: Option<String>,

    #[serde(deserialize_with = "lenient")]
    pub is_error: Option<bool>,
    #[serde(deserialize_with = "lenient")]
    pub result: Option<String>,
    /// amp's text of a failure.
    #[serde(deserialize_with = "lenient")]
    pub error: Option<String>,
    /// claude's texts of a failure.
    #[serde(deserialize_with = "lenient")]
    pub errors: Option<Vec<Soft<Option<String>>>>,
    /// claude: the HTTP status with which the model's server refused.
    #[serde(deserialize_with = "lenient")]
    pub api_error_status: Option<f64>,
    #[serde(deserialize_with = "lenient")]
    pub terminal_reason: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub num_turns: Option<f64>,
    #[serde(deserialize_with = "lenient")]
    pub total_cost_usd: Option<f64>,
    #[serde(deserialize_with = "lenient")]
    pub usage: Option<Tokens>,

    /// `api_retry`: which try this is, of how many, and the HTTP status that made it necessary.
    #[serde(deserialize_with = "lenient")]
    pub attempt: Option<f64>,
    #[serde(deserialize_with = "lenient")]
    pub max_retries: Option<f64>,
    #[serde(deserialize_with = "lenient")]
    pub error_status: Option<f64>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Message {
    #[serde(deserialize_with = "lenient")]
    pub id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub usage: Option<Tokens>,
    #[serde(deserialize_with = "lenient")]
    pub content: Option<Content>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Block {
    #[serde(rename = "type", deserialize_with = "lenient")]
    pub kind: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub text: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub name: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub input: Option<Summary>,
    #[serde(deserialize_with = "lenient")]
    pub tool_use_id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub is_error: Option<bool>,
}

/// Token counts. `max_tokens`, which amp adds, is the size of the context and no use at all: it is not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(default)]
pub struct Tokens {
    #[serde(deserialize_with = "count")]
    pub input_tokens: u64,
    #[serde(deserialize_with = "count")]
    pub cache_creation_input_tokens: u64,
    #[serde(deserialize_with = "count")]
    pub cache_read_input_tokens: u64,
    #[serde(deserialize_with = "count")]
    pub output_tokens: u64,
}

impl Record {
    /// The record in `line`; `None` when that is not a JSON object with a `type`.
    pub fn parse(line: &[u8]) -> Option<Self> {
        // Borrowed unless the agent wrote something that is not UTF-8.
        let line = String::from_utf8_lossy(line);
        serde_json::from_str(&line).ok().filter(|record: &Self| record.kind.is_some())
    }
}

/// The blocks of a message; a bare string counts as one block of text.
#[derive(Debug, Default)]
pub struct Content(pub Vec<Block>);

/// What a tool is called with, on one short line: its command, path, pattern or whatever says most.
#[derive(Debug, Default, PartialEq)]
pub struct Summary(pub String);

/// Fields of a tool's input, the telling ones first. One that is not listed is used when none of these is there.
const TELLING: [&str; 14] = [
    "command",
    "cmd",
    "file_path",
    "path",
    "filePath",
    "notebook_path",
    "pattern",
    "filePattern",
    "query",
    "url",
    "description",
    "prompt",
    "skill",
    "name",
];

/// A type that can be read from any JSON value: what does not fit is its default.
trait Lenient<'de>: Default {
    fn text(_: &str) -> Self {
        Self::default()
    }
    fn flag(_: bool) -> Self {
        Self::default()
    }
    fn number(_: f64) -> Self {
        Self::default()
    }
    fn list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }
    fn object<A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }
}

impl Lenient<'_> for Option<String> {
    fn text(text: &str) -> Self {
        Some(text.to_owned())
    }
}

impl Lenient<'_> for Option<bool> {
    fn flag(flag: bool) -> Self {
        Some(flag)
    }
}

impl Lenient<'_> for Option<f64> {
    fn number(number: f64) -> Self {
        Some(number)
    }
}

macro_rules! lenient_objects {
    ($($name:ty),*) => {$(
        impl<'de> Lenient<'de> for Option<$name> {
            fn object<A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
                <$name>::deserialize(MapAccessDeserializer::new(object)).map(Some)
            }
        }
    )*};
}
lenient_objects!(Message, Tokens, Block);

impl<'de, T: Default + Deserialize<'de>> Lenient<'de> for Option<Vec<T>> {
    fn list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut items = Vec::new();
        while items.len() < MAX_BLOCKS {
            let Some(item) = list.next_element()? else { return Ok(Some(items)) };
            items.push(item);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some(items))
    }
}

impl<'de> Lenient<'de> for Option<Content> {
    fn text(text: &str) -> Self {
        Some(Content(vec![Block { kind: Some("text".into()), text: Some(text.to_owned()), ..Block::default() }]))
    }
    fn list<A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        let blocks = <Option<Vec<Soft<Option<Block>>>> as Lenient>::list(list)?;
        Ok(blocks.map(|blocks| Content(blocks.into_iter().filter_map(|block| block.0).collect())))
    }
}

/// The most telling field wins; a command may be a list of words.
impl<'de> Lenient<'de> for Option<Summary> {
    fn text(text: &str) -> Self {
        Some(Summary(one_line(text, MAX_SUMMARY_CHARS)))
    }
    fn object<A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        let mut best: Option<(usize, Summary)> = None;
        while let Some(key) = object.next_key::<String>()? {
            let value: Soft<Words> = object.next_value()?;
            let rank = TELLING.iter().position(|known| *known == key).unwrap_or(TELLING.len());
            if !value.0.0.is_empty() && best.as_ref().is_none_or(|(known, _)| rank < *known) {
                best = Some((rank, Summary(value.0.0)));
            }
        }
        Ok(best.map(|(_, summary)| summary))
    }
}

/// A string or a list of strings, on one short line.
#[derive(Default)]
struct Words(String);

impl<'de> Lenient<'de> for Words {
    fn text(text: &str) -> Self {
        Self(one_line(text, MAX_SUMMARY_CHARS))
    }
    fn list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut line = String::new();
        while let Some(Soft::<Option<String>>(word)) = list.next_element()? {
            if let Some(word) = word
                && line.len() < 4 * MAX_SUMMARY_CHARS
            {
                line.push_str(&one_line(&word, MAX_SUMMARY_CHARS));
                line.push(' ');
            }
        }
        Ok(Self(one_line(&line, MAX_SUMMARY_CHARS)))
    }
}

/// A value read leniently where no field attribute can say so.
#[derive(Debug, Default)]
pub struct Soft<T>(pub T);

impl<'de, T: Lenient<'de>> Deserialize<'de> for Soft<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lenient(deserializer).map(Self)
    }
}

fn lenient<'de, D: Deserializer<'de>, T: Lenient<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(Any(PhantomData))
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    // `as` saturates, and takes what is no number for 0.
    lenient::<D, Option<f64>>(deserializer).map(|number| number.unwrap_or(0.0) as u64)
}

struct Any<T>(PhantomData<T>);

impl<'de, T: Lenient<'de>> Visitor<'de> for Any<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok(T::text(text))
    }
    fn visit_bool<E>(self, flag: bool) -> Result<T, E> {
        Ok(T::flag(flag))
    }
    fn visit_u64<E>(self, number: u64) -> Result<T, E> {
        Ok(T::number(number as f64))
    }
    fn visit_i64<E>(self, number: i64) -> Result<T, E> {
        Ok(T::number(number as f64))
    }
    fn visit_f64<E>(self, number: f64) -> Result<T, E> {
        Ok(T::number(number))
    }
    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(T::default())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::list(list)
    }
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T, A::Error> {
        T::object(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(input: &str) -> String {
        let line = format!(r#"{{"type":"assistant","message":{{"content":[{{"type":"tool_use","input":{input}}}]}}}}"#);
        let message = Record::parse(line.as_bytes()).unwrap().message.unwrap();
        message.content.unwrap().0.remove(0).input.unwrap_or_default().0
    }

    #[test]
    fn a_tools_input_is_summed_up_by_what_says_most() {
        assert_eq!(summary(r#"{"description":"run","command":"echo a;\n echo b"}"#), "echo a; echo b");
        assert_eq!(summary(r#"{"command":["bash","-lc","ls  -l"]}"#), "bash -lc ls -l");
        assert_eq!(summary(r#"{"content":"long text","file_path":"/a.rs"}"#), "/a.rs");
        assert_eq!(summary(r#"{"timeout":5,"unheard_of":"this one"}"#), "this one");
        assert_eq!(summary(r#"{"command":{"a":"b"},"path":null}"#), "");
        assert_eq!(summary(r#""just text""#), "just text");
        assert_eq!(summary("[1,2]"), "");
        assert_eq!(summary(&format!(r#"{{"command":"{}"}}"#, "x".repeat(5000))).chars().count(), MAX_SUMMARY_CHARS);
    }

    #[test]
    fn a_field_of_another_kind_is_as_if_it_were_absent() {
        let line = br#"{"type":"result","subtype":7,"is_error":"no","num_turns":"x","usage":[1],"errors":"e","message":5,"result":{"a":[1]},"session_id":["s"],"model":false,"error":null}"#;
        let record = Record::parse(line).unwrap();
        assert!(
            record.subtype.is_none()
                && record.is_error.is_none()
                && record.num_turns.is_none()
                && record.usage.is_none()
        );
        assert!(
            record.errors.is_none()
                && record.message.is_none()
                && record.result.is_none()
                && record.session_id.is_none()
        );
    }

    #[test]
    fn what_is_no_record_is_none() {
        for line in ["", "  ", "null", "[]", "{}", "hello", r#"{"type":3}"#, r#"{"type":"result""#, "\u{feff}"] {
            assert!(Record::parse(line.as_bytes()).is_none(), "{line}");
        }
    }

    #[test]
    fn a_flood_of_blocks_is_read_past() {
        let blocks = vec![r#"{"type":"text","text":"a"}"#; 10_000].join(",");
        let record =
            Record::parse(format!(r#"{{"type":"assistant","message":{{"content":[{blocks}]}}}}"#).as_bytes()).unwrap();
        assert_eq!(record.message.unwrap().content.unwrap().0.len(), MAX_BLOCKS);
    }

    #[test]
    fn counts_of_strange_kinds_are_zero_or_saturated() {
        let line = br#"{"type":"result","usage":{"input_tokens":-5,"output_tokens":1e40,"cache_read_input_tokens":2.9,"max_tokens":9}}"#;
        let usage = Record::parse(line).unwrap().usage.unwrap();
        assert_eq!(
            usage,
            Tokens {
                input_tokens: 0,
                cache_creation_input_tokens: 0,
                cache_read_input_tokens: 2,
                output_tokens: u64::MAX
            }
        );
    }
}
