//! Keeps the disk from filling: decides which images are needed, and has the rest collected.
//!
//! Needed is what the engine runs or would run, what a release within the window may be gone back
//! to, and what a push under way has built. The base images of the templates stay by themselves.
//! A collection goes in small steps, asks anew before each what is needed, and gives way to
//! builds and pulls. Only when the disk is nearly full does work wait for it: a build that would
//! not fit first has room made for it, and is refused when there is none to make.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use updraft_engine::{Engine, EngineError};
use updraft_images::{Budget, Collected, ImageError, ImageStore, Keep, Step, Survey};
use updraft_store::{Release, Store, StoreError};

/// Images that one step removes at most; a build waits for one step at the longest.
const STEP: usize = 8;
/// Pause after a step, for others.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a collection that gave way looks again while the disk is nearly full.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a build waits for room.
const ROOM_LIMIT: Duration = Duration::from_secs(30);
/// Entries below a folder that are measured; a folder with more is told as at least so large.
const MEASURED_MAX: usize = 2_000_000;

/// How much is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HousekeeperOptions {
    /// Bounds of what is not needed.
    pub budget: Budget,
    /// Newest releases of each function that can be gone back to.
    pub keep_releases: u32,
    /// Releases younger than this can be gone back to, however many they are.
    pub keep_for: Duration,
    /// Time between two collections.
    pub every: Duration,
}

/// What a housekeeper works with.
pub struct HousekeeperParts {
    /// The images.
    pub images: ImageStore,
    /// The records of releases.
    pub store: Store,
    /// Says what runs.
    pub engine: Arc<dyn Engine>,
    /// Folders beside the images whose size is told, by what they hold.
    pub folders: BTreeMap<&'static str, PathBuf>,
    /// How it is set.
    pub options: HousekeeperOptions,
}

impl fmt::Debug for HousekeeperParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HousekeeperParts").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Why nothing was collected.
#[derive(Debug, Error)]
pub enum HousekeepingError {
    /// What is needed is not known, so everything stays.
    #[error("cannot tell which images are needed, so none is collected")]
    Records(#[from] StoreError),
    /// The same, by the engine's fault.
    #[error("cannot tell which images are run, so none is collected")]
    Engine(#[from] EngineError),
    /// The image store did not do its part.
    #[error(transparent)]
    Images(#[from] ImageError),
}

/// There is no room for a build, even after collecting.
#[derive(Debug, Error)]
#[error(
    "the disk that holds `{}` has only {} MiB free, {} MiB have to stay free, and nothing more \
     can be collected: free some space, or see `updraft disk` for what uses it",
    path.display(), free >> 20, needed >> 20
)]
pub struct NoRoom {
    path: PathBuf,
    free: u64,
    needed: u64,
}

/// What uses the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUse {
    /// The images.
    pub images: Survey,
    /// Bytes of each other folder, by what it holds.
    pub folders: BTreeMap<&'static str, u64>,
    /// Bounds of what is not needed.
    pub budget: Budget,
}

/// What is measured about collecting.
#[derive(Debug, Default, Clone)]
struct Numbers {
    images: Gauge<i64, AtomicI64>,
    bytes: Gauge<i64, AtomicI64>,
    unneeded: Gauge<i64, AtomicI64>,
    free: Gauge<i64, AtomicI64>,
    collected: Counter<u64, AtomicU64>,
    collected_bytes: Counter<u64, AtomicU64>,
    failures: Counter<u64, AtomicU64>,
}

/// Collects what is not needed, from time to time and when there is no room.
pub struct Housekeeper {
    parts: HousekeeperParts,
    numbers: Numbers,
    /// One collection at a time.
    turn: tokio::sync::Mutex<()>,
    closing: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Housekeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Housekeeper").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl Housekeeper {
    /// Begins to collect from time to time.
    pub fn start(parts: HousekeeperParts) -> Arc<Self> {
        let housekeeper = Arc::new(Self {
            parts,
            numbers: Numbers::default(),
            turn: tokio::sync::Mutex::default(),
            closing: CancellationToken::new(),
            task: Mutex::default(),
        });
        let task = tokio::spawn(Arc::clone(&housekeeper).work());
        *housekeeper.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        housekeeper
    }

    /// Begins no more and returns when the step under way has ended.
    pub async fn shutdown(&self) {
        self.closing.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the housekeeper crashed");
        }
    }

    /// Adds its numbers to those of the process.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let numbers = &self.numbers;
        registry.register(
            "updraft_images",
            "Container images on this machine, build steps included",
            numbers.images.clone(),
        );
        for (name, help, gauge) in [
            ("updraft_images", "Content of all image layers, each counted once", &numbers.bytes),
            (
                "updraft_images_unneeded",
                "Content of image layers that no function and no kept release needs",
                &numbers.unneeded,
            ),
            ("updraft_disk_free", "Free on the disk that holds the images", &numbers.free),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
        registry.register(
            "updraft_images_collected",
            "Images removed because nothing needed them",
            numbers.collected.clone(),
        );
        registry.register_with_unit(
            "updraft_images_collected",
            "Content that removed images gave back",
            Unit::Bytes,
            numbers.collected_bytes.clone(),
        );
        registry.register(
            "updraft_images_collection_failures",
            "Collections that could not be done",
            numbers.failures.clone(),
        );
    }

    async fn work(self: Arc<Self>) {
        loop {
            if let Err(error) = self.collect(&self.parts.options.budget).await {
                self.numbers.failures.inc();
                tracing::warn!(error = %with_cause(&error), "images could not be collected");
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(self.parts.options.every) => {}
            }
        }
    }

    /// What must stay, as the records say at this moment.
    ///
    /// # Errors
    /// See [`HousekeepingError`].
    pub async fn needed(&self) -> Result<Keep, HousekeepingError> {
        let HousekeeperParts { store, engine, options, .. } = &self.parts;
        let since = Timestamp::now().checked_sub(options.keep_for);
        let since = since.unwrap_or(Timestamp::UNIX_EPOCH);
        let mut keep = Keep::default();
        // Releases before the engine: what is pointed at a release meanwhile is in both.
        let needed = store.images_in_use(options.keep_releases, since).await?;
        keep.ids.extend(needed.ids);
        keep.names.extend(needed.names);
        for namespace in engine.list_namespaces().await? {
            for status in engine.list(&namespace.name).await? {
                keep.ids.extend(status.spec.image.digest().copied());
                keep.names.insert(status.spec.image);
            }
        }
        keep.ids.extend(engine.images_in_use().await?);
        Ok(keep)
    }

    /// Collects step by step until nothing is beyond the budget or work is under way.
    async fn collect(&self, budget: &Budget) -> Result<Vec<Collected>, HousekeepingError> {
        let images = &self.parts.images;
        let _turn = self.turn.lock().await;
        let mut all = Vec::new();
        let mut unmounted = false;
        loop {
            let keep = self.needed().await?;
            images.note_needed(&keep)?;
            if !std::mem::replace(&mut unmounted, true) {
                images.unmount_unneeded(&keep).await?;
            }
            self.measure(&images.survey(&keep)?);
            match images.step(&keep, budget, STEP).await? {
                Step::Went(gone) => {
                    for image in &gone {
                        self.numbers.collected.inc();
                        self.numbers.collected_bytes.inc_by(image.bytes);
                        let (id, names, bytes) = (image.id.short(), &image.names, image.bytes);
                        tracing::info!(id, ?names, bytes, reason = image.reason, "image collected");
                    }
                    all.extend(gone);
                }
                Step::Busy => return Ok(all),
                Step::Done => {
                    let bytes = images.remove_loose(STEP).await?;
                    if bytes > 0 {
                        self.numbers.collected_bytes.inc_by(bytes);
                        tracing::info!(bytes, "layers of no image collected");
                        self.measure(&images.survey(&keep)?);
                    }
                    return Ok(all);
                }
            }
            tokio::select! {
                () = self.closing.cancelled() => return Ok(all),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    fn measure(&self, survey: &Survey) {
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.numbers.images.set(count(survey.images.len() as u64));
        self.numbers.bytes.set(count(survey.total_bytes));
        self.numbers.unneeded.set(count(survey.unneeded_bytes));
        self.numbers.free.set(count(survey.free_bytes));
    }

    /// Everything that nothing needs goes now, whatever the budget; or is only named.
    ///
    /// # Errors
    /// See [`HousekeepingError`].
    pub async fn prune(&self, dry_run: bool) -> Result<Vec<Collected>, HousekeepingError> {
        let budget = Budget { unused_for: Duration::ZERO, ..self.parts.options.budget.clone() };
        if !dry_run {
            return self.collect(&budget).await;
        }
        let keep = self.needed().await?;
        Ok(self.parts.images.would_go(&keep, &budget)?)
    }

    /// Makes sure that the disk has room for work, collecting when it has not.
    ///
    /// # Errors
    /// [`NoRoom`] when it still has none.
    pub async fn make_room(&self) -> Result<(), NoRoom> {
        let begin = Instant::now();
        let needed = self.parts.images.free_bytes_min();
        loop {
            let free = self.parts.images.free_bytes().unwrap_or(u64::MAX);
            if free >= needed {
                return Ok(());
            }
            let budget = Budget {
                free_bytes: needed.max(self.parts.options.budget.free_bytes),
                ..self.parts.options.budget.clone()
            };
            let gone = self.collect(&budget).await;
            let none = gone.is_ok_and(|gone| gone.is_empty());
            let free = self.parts.images.free_bytes().unwrap_or(u64::MAX);
            let is_idle = self.parts.images.is_idle();
            if free < needed && ((none && is_idle) || begin.elapsed() > ROOM_LIMIT) {
                let path = self.parts.images.root().to_owned();
                return Err(NoRoom { path, free, needed });
            }
            if free < needed {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// All images, and why each is here.
    ///
    /// # Errors
    /// See [`HousekeepingError`].
    pub async fn survey(&self) -> Result<Survey, HousekeepingError> {
        Ok(self.parts.images.survey(&self.needed().await?)?)
    }

    /// What uses the disk.
    ///
    /// # Errors
    /// See [`HousekeepingError`].
    pub async fn disk_use(&self) -> Result<DiskUse, HousekeepingError> {
        let images = self.survey().await?;
        let folders = self.parts.folders.clone();
        let measure =
            move || folders.into_iter().map(|(what, path)| (what, size_below(&path))).collect();
        let folders = tokio::task::spawn_blocking(measure).await.unwrap_or_default();
        Ok(DiskUse { images, folders, budget: self.parts.options.budget.clone() })
    }

    /// Which of these releases have their image still, so that they can be gone back to.
    pub fn kept(&self, releases: &[Release]) -> BTreeSet<u64> {
        let here = |release: &&Release| {
            let image = match release.image_id {
                Some(id) => release.image.pinned(id),
                None => release.image.clone(),
            };
            // What is asked of a registry can be asked again.
            release.image_id.is_none() || self.parts.images.is_here(&image).unwrap_or(true)
        };
        releases.iter().filter(here).map(|release| release.number).collect()
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", with_cause(cause)),
        None => error.to_string(),
    }
}

/// Bytes that the files at and below a path take on the disk.
fn size_below(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let mut left = vec![path.to_owned()];
    let mut seen = 0;
    while let Some(path) = left.pop() {
        seen += 1;
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        bytes += found.blocks() * 512;
        if found.is_dir() && seen < MEASURED_MAX {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path()));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_as_large_as_what_lies_below_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("below")).unwrap();
        let empty = size_below(folder.path());
        std::fs::write(folder.path().join("below/file"), vec![1; 100_000]).unwrap();
        // A link is as large as itself.
        std::os::unix::fs::symlink("/usr", folder.path().join("link")).unwrap();
        let full = size_below(folder.path());
        assert!((empty + 100_000..empty + 120_000).contains(&full), "{empty} {full}");
        assert_eq!(size_below(Path::new("/does/not/exist")), 0);
    }
}
