//! What the messages of an exec connection mean. Pure, and total: any bytes give some [`Frame`].
//!
//! Text and binary are told apart by the WebSocket's own opcode, never by looking at the first byte.

use bytes::{Buf, Bytes};
use serde::{Deserialize, Deserializer};

/// First bytes of the binary messages.
pub(super) const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
pub(super) const EOF: u8 = 4;

/// Session ids are process numbers or UUIDs.
const SESSION_ID_MAX: usize = 128;

/// A message from the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Stdout(Bytes),
    Stderr(Bytes),
    Exit(u8),
    Session(String),
    /// It can't be understood, and going on would be guessing.
    Invalid(String),
    /// Keep-alives, port news, types that are newer than this code.
    Other,
}

#[derive(Deserialize)]
struct Text {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "maybe_text_or_number")]
    session_id: Option<String>,
    exit_code: Option<i64>,
}

/// Reads one message.
pub(super) fn parse(binary: bool, mut payload: Bytes) -> Frame {
    if !binary {
        return parse_text(&payload);
    }
    if payload.is_empty() {
        return Frame::Other;
    }
    match (payload.get_u8(), payload.len()) {
        (STDOUT | STDERR, 0) => Frame::Other,
        (STDOUT, _) => Frame::Stdout(payload),
        (STDERR, _) => Frame::Stderr(payload),
        (EXIT, 1) => Frame::Exit(payload[0]),
        // The official clients take an exit without a status for success. Here it says nothing; the text message that
        // comes with it does, or the outcome is unknown.
        (EXIT, 0) => Frame::Other,
        (EXIT, length) => Frame::Invalid(format!("an exit status of {length} bytes")),
        _ => Frame::Other,
    }
}

fn parse_text(payload: &[u8]) -> Frame {
    let Ok(text) = serde_json::from_slice::<Text>(payload) else { return Frame::Other };
    match (text.kind.as_str(), text.session_id, text.exit_code) {
        ("session_info", Some(id), _) if (1..=SESSION_ID_MAX).contains(&id.len()) => Frame::Session(id),
        ("exit", _, Some(code)) => match u8::try_from(code) {
            Ok(status) => Frame::Exit(status),
            Err(_) => Frame::Invalid(format!("an exit status of {code}")),
        },
        _ => Frame::Other,
    }
}

/// An id is a string; older servers send a number.
pub(in crate::sprites) fn text_or_number<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(u64),
    }
    Ok(match Id::deserialize(from)? {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    })
}

fn maybe_text_or_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Id(#[serde(deserialize_with = "text_or_number")] String);
    Ok(Option::<Id>::deserialize(from)?.map(|Id(id)| id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(json: &str) -> Frame {
        parse(false, Bytes::copy_from_slice(json.as_bytes()))
    }

    fn binary(bytes: &'static [u8]) -> Frame {
        parse(true, Bytes::from_static(bytes))
    }

    #[test]
    fn binary_messages_are_told_apart_by_their_first_byte() {
        assert_eq!(binary(b"\x01out"), Frame::Stdout("out".into()));
        assert_eq!(binary(b"\x02err"), Frame::Stderr("err".into()));
        assert_eq!(binary(b"\x03\x8f"), Frame::Exit(143));
        for nothing in
            [&b""[..], b"\x00x", b"\x01", b"\x02", b"\x03", b"\x04", b"\x05x", b"{\"type\":\"exit\",\"exit_code\":0}"]
        {
            assert_eq!(binary(nothing), Frame::Other, "{nothing:?}");
        }
        assert_eq!(binary(b"\x03\0\0\0\0"), Frame::Invalid("an exit status of 4 bytes".into()));
    }

    #[test]
    fn text_messages_are_told_apart_by_their_type() {
        assert_eq!(text(r#"{"type":"session_info","session_id":"28883","tty":false}"#), Frame::Session("28883".into()));
        assert_eq!(text(r#"{"type":"session_info","session_id":28883}"#), Frame::Session("28883".into()));
        assert_eq!(text(r#"{"type":"exit","exit_code":3,"code":3}"#), Frame::Exit(3));
        assert_eq!(text(r#"{"type":"exit","exit_code":-1}"#), Frame::Invalid("an exit status of -1".into()));
        let nothing = [
            "",
            "exit",
            "{}",
            r#"{"type":"exit"}"#,
            r#"{"type":"keepalive"}"#,
            r#"{"type":"session_info"}"#,
            r#"{"type":"session_info","session_id":""}"#,
            r#"{"type":"port_opened","port":1,"pid":2}"#,
            "\x01out",
            r#"{"type":"exit","exit_code":"0"}"#,
        ];
        for json in nothing {
            assert_eq!(text(json), Frame::Other, "{json:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_frame_and_output_is_kept_as_it_is(is_binary: bool, bytes: Vec<u8>) {
            let frame = parse(is_binary, Bytes::from(bytes.clone()));
            match frame {
                Frame::Stdout(kept) | Frame::Stderr(kept) => prop_assert_eq!(&kept[..], &bytes[1..]),
                Frame::Exit(status) => prop_assert_eq!(&bytes, &[EXIT, status]),
                Frame::Session(_) => prop_assert!(!is_binary),
                Frame::Invalid(_) | Frame::Other => {}
            }
        }
    }
}
