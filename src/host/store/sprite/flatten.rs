//! Long chains of layers become one layer in the background, while the sprite runs.
//!
//! Everything that is merged is frozen, so nobody is disturbed: the new layer is built beside the others, synced, and
//! named in `meta.json`; the next sandbox starts on it. Until then the running one has the old layers mounted, so they
//! go when no sandbox is left that has them. A crash in between leaves a folder that no file names, which is swept.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{LONG_CHAIN, Sprite, StoreError};
use crate::config::Isolation;
use crate::host::layers::merge::merge;
use crate::host::store::{blocking, meta};

/// What keeps the flattening of one sprite in order.
#[derive(Default)]
pub(super) struct Flattening {
    /// Held while a layer is being made, so that it is not taken for garbage.
    under_way: Arc<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
}

impl Flattening {
    /// Whether nothing is being made. What is returned keeps it so.
    pub(super) fn rests(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.under_way.try_lock().ok()
    }

    /// Gives up what is being made, for good, and returns when nothing writes any more.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        drop(self.under_way.lock().await);
    }
}

impl Sprite {
    /// Begins to make one layer of those below the present files, if they are many and it is not begun already.
    pub(super) fn flatten_if_long(self: &Arc<Self>) {
        let meta = self.meta();
        let is_long = self.layers_below(&meta).len() >= LONG_CHAIN;
        let (Some(head), true) = (meta.head, is_long) else { return };
        let Ok(under_way) = self.flattening.under_way.clone().try_lock_owned() else { return };
        let sprite = self.clone();
        tokio::spawn(async move {
            let done = sprite.flatten(&head).await;
            drop(under_way);
            match done {
                Ok(()) => sprite.sweep().await,
                Err(_) if sprite.flattening.stop.is_cancelled() => {}
                Err(error) => tracing::warn!(
                    sprite = sprite.meta().name,
                    %error,
                    "its layers can't be made one; when they become too many, no checkpoint can be made any more"
                ),
            }
        });
    }

    /// The layers that the present files are built on, newest first.
    pub(super) fn layers_below(&self, meta: &meta::Meta) -> Vec<String> {
        let mut layers = meta.layers(meta.head.as_deref());
        if self.setup.config.isolation == Isolation::Off {
            // Without isolation there is no overlay, and each layer is a whole tree.
            layers.truncate(1);
        }
        layers
    }

    async fn flatten(self: &Arc<Self>, id: &str) -> Result<(), StoreError> {
        let stop = self.flattening.stop.clone();
        // One at a time on this machine; the semaphore is never closed.
        let Some(_turn) = stop.run_until_cancelled(self.setup.flattening.acquire()).await else { return Ok(()) };
        let layers: Vec<PathBuf> = self.meta().layers(Some(id)).iter().map(|name| self.dir.join(name)).collect();
        let to = self.dir.join(meta::flat_layer(id));
        let built = {
            let to = to.clone();
            blocking("a merge of layers", move || build(&layers, &to, &stop)).await?
        };
        let id = id.to_owned();
        // A checkpoint that is still there needed all the layers below it until now, so none was deleted meanwhile.
        let named = match built.map_err(StoreError::disk("the layers can't be made one")) {
            Ok(()) => {
                let edit = move |meta: &mut meta::Meta, _| {
                    meta.flatten(&id).then_some(()).ok_or(StoreError::NoCheckpoint { id })
                };
                self.change(edit).await
            }
            Err(error) => Err(error),
        };
        if named.is_err() {
            self.setup.trash.take(&draft(&to));
            self.setup.trash.take(&to);
        }
        named
    }
}

/// Builds the layer beside its place, and moves it there when it would survive a power cut.
fn build(layers: &[PathBuf], to: &Path, stop: &CancellationToken) -> io::Result<()> {
    let draft = draft(to);
    merge(layers, &draft, || stop.is_cancelled())?;
    rustix::fs::syncfs(File::open(&draft)?)?;
    fs::rename(&draft, to)?;
    File::open(to.parent().unwrap_or(to))?.sync_all()
}

fn draft(to: &Path) -> PathBuf {
    to.with_extension("new")
}
