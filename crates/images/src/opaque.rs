//! Folders that hide what lies below them in lower layers.
//!
//! A step that removes a folder and makes it anew leaves a mark on it, an extended attribute. The
//! kernel reads it under one name where root of the machine stacks the layers, as for replicas,
//! and under another where a user namespace does, as for builds. So each layer carries both.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use updraft_model::ImageRef;

use crate::ImageError;
use crate::store::{Image, ImageStore};

const NAMES: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// File beside a layer's content that says it carries both marks.
const DONE: &str = "updraft-opaque";
/// Folders of one layer that are looked at; a layer with more is no honest one.
const FOLDERS_MAX: usize = 5_000_000;

impl ImageStore {
    /// Sees to it that all layers of an image look the same to builds and to functions.
    pub async fn settle(&self, image: &Image) -> Result<(), ImageError> {
        let by_id = format!("x@{}", image.id).parse::<ImageRef>().ok();
        let record = by_id.map(|id| self.inner().layout.find(&id)).transpose()?.flatten();
        let Some(record) = record else { return Ok(()) };
        let layers = self.inner().layout.layers(&record)?;
        let overlay = self.root().join("overlay");
        let new = layers.into_iter().map(|(layer, _)| overlay.join(layer));
        let new: Vec<_> =
            new.filter(|layer| layer.is_dir() && !layer.join(DONE).is_file()).collect();
        if new.is_empty() {
            return Ok(());
        }
        let settled = tokio::task::spawn_blocking(move || {
            for layer in new {
                let failed = ImageError::io("settle the layer", &layer);
                mark_both(&layer.join("diff"))
                    .and_then(|()| fs::write(layer.join(DONE), b""))
                    .map_err(failed)?;
            }
            Ok(())
        });
        settled.await.unwrap_or_else(|panic| {
            Err(ImageError::io("settle the layers in", self.root())(io::Error::other(panic)))
        })
    }
}

/// Gives each folder that carries one of the marks the other one too.
fn mark_both(folder: &Path) -> io::Result<()> {
    let mut left = vec![folder.to_owned()];
    let mut seen = 0;
    while let Some(folder) = left.pop() {
        seen += 1;
        if seen > FOLDERS_MAX {
            return Err(io::Error::other("it has too many folders"));
        }
        let marked = NAMES.map(|name| {
            let mut value = [0_u8; 8];
            lgetxattr(&folder, name, &mut value).is_ok_and(|length| value[..length] == *b"y")
        });
        for (name, is_marked) in NAMES.iter().zip(marked) {
            if marked.contains(&true) && !is_marked {
                lsetxattr(&folder, *name, b"y", XattrFlags::empty())?;
            }
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_one_mark_gets_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        lsetxattr(&below, NAMES[1], b"y", XattrFlags::empty()).unwrap();
        mark_both(folder.path()).unwrap();
        let mut value = [0; 8];
        assert_eq!(lgetxattr(&below, NAMES[0], &mut value), Ok(1));
        assert!(lgetxattr(folder.path().join("a"), NAMES[0], &mut value).is_err());
    }
}
