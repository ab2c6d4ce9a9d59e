//! Looks for the service's own secrets in what is about to leave it. Pure.
//!
//! [`Secrets`] knows each secret plain, in base64 at all three alignments, in hex, as escapes and as decimal codes, each
//! also reversed, and a piece of it as well as the whole. Text is compared without anything but ASCII letters and digits
//! and without case, so spaces, line ends, dashes, quotes and zero-width characters between them hide nothing; a text is
//! fed in pieces, and what is split over pieces is found. What is compressed or encrypted is not.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{Bytes, BytesMut};
use memchr::memmem;
use secrecy::{ExposeSecret, SecretString};

/// Letters and digits that a secret must have to be looked for: a shorter one would be found in innocent texts.
pub const SHORTEST: usize = 12;
/// A piece of a secret that is found by itself has at least so many letters and digits, where the secret has twice as
/// many; the start of a key, which tells its kind, is shorter.
const SHORTEST_PIECE: usize = 16;
/// And needs no more than this.
const LONGEST_PIECE: usize = 24;
/// Bytes that are compared at a time, to keep the memory for it small.
const STEP: usize = 64 * 1024;

/// Secrets to look for. Cheap to clone.
#[derive(Clone)]
pub struct Secrets(Arc<Needles>);

struct Needles {
    automaton: AhoCorasick,
    /// Of each pattern: whose it is and in what form.
    of: Vec<(&'static str, &'static str)>,
    longest: usize,
}

/// A secret that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its setting's name.
    pub secret: &'static str,
    /// How it was written, in words.
    pub form: &'static str,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.secret, self.form)
    }
}

impl Secrets {
    /// Gets ready to look for these, each with the name of its setting. Also gives the names of those that are too short.
    pub fn new(secrets: &[(&'static str, SecretString)]) -> (Self, Vec<&'static str>) {
        let (mut patterns, mut of, mut short) = (Vec::new(), Vec::new(), Vec::new());
        for (name, secret) in secrets {
            let secret = secret.expose_secret().trim();
            if letters(secret.as_bytes()).len() < SHORTEST {
                short.push(*name);
                continue;
            }
            for (form, text) in forms(secret.as_bytes()) {
                for piece in pieces(&text, letters(secret.as_bytes()).len()) {
                    patterns.push(piece.iter().rev().copied().collect::<Vec<u8>>());
                    of.push((*name, form));
                    patterns.push(piece.to_vec());
                    of.push((*name, form));
                }
            }
        }
        let longest = patterns.iter().map(Vec::len).max().unwrap_or(0);
        let automaton = AhoCorasickBuilder::new().ascii_case_insensitive(true).build(&patterns);
        // It fails only for more patterns than fit 32 bits.
        let automaton = automaton.unwrap_or_else(|error| unreachable!("a few thousand patterns fit: {error}"));
        (Self(Arc::new(Needles { automaton, of, longest })), short)
    }

    /// Looks for none.
    pub fn none() -> Self {
        Self::new(&[]).0
    }

    /// Begins to look through something.
    pub fn scan(&self) -> Scan {
        Scan { needles: self.0.clone(), tail: Vec::new(), decoded: None, escape: Escape::default() }
    }

    /// Looks through one text.
    pub fn find(&self, text: &[u8]) -> Option<Finding> {
        self.scan().feed(text)
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("patterns", &self.0.of.len()).finish()
    }
}

/// Looks through a text that comes in pieces.
pub struct Scan {
    needles: Arc<Needles>,
    /// Letters and digits before the next piece, as many as a pattern might still need.
    tail: Vec<u8>,
    /// The same of the text with its URL escapes decoded, from the first escape on.
    decoded: Option<Vec<u8>>,
    escape: Escape,
}

impl Scan {
    /// Takes the next bytes; the first secret that ends in them.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Finding> {
        if self.needles.of.is_empty() {
            return None;
        }
        bytes.chunks(STEP).find_map(|part| {
            if self.decoded.is_none() && memchr::memchr(b'%', part).is_some() {
                self.decoded = Some(self.tail.clone());
            }
            let found = search(&self.needles, &mut self.tail, part);
            found.or_else(|| search(&self.needles, self.decoded.as_mut()?, &self.escape.decode(part)))
        })
    }
}

fn search(needles: &Needles, tail: &mut Vec<u8>, part: &[u8]) -> Option<Finding> {
    tail.extend(part.iter().filter(|byte| byte.is_ascii_alphanumeric()));
    let found = needles.automaton.find(&*tail).and_then(|found| needles.of.get(found.pattern().as_usize()));
    let found = found.map(|(secret, form)| Finding { secret, form });
    let keep = needles.longest.saturating_sub(1).min(tail.len());
    tail.drain(..tail.len() - keep);
    found
}

/// Decodes `%41`, also where it is cut.
#[derive(Default)]
struct Escape(Vec<u8>);

impl Escape {
    fn decode(&mut self, part: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(part.len());
        for &byte in part {
            let fits = match self.0.len() {
                0 => byte == b'%',
                _ => byte.is_ascii_hexdigit(),
            };
            if !fits {
                out.append(&mut self.0);
                if byte == b'%' {
                    self.0.push(byte)
                } else {
                    out.push(byte)
                }
                continue;
            }
            self.0.push(byte);
            if let [_, high, low] = self.0[..] {
                let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
                out.push(digit(high) << 4 | digit(low));
                self.0.clear();
            }
        }
        out
    }
}

fn letters(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii_alphanumeric).collect()
}

/// The secret in every form that is looked for, letters and digits alone.
fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let reversed: Vec<u8> = secret.iter().rev().copied().collect();
    let mut forms = vec![("as it is", letters(secret))];
    for bytes in [secret, &reversed] {
        let joined = |each: &dyn Fn(&u8) -> String| bytes.iter().map(each).collect::<String>().into_bytes();
        forms.push(("in hex", joined(&|byte| format!("{byte:02x}"))));
        forms.push(("as escapes", joined(&|byte| format!("x{byte:02x}"))));
        forms.push(("as hex numbers", joined(&|byte| format!("0x{byte:02x}"))));
        forms.push(("as escapes", joined(&|byte| format!("u00{byte:02x}"))));
        forms.push(("as decimal codes", joined(&|byte| byte.to_string())));
        for before in 0..3 {
            forms.push(("in base64", base64_in_the_middle(bytes, before)));
        }
    }
    forms
}

/// What the secret is in the base64 of a longer text, with `before` bytes before it: the characters that depend on its
/// neighbours are left out.
fn base64_in_the_middle(secret: &[u8], before: usize) -> Vec<u8> {
    let text = [&[0; 2][..before], secret].concat();
    let encoded = STANDARD_NO_PAD.encode(&text);
    let from = (before * 8).div_ceil(6);
    let to = text.len() * 8 / 6;
    letters(&encoded.as_bytes()[from..to])
}

/// Pieces of a form, so that a part of the secret is found too. `whole` is the plain secret's length.
fn pieces(text: &[u8], whole: usize) -> Vec<&[u8]> {
    let piece = (whole / 2).clamp(SHORTEST_PIECE.min(whole), LONGEST_PIECE);
    // As large a part of this form as of the plain one.
    let length = (text.len() * piece / whole).clamp(1, text.len());
    let step = (length / 2).max(1);
    let mut pieces: Vec<_> = text.windows(length).step_by(step).collect();
    pieces.push(&text[text.len() - length..]);
    pieces.dedup();
    pieces
}

/// Sees to it that one key does not come by, in bytes that go on as they come. Pure.
#[derive(Clone)]
pub struct Repeats {
    key: SecretString,
    /// The end of what came, as far as it may be the start of the key.
    held: BytesMut,
}

impl Repeats {
    pub fn of(key: &SecretString) -> Self {
        Self { key: key.clone(), held: BytesMut::new() }
    }

    pub fn is_in(&self, bytes: &[u8]) -> bool {
        memmem::find(bytes, self.key.expose_secret().as_bytes()).is_some()
    }

    /// The bytes that may go on; `None` when they hold the key.
    pub fn pass(&mut self, bytes: Bytes) -> Option<Bytes> {
        let bytes = match self.held.is_empty() {
            true => bytes,
            false => {
                self.held.extend_from_slice(&bytes);
                self.held.split().freeze()
            }
        };
        if self.is_in(&bytes) {
            return None;
        }
        let key = self.key.expose_secret().as_bytes();
        let longest = (key.len() - 1).min(bytes.len());
        let start = (1..=longest).rev().find(|length| bytes.ends_with(&key[..*length])).unwrap_or(0);
        self.held.extend_from_slice(&bytes[bytes.len() - start..]);
        Some(bytes.slice(..bytes.len() - start))
    }

    /// What was held back, once nothing more comes.
    pub fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// How much is held back.
    pub fn held(&self) -> u64 {
        self.held.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "sk-ant-api03-Zm9vYmFy_q7Hk2LwX9sTtR5vB8nYc4dE6gJ1pM3zQ0uW-AA";

    fn secrets() -> Secrets {
        Secrets::new(&[("ANTHROPIC_API_KEY", KEY.into()), ("AMP_API_KEY", "sgamp_user_01K5Q_77ab".into())]).0
    }

    #[test]
    fn a_secret_is_found_in_every_form_wherever_it_stands() {
        let hex = hex::encode(KEY);
        let reversed: String = KEY.chars().rev().collect();
        let mut texts = vec![
            ("as it is", KEY.to_owned()),
            ("as it is", reversed.clone()),
            ("as it is", KEY.to_ascii_uppercase()),
            ("as it is", KEY.chars().map(|c| format!("{c}\u{200b} ")).collect()),
            ("as it is", KEY.chars().map(|c| format!("\"{c}\",\n")).collect()),
            ("as it is", KEY.replace('-', "%2D").replace('_', "%5f")),
            ("in hex", KEY.bytes().map(|b| format!("%{b:02X}")).collect()),
            ("as it is", KEY[5..45].to_owned()),
            ("as it is", KEY.chars().flat_map(|c| [c, '\0']).collect()),
            ("in hex", hex.clone()),
            ("in hex", hex.to_uppercase()),
            ("in hex", hex.chars().rev().collect()),
            ("in hex", hex::encode(&reversed)),
            ("in hex", KEY.bytes().map(|b| format!("{b:02x} ")).collect()),
            ("as escapes", KEY.bytes().map(|b| format!("\\x{b:02x}")).collect()),
            ("as escapes", KEY.bytes().map(|b| format!("\\u00{b:02x}")).collect()),
            ("as hex numbers", KEY.bytes().map(|b| format!("0x{b:02x}, ")).collect()),
            ("as decimal codes", KEY.bytes().map(|b| format!("{b} ")).collect()),
        ];
        for before in ["", "a", "ab", "abc", "key = "] {
            let text = format!("{before}{KEY} and more");
            texts.push(("in base64", STANDARD.encode(&text)));
            texts.push(("in base64", URL_SAFE_NO_PAD.encode(&text)));
            texts.push(("in base64", STANDARD.encode(&text).chars().rev().collect()));
            texts.push(("in base64", STANDARD.encode(format!("{before}{reversed}"))));
            let lines =
                STANDARD.encode(&text).as_bytes().chunks(20).map(|l| String::from_utf8_lossy(l) + "\n").collect();
            texts.push(("in base64", lines));
        }
        let secrets = secrets();
        for (form, text) in texts {
            let found =
                secrets.find(format!("Here: {text} is it").as_bytes()).unwrap_or_else(|| panic!("{form}: {text}"));
            assert_eq!(found.secret, "ANTHROPIC_API_KEY");
            // Escapes of one kind hold those of another.
            assert!(found.form == form || form != "as it is", "{form} was found {}: {text}", found.form);
        }
    }

    #[test]
    fn what_is_no_secret_is_let_go() {
        let secrets = secrets();
        for text in [
            "",
            "Set ANTHROPIC_API_KEY=sk-ant-api03-... in your shell",
            "sk-ant-api03-XXXXXXXXXXXXXXXXXXXXXXXXXXXX",
            "sgamp_user_01K5Q",
            &KEY[..15],
            &"lorem ipsum dolor sit amet ".repeat(10_000),
            &STANDARD.encode((0..50_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()),
        ] {
            assert_eq!(secrets.find(text.as_bytes()), None, "{text:.60}");
        }
        assert_eq!(Secrets::none().find(KEY.as_bytes()), None);
        let (short, names) = Secrets::new(&[("A", "hunter2".into()), ("B", KEY.into())]);
        assert_eq!(names, ["A"]);
        assert_eq!(short.find(b"hunter2"), None);
    }

    #[test]
    fn a_key_that_an_answer_repeats_is_seen_however_it_is_cut() {
        let key = SecretString::from(KEY);
        for piece in 1..KEY.len() + 3 {
            let text = format!("data: your key sk-ant-{KEY} is wrong\n\n");
            let mut repeats = Repeats::of(&key);
            let mut passed = Vec::new();
            let cut = text.as_bytes().chunks(piece).any(|part| match repeats.pass(Bytes::copy_from_slice(part)) {
                Some(free) => {
                    passed.extend_from_slice(&free);
                    false
                }
                None => true,
            });
            assert!(cut && passed.len() <= text.find(KEY).unwrap(), "pieces of {piece}: {} bytes passed", passed.len());
        }
    }

    proptest! {
        #[test]
        fn a_secret_is_found_however_it_is_split(cuts in prop::collection::vec(1usize..20, 1..60), before in 0usize..100) {
            let text = format!("{}{}", "y".repeat(before), STANDARD.encode(format!("{}{KEY}!", "x".repeat(before))));
            let (mut scan, mut rest, mut found) = (secrets().scan(), text.as_bytes(), false);
            for cut in cuts.iter().cycle() {
                let (part, more) = rest.split_at((*cut).min(rest.len()));
                found |= scan.feed(part).is_some();
                rest = more;
                if rest.is_empty() { break }
            }
            prop_assert!(found);
        }

        #[test]
        fn harmless_bytes_come_through_as_they_are(parts in prop::collection::vec("[sk\\-ant]{0,12}", 0..20)) {
            let whole = parts.concat();
            prop_assume!(!whole.contains("sk-ant-sk-ant"));
            let mut repeats = Repeats::of(&"sk-ant-sk-ant".into());
            let mut passed = Vec::new();
            for part in &parts {
                passed.extend_from_slice(&repeats.pass(Bytes::from(part.clone())).unwrap());
            }
            passed.extend_from_slice(&repeats.rest());
            prop_assert_eq!(passed, whole.into_bytes());
        }
    }
}
