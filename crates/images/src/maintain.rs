//! Keeps the store tidy: lists, names, removes and unmounts images.

#![expect(
    clippy::unused_async,
    reason = "callers wait already, so that a store which has to ask elsewhere changes no caller"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use updraft_model::{Digest, ImageRef};

use crate::store::{Image, ImageStore, SHORT};
use crate::{Driver, ImageError, mount, name, process};

/// Time for removing many things.
const LONG: Duration = Duration::from_mins(10);

impl ImageStore {
    /// All images that have a name, in the order of their names.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let records = self.inner().layout.records()?;
        let named = records.iter().filter(|record| !record.names.is_empty());
        let mut images =
            named.map(|record| self.describe(record)).collect::<Result<Vec<_>, _>>()?;
        images.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(images)
    }

    /// Gives an image that is here one more name.
    pub async fn tag(&self, image: &Image, name: &ImageRef) -> Result<(), ImageError> {
        let mut command = self.command();
        command.args(["tag", &image.id.hex(), &name::stored(name)]);
        let action = format!("name an image `{name}`");
        process::output(command, "buildah", &action, SHORT).await.map(drop)
    }

    /// Takes the name `image` away, and with its last name the image. Refused while it is mounted.
    /// Removing what is not here does nothing and gives `false`.
    pub async fn remove(&self, image: &ImageRef) -> Result<bool, ImageError> {
        let Some(record) = self.inner().layout.find(image)? else { return Ok(false) };
        let last = record.names.len() <= 1;
        let mounted = |id| mount::is_mounted(&mount::place(self.run_root(), &id));
        if last && record.digest().is_some_and(mounted) {
            return Err(ImageError::InUse { image: image.clone() });
        }
        let named = name::candidates(image).into_iter().find(|name| record.names.contains(name));
        let target = match named {
            Some(name) if image.digest().is_none() => name,
            _ => record.id,
        };
        let mut command = self.command();
        command.args(["rmi", &target]);
        let action = format!("remove image `{image}`");
        process::output(command, "buildah", &action, SHORT).await?;
        Ok(true)
    }

    /// Removes working containers that nobody works in any more, as killed builds leave them, and
    /// gives back how many; nothing while something builds, as it may be that one's.
    pub async fn remove_abandoned(&self) -> Result<Option<usize>, ImageError> {
        let Ok(_alone) = self.inner().work.try_write() else { return Ok(None) };
        let mut containers = self.inner().layout.containers()?;
        containers.retain(|name| !name.starts_with("updraft-"));
        self.remove_containers(&containers).await?;
        Ok(Some(containers.len()))
    }

    /// Removes working containers.
    pub(crate) async fn remove_containers(&self, names: &[String]) -> Result<(), ImageError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut command = self.command();
        command.arg("rm").args(names);
        let action = "remove what an interrupted build left";
        process::output(command, "buildah", action, LONG).await.map(drop)
    }

    /// Unmounts one image. Replicas that run from it go on running; the next [`mount`](Self::mount)
    /// makes it anew.
    pub async fn unmount(&self, id: &Digest) -> Result<(), ImageError> {
        mount::unmount(&mount::place(self.run_root(), id))?;
        if self.driver() == Driver::FuseOverlay {
            let mut command = self.command();
            command.args(["rm", &format!("updraft-mount-{}", id.hex())]);
            process::output(command, "buildah", "unmount an image", SHORT).await?;
        }
        Ok(())
    }

    /// Unmounts all images but those of `keep`; gives back how many went.
    pub async fn unmount_unused(&self, keep: &BTreeSet<Digest>) -> Result<usize, ImageError> {
        mount::unmount_all_but(self.run_root(), keep)
    }

    /// Unmounts everything that was mounted from this store, as when it is about to be deleted.
    pub async fn unmount_all(&self) -> Result<(), ImageError> {
        mount::unmount_all_but(self.run_root(), &BTreeSet::new())?;
        mount::unmount_below(self.root())?;
        mount::unmount_below(self.run_root())
    }
}
