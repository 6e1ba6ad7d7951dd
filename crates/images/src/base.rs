//! Base images for the templates, made from Debian packages.
//!
//! A machine that reaches no registry still has a Debian mirror, perhaps its own. Each base image
//! is one layer that `mmdebstrap` fills with the packages of this catalogue, made the first
//! time somebody needs it and then kept.

mod recipe;
mod sources;

use std::fs;
use std::sync::Mutex;

use updraft_model::ImageRef;

use crate::store::{ImageStore, Progress, SHORT};
use crate::{ImageError, process};

/// One image of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseImage {
    /// Its name in the store.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub purpose: &'static str,
    /// The Debian packages in it, beside the smallest system that has `apt`.
    pub packages: &'static [&'static str],
}

/// A small Debian system with `apt` and root certificates.
pub const DEBIAN: BaseImage = BaseImage {
    name: "localhost/updraft/debian",
    purpose: "a small Debian system",
    packages: &["ca-certificates"],
};

/// All base images, the smallest first.
pub const CATALOGUE: [BaseImage; 5] = [
    DEBIAN,
    BaseImage {
        name: "localhost/updraft/python",
        purpose: "Python 3 with pip",
        packages: &["ca-certificates", "python3", "python3-pip", "python3-venv"],
    },
    BaseImage {
        name: "localhost/updraft/node",
        purpose: "Node.js with npm",
        packages: &["ca-certificates", "nodejs", "npm"],
    },
    BaseImage {
        name: "localhost/updraft/go",
        purpose: "the Go toolchain",
        packages: &["ca-certificates", "git", "golang-go", "gcc", "libc6-dev"],
    },
    BaseImage {
        name: "localhost/updraft/rust",
        purpose: "the Rust toolchain",
        packages: &["ca-certificates", "cargo", "gcc", "git", "libc6-dev", "pkg-config", "rustc"],
    },
];

impl BaseImage {
    /// The reference to it.
    pub fn image(&self) -> ImageRef {
        // The catalogue's names are checked by a test.
        self.name.parse().unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// The last part of its name, for people.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('/').next().unwrap_or(self.name)
    }
}

/// The catalogue's entry that `image` means: without a tag or with `latest`, and with or without
/// the `localhost/` before it.
pub fn find(image: &ImageRef) -> Option<&'static BaseImage> {
    if image.digest().is_some() || image.tag().is_some_and(|tag| tag != "latest") {
        return None;
    }
    let name = image.name();
    let path = name.strip_prefix("localhost/").unwrap_or(name);
    CATALOGUE.iter().find(|base| base.name.strip_prefix("localhost/") == Some(path))
}

/// Makes a base image. Other processes on this store wait for the first one; a call that is
/// cut short leaves nothing that counts as an image.
pub(crate) async fn make(
    store: &ImageStore,
    base: &BaseImage,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let _lock = lock(store, progress).await?;
    if store.resolve(&base.image()).await?.is_some() {
        return Ok(());
    }
    let short = base.short_name();
    progress.line(&format!(
        "making base image {short} from Debian packages: this takes about a minute, once"
    ));
    let started = std::time::Instant::now();
    let prefix = format!("updraft-base-{short}-");
    // Made by processes that were killed here: this one holds the lock.
    let mut left = store.inner().layout.containers()?;
    left.retain(|name| name.starts_with(&prefix));
    store.remove_containers(&left).await?;

    let container = format!("{prefix}{}", std::process::id());
    let action = format!("make base image `{short}`");
    let mut from = store.policed("from");
    from.args(["--pull-never", "--name", &container, "scratch"]);
    process::output(from, "buildah", &action, SHORT).await?;
    let made = fill(store, base, &container, &action, progress).await;
    if made.is_err()
        && let Err(error) = store.remove_containers(&[container]).await
    {
        tracing::warn!(%error, "a half-made base image stays until the next attempt");
    }
    made?;
    progress.line(&format!("made base image {short} in {} s", started.elapsed().as_secs()));
    Ok(())
}

async fn fill(
    store: &ImageStore,
    base: &BaseImage,
    container: &str,
    action: &str,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let options = &store.inner().options;
    let tree = buildah(store, &["mount", container], action).await?;
    let command = recipe::command(base, tree.as_ref(), options.mirror.as_deref());
    let seen = Mutex::new(String::new());
    process::run(command, "mmdebstrap", action, options.base_limit, |_, line| {
        if let Some(step) = recipe::step(line) {
            let mut last = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if *last != step {
                progress.line(&format!("  {}: {step}", base.short_name()));
                last.clone_from(&step);
            }
        }
    })
    .await?;
    progress.line(&format!("  {}: keeping it", base.short_name()));
    recipe::finish(tree.as_ref())?;
    buildah(store, &["umount", container], action).await?;
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let config = ["config", "--env", path, "--env", "LANG=C.UTF-8", "--cmd", "/bin/sh"];
    buildah(store, &[&config[..], &[container]].concat(), action).await?;
    let mut commit = store.policed("commit");
    commit.args(["--quiet", "--rm", container, base.name]);
    process::output(commit, "buildah", action, options.pull_limit).await?;
    Ok(())
}

async fn buildah(store: &ImageStore, args: &[&str], action: &str) -> Result<String, ImageError> {
    let mut command = store.command();
    command.args(args);
    process::output(command, "buildah", action, SHORT).await
}

/// One base image at a time, over all processes: they compete for the same mirror and disk.
async fn lock(store: &ImageStore, progress: &dyn Progress) -> Result<fs::File, ImageError> {
    let path = store.root().join("updraft-base.lock");
    let file = fs::File::create(&path).map_err(ImageError::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            progress.line("waiting for another base image that is being made");
        }
        Err(fs::TryLockError::Error(cause)) => return Err(ImageError::io("lock", path)(cause)),
    }
    let waited = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    waited
        .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
        .map_err(ImageError::io("lock", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_base_image_is_found_by_its_names() {
        for base in &CATALOGUE {
            assert_eq!(find(&base.image()), Some(base));
            let short = format!("updraft/{}:latest", base.short_name());
            assert_eq!(find(&short.parse().unwrap()), Some(base));
        }
        for other in ["localhost/updraft/python:3", "python", "docker.io/updraft/python"] {
            assert_eq!(find(&other.parse().unwrap()), None, "{other}");
        }
    }
}
