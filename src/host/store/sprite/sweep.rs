//! What a sprite's folder holds and nothing needs: left by a crash, by restores and by merged layers.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use super::{Sprite, runs};

impl Sprite {
    /// Deletes runs and layers that nothing needs.
    pub async fn sweep(self: &Arc<Self>) {
        let _life = self.life.lock().await;
        if self.check_open().is_err() {
            return;
        }
        let meta = self.meta();
        match runs::undo_freeze(&self.dir, meta.head.as_deref(), &self.setup.boot, &meta.next_checkpoint_id()) {
            Ok(()) => self.discard_unused(),
            Err(error) => tracing::warn!(sprite = meta.name, %error, "a checkpoint that was cut off can't be undone"),
        }
    }

    /// Deletes runs and layers that neither `meta.json` names nor the sandbox uses. The caller holds `life`.
    pub(super) fn discard_unused(&self) {
        // A layer that is being made is not named yet; once it is, this is done again.
        let Some(_rest) = self.flattening.rests() else { return };
        let meta = self.meta();
        let used = self.state().machine.clone();
        let used = used.iter().flat_map(|machine| machine.lower.iter().chain([&machine.run]).cloned());
        let kept: BTreeSet<String> =
            meta.checkpoints.iter().map(|c| c.layer()).chain(runs::present(&self.dir)).chain(used).collect();
        for folder in ["runs", "layers"] {
            // Without such a folder there is nothing to sweep.
            for entry in fs::read_dir(self.dir.join(folder)).into_iter().flatten().flatten() {
                if !kept.contains(&format!("{folder}/{}", entry.file_name().to_string_lossy())) {
                    self.setup.trash.take(&entry.path());
                }
            }
        }
    }
}
