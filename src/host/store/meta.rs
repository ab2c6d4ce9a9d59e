//! What is known of one sprite, and its file `meta.json`: the truth that survives a restart. Pure, but for reading and
//! writing that file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};

use crate::sprites::NetworkPolicy;

/// The file's name below the sprite's folder.
const FILE: &str = "meta.json";

/// Version of the file's form; a newer one is refused, not guessed at.
const FORMAT: u32 = 1;

/// Longest sprite name: it is also the host name inside, a DNS label.
const MAX_NAME: usize = 63;

/// Layers below a run from which on they are made one. Every layer is looked through for a name that is not there.
pub const LONG_CHAIN: usize = 16;

/// Checkpoints of one sprite.
pub const MAX_CHECKPOINTS: usize = 256;

/// One sprite's durable facts. Checkpoints are in order of creation, and each one's source is older than itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    format: u32,
    pub id: String,
    pub name: String,
    #[serde(default)]
    pub labels: Vec<String>,
    #[serde(default)]
    pub url_settings: UrlSettings,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Added to the environment of every program.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    #[serde(default)]
    pub policy: NetworkPolicy,
    #[serde(default)]
    pub checkpoints: Vec<Checkpoint>,
    /// Checkpoints made so far, deleted ones included: an id is never used twice.
    #[serde(default)]
    pub checkpoints_made: u32,
    /// The checkpoint that the present files are built on; the bare base when `None`.
    #[serde(default)]
    pub head: Option<String>,
}

/// How the sprite's public address would be guarded. Kept for the SDKs; the embedded host has no public address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlSettings {
    #[serde(default = "UrlSettings::default_auth")]
    pub auth: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_access: Option<String>,
}

impl UrlSettings {
    fn default_auth() -> String {
        "sprite".into()
    }
}

impl Default for UrlSettings {
    fn default() -> Self {
        Self { auth: Self::default_auth(), private_access: None }
    }
}

/// A frozen state of a sprite's files: what its own layer shows on top of its source's, unless it is flat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub id: String,
    #[serde(default)]
    pub comment: String,
    pub create_time: Timestamp,
    #[serde(default)]
    pub source_id: Option<String>,
    /// Its layer holds all its files, those of its sources included, and needs none below it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flat: bool,
}

impl Checkpoint {
    /// Its layer's folder below the sprite's.
    pub fn layer(&self) -> String {
        if self.flat { flat_layer(&self.id) } else { layer(&self.id) }
    }
}

/// Where the changes that a checkpoint made are kept.
pub fn layer(id: &str) -> String {
    format!("layers/{id}")
}

/// Where all files of a flat checkpoint are kept. No id ends like this.
pub fn flat_layer(id: &str) -> String {
    format!("layers/{id}-flat")
}

/// Why a checkpoint can't be deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undeletable {
    #[error("checkpoint {id} not found")]
    Unknown { id: String },
    #[error(
        "cannot delete active checkpoint {id}: the sprite's present files are built on it; restore another one first"
    )]
    Active { id: String },
    #[error("cannot delete checkpoint {id}: {child} is built on it; delete {child} first")]
    Parent { id: String, child: String },
}

impl Meta {
    pub fn new(id: String, name: String, now: Timestamp) -> Self {
        let now = micros(now);
        Self {
            format: FORMAT,
            id,
            name,
            labels: Vec::new(),
            url_settings: UrlSettings::default(),
            created_at: now,
            updated_at: now,
            environment: BTreeMap::new(),
            policy: NetworkPolicy::default(),
            checkpoints: Vec::new(),
            checkpoints_made: 0,
            head: None,
        }
    }

    pub fn checkpoint(&self, id: &str) -> Option<&Checkpoint> {
        self.checkpoints.iter().find(|c| c.id == id)
    }

    /// The id that the next checkpoint gets.
    pub fn next_checkpoint_id(&self) -> String {
        format!("v{}", self.checkpoints_made + 1)
    }

    /// Records that the present files were frozen as the next checkpoint.
    pub fn add_checkpoint(&mut self, comment: String, now: Timestamp) -> String {
        let id = self.next_checkpoint_id();
        let source_id = self.head.replace(id.clone());
        self.checkpoints.push(Checkpoint { id: id.clone(), comment, create_time: micros(now), source_id, flat: false });
        self.checkpoints_made += 1;
        id
    }

    /// Makes `id` the state that the sprite continues from. `false` when there is no such id.
    pub fn restore(&mut self, id: &str) -> bool {
        let is_known = self.checkpoint(id).is_some();
        if is_known {
            self.head = Some(id.to_owned());
        }
        is_known
    }

    /// Takes a checkpoint off the list, unless something is built on it.
    pub fn remove_checkpoint(&mut self, id: &str) -> Result<(), Undeletable> {
        if self.checkpoint(id).is_none() {
            return Err(Undeletable::Unknown { id: id.to_owned() });
        }
        if self.head.as_deref() == Some(id) {
            return Err(Undeletable::Active { id: id.to_owned() });
        }
        if let Some(child) = self.checkpoints.iter().find(|c| !c.flat && c.source_id.as_deref() == Some(id)) {
            return Err(Undeletable::Parent { id: id.to_owned(), child: child.id.clone() });
        }
        self.checkpoints.retain(|c| c.id != id);
        Ok(())
    }

    /// Folders of the layers that make the files of checkpoint `id`, newest first.
    pub fn layers(&self, id: Option<&str>) -> Vec<String> {
        let mut layers = Vec::new();
        for checkpoint in self.chain(id).iter().filter_map(|id| self.checkpoint(id)) {
            layers.push(checkpoint.layer());
            if checkpoint.flat {
                break;
            }
        }
        layers
    }

    /// Says that the layer of `id` now holds all its files. `false` when there is no such id.
    pub fn flatten(&mut self, id: &str) -> bool {
        let found = self.checkpoints.iter_mut().find(|c| c.id == id);
        found.map(|checkpoint| checkpoint.flat = true).is_some()
    }

    /// Ids of the checkpoints from `id` down to its oldest ancestor.
    pub fn chain(&self, id: Option<&str>) -> Vec<String> {
        let mut chain = Vec::new();
        let mut next = id;
        // A source is always older, so this ends; a file edited by hand may say otherwise, hence the bound.
        while let Some(checkpoint) = next.and_then(|id| self.checkpoint(id)) {
            if chain.len() == self.checkpoints.len() {
                break;
            }
            chain.push(checkpoint.id.clone());
            next = checkpoint.source_id.as_deref();
        }
        chain
    }

    /// Reads the file below `dir`.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let meta: Self = serde_json::from_slice(&fs::read(dir.join(FILE))?)?;
        if meta.format > FORMAT {
            let message = format!("form {} is newer than this program, which knows form {FORMAT}", meta.format);
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        Ok(meta)
    }

    /// Writes the file into a folder that nobody looks into yet, durably.
    pub fn write_first(&self, dir: &Path) -> io::Result<()> {
        self.write_to(&dir.join(FILE))?;
        File::open(dir)?.sync_all()
    }

    fn write_to(&self, file: &Path) -> io::Result<()> {
        // The environment in it may be secret.
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(file)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()
    }

    /// Replaces the file below `dir`, so that a crash at any moment leaves the old one or the new one.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let tmp = dir.join("meta.json.tmp");
        self.write_to(&tmp)?;
        fs::rename(&tmp, dir.join(FILE))?;
        File::open(dir)?.sync_all()
    }
}

/// Cut to microseconds: Python before 3.11 can't read more digits.
pub fn micros(time: Timestamp) -> Timestamp {
    // Rounding fails only where the result would leave the year 9999.
    time.round(Unit::Microsecond).unwrap_or(time)
}

/// Whether `name` may be a sprite's: lower-case letters, digits and hyphens, as in a DNS label.
pub fn is_valid_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta::new("sprite-1".into(), "a".into(), Timestamp::from_nanosecond(1_790_000_000_123_456_789).unwrap())
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_790_000_001).unwrap()
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "0", "jane-runner-0", &"x".repeat(63)] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "..", "a_b", "ä", &"x".repeat(64)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }

    #[test]
    fn times_have_at_most_six_fractional_digits() {
        assert_eq!(meta().created_at.to_string(), "2026-09-21T14:13:20.123457Z");
    }

    #[test]
    fn a_checkpoint_after_a_restore_is_built_on_what_was_restored() {
        let mut meta = meta();
        assert_eq!(meta.add_checkpoint(String::new(), now()), "v1");
        assert_eq!(meta.add_checkpoint(String::new(), now()), "v2");
        assert!(meta.restore("v1"));
        assert_eq!(meta.add_checkpoint(String::new(), now()), "v3");
        assert_eq!(meta.chain(meta.head.as_deref()), ["v3", "v1"]);
        assert_eq!(meta.chain(Some("v2")), ["v2", "v1"]);
        assert!(!meta.restore("v9"));
        assert_eq!(meta.head.as_deref(), Some("v3"));
    }

    #[test]
    fn what_something_is_built_on_is_not_deleted_and_ids_are_not_used_again() {
        let mut meta = meta();
        meta.add_checkpoint(String::new(), now());
        meta.add_checkpoint(String::new(), now());
        assert!(matches!(meta.remove_checkpoint("v2"), Err(Undeletable::Active { .. })));
        meta.restore("v1");
        assert!(matches!(meta.remove_checkpoint("v1"), Err(Undeletable::Active { .. })));
        assert!(matches!(meta.remove_checkpoint("v9"), Err(Undeletable::Unknown { .. })));
        assert_eq!(meta.remove_checkpoint("v2"), Ok(()));
        assert_eq!(meta.add_checkpoint(String::new(), now()), "v3");
        meta.restore("v3");
        assert!(matches!(meta.remove_checkpoint("v1"), Err(Undeletable::Parent { .. })));
    }

    #[test]
    fn a_flat_checkpoint_needs_none_of_its_ancestors() {
        let mut meta = meta();
        for _ in 0..3 {
            meta.add_checkpoint(String::new(), now());
        }
        assert!(meta.flatten("v2"));
        assert_eq!(meta.layers(Some("v3")), ["layers/v3", "layers/v2-flat"]);
        assert_eq!(meta.layers(Some("v1")), ["layers/v1"]);
        assert_eq!(meta.chain(Some("v3")), ["v3", "v2", "v1"]);
        assert_eq!(meta.remove_checkpoint("v1"), Ok(()));
        assert_eq!(meta.layers(Some("v3")), ["layers/v3", "layers/v2-flat"]);
        assert!(matches!(meta.remove_checkpoint("v2"), Err(Undeletable::Parent { .. })));
        assert!(!meta.flatten("v1"));
    }

    #[test]
    fn the_file_is_read_as_it_was_written_and_a_newer_form_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut meta = meta();
        meta.add_checkpoint("clean".into(), now());
        meta.write(dir.path()).unwrap();
        assert_eq!(Meta::read(dir.path()).unwrap(), meta);
        meta.format += 1;
        meta.write(dir.path()).unwrap();
        assert_eq!(Meta::read(dir.path()).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
