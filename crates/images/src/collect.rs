//! Gives disk space back: images that nothing needs any more, in small steps.
//!
//! Who calls says what is needed ([`Keep`]) and how much there may be ([`Budget`]); this decides
//! what goes, oldest first, and never more than asked in one [`step`](ImageStore::step). A step
//! runs only while nothing builds or fetches, so that no push waits longer than a step takes.
//! Killed in the middle, it leaves a store from which fewer images are gone than intended.
//!
//! What is needed, base images and what somebody asked for lately ([`crate::uses`]) never goes.
//! Of the rest, what has a name goes when it was not used for long; what has none (the steps of
//! builds, which make the next build fast) goes when there is more of it than its share. When
//! the store is over its budget or the disk is nearly full, age does not matter.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use updraft_model::{Digest, ImageRef};

use crate::layout::Record;
use crate::store::{ImageStore, SHORT, uses_file};
use crate::{ImageError, base, mount, process};

/// What must stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keep {
    /// Images by their content.
    pub ids: BTreeSet<Digest>,
    /// Images by what they are called: whatever the name means now stays.
    pub names: BTreeSet<ImageRef>,
}

/// How much may be kept of what is not needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of all layers together; needed images may be more than that. `None` for no bound.
    pub total_bytes: Option<u64>,
    /// Bytes of the build cache that nothing else holds.
    pub cache_bytes: u64,
    /// Bytes that should be free on the disk.
    pub free_bytes: u64,
    /// How long an image that nothing needs stays after its last use.
    pub unused_for: Duration,
}

/// Why an image is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A function runs it, or a release may be gone back to.
    Needed,
    /// Templates build on it.
    Base,
    /// It has a name and nothing needs it.
    Unused,
    /// A step of a build, which makes the next build faster.
    Cache,
}

/// One image, with what it is here for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// Digest of its configuration.
    pub id: Digest,
    /// Its full names.
    pub names: Vec<ImageRef>,
    /// Bytes of all its layers.
    pub size_bytes: u64,
    /// Bytes of the layers that no other image has.
    pub own_bytes: u64,
    /// Why it is here.
    pub role: Role,
    /// When it was needed last, as far as known.
    pub last_used: Timestamp,
    /// When it was made, as far as known.
    pub created: Option<Timestamp>,
}

/// Everything the store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// All images, those without a name too.
    pub images: Vec<Surveyed>,
    /// Bytes of all layers, each counted once.
    pub total_bytes: u64,
    /// Of these, bytes that only images nobody needs hold, the build cache included.
    pub unneeded_bytes: u64,
    /// Of these, bytes of the build cache.
    pub cache_bytes: u64,
    /// Bytes of layers that belong to no image: what builds under way have made so far, or what
    /// a machine that went down in the wrong moment left.
    pub loose_bytes: u64,
    /// Bytes free on the store's disk.
    pub free_bytes: u64,
}

/// One image that went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Digest of its configuration.
    pub id: Digest,
    /// The names it had.
    pub names: Vec<ImageRef>,
    /// Bytes that came free, as far as known beforehand.
    pub bytes: u64,
    /// For people: why it went.
    pub reason: &'static str,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: something builds or fetches. Try again later.
    Busy,
    /// These went, and perhaps there is more to do.
    Went(Vec<Collected>),
    /// There is nothing to do.
    Done,
}

/// The store's images as they hang together.
struct View<'a> {
    images: Vec<Seen<'a>>,
    sizes: HashMap<String, u64>,
    /// How many images have a layer.
    holders: HashMap<String, usize>,
    /// Layers on which another layer of some image lies.
    below: HashSet<String>,
    /// When the youngest image with this top layer was made.
    youngest: HashMap<String, Option<Timestamp>>,
}

struct Seen<'a> {
    record: &'a Record,
    id: Digest,
    layers: Vec<String>,
    role: Role,
}

impl View<'_> {
    fn own_bytes(&self, image: &Seen<'_>) -> u64 {
        let own = image.layers.iter().filter(|layer| self.holders.get(*layer) == Some(&1));
        own.filter_map(|layer| self.sizes.get(layer)).sum()
    }

    /// Bytes of layers that only images of these roles have.
    fn bytes_of(&self, roles: &[Role]) -> u64 {
        let others = self.images.iter().filter(|image| !roles.contains(&image.role));
        let held: BTreeSet<&String> = others.flat_map(|image| &image.layers).collect();
        let inside = self.images.iter().filter(|image| roles.contains(&image.role));
        let layers: BTreeSet<&String> = inside.flat_map(|image| &image.layers).collect();
        layers.difference(&held).filter_map(|layer| self.sizes.get(*layer)).sum()
    }

    /// Whether another image was made from this one: its top layer lies below another's, or it
    /// is the same and the other is younger.
    fn has_children(&self, image: &Seen<'_>) -> bool {
        let Some(top) = image.layers.first() else { return false };
        let younger = self.youngest.get(top).is_some_and(|made| *made > image.record.created);
        self.below.contains(top) || younger
    }

    /// Whether an image that is needed and has no name lies below this one. `buildah` takes
    /// nameless parents away with their last child.
    fn would_take_along(&self, image: &Seen<'_>) -> bool {
        self.images.iter().any(|other| {
            other.id != image.id
                && other.role == Role::Needed
                && other.record.names.is_empty()
                && other.layers.first().is_some_and(|top| image.layers.contains(top))
        })
    }
}

impl ImageStore {
    /// Says what the store holds and why.
    pub fn survey(&self, keep: &Keep) -> Result<Survey, ImageError> {
        let records = self.inner().layout.records()?;
        let view = self.view(&records, keep)?;
        let uses = &self.inner().uses;
        let images = view.images.iter().map(|image| Surveyed {
            id: image.id,
            names: image.record.names.iter().filter_map(|name| name.parse().ok()).collect(),
            size_bytes: image.layers.iter().filter_map(|layer| view.sizes.get(layer)).sum(),
            own_bytes: view.own_bytes(image),
            role: image.role,
            last_used: uses.last(image.id),
            created: image.record.created,
        });
        let loose = view.sizes.iter().filter(|(layer, _)| !view.holders.contains_key(*layer));
        Ok(Survey {
            images: images.collect(),
            total_bytes: view.sizes.values().sum(),
            unneeded_bytes: view.bytes_of(&[Role::Unused, Role::Cache]),
            cache_bytes: view.bytes_of(&[Role::Cache]),
            loose_bytes: loose.map(|(_, size)| size).sum(),
            free_bytes: self.free_bytes()?,
        })
    }

    /// Notes which images are needed now: each stays for a lease after its last record went.
    pub fn note_needed(&self, keep: &Keep) -> Result<(), ImageError> {
        let records = self.inner().layout.records()?;
        let view = self.view(&records, keep)?;
        let here: BTreeSet<Digest> = view.images.iter().map(|image| image.id).collect();
        let needed = view.images.iter().filter(|image| image.role == Role::Needed);
        let needed: BTreeSet<Digest> = needed.map(|image| image.id).collect();
        let uses = &self.inner().uses;
        for image in &view.images {
            // One that is seen for the first time is new.
            uses.last(image.id);
        }
        uses.note(&needed, &here);
        let path = uses_file(self.root());
        if let Err(cause) = uses.save(&path) {
            // On a full disk this is the last thing to worry about.
            tracing::debug!(%cause, "when images were used is not noted");
        }
        Ok(())
    }

    /// Removes up to `most` images that are not needed and beyond the budget.
    pub async fn step(
        &self,
        keep: &Keep,
        budget: &Budget,
        most: usize,
    ) -> Result<Step, ImageError> {
        let Ok(_alone) = self.inner().work.try_write() else { return Ok(Step::Busy) };
        let records = self.inner().layout.records()?;
        let before = Timestamp::now().checked_sub(self.inner().options.lease);
        let before = before.unwrap_or(Timestamp::UNIX_EPOCH);
        let (chosen, leaving) = {
            let view = self.view(&records, keep)?;
            let mut chosen = self.choose(&view, budget, before, most)?;
            let uses = &self.inner().uses;
            let mut leaving = Vec::new();
            chosen.retain(|collected| {
                let begun = uses.begin_removal(collected.id, before);
                let is_begun = begun.is_some();
                leaving.extend(begun);
                is_begun
            });
            (chosen, leaving)
        };
        if chosen.is_empty() {
            return Ok(Step::Done);
        }
        for image in &leaving {
            self.let_go(&image.id).await?;
        }
        let mut command = self.command();
        command.arg("rmi");
        for collected in &chosen {
            let record = records.iter().find(|record| record.digest() == Some(collected.id));
            match record.map(|record| record.names.as_slice()) {
                Some([]) | None => command.arg(collected.id.hex()),
                Some(names) => command.args(names),
            };
        }
        if let Err(error) = process::output(command, "buildah", "collect images", SHORT).await {
            // One that a container of a killed build still uses stays until that is gone.
            tracing::debug!(%error, "some images stay");
        }
        let left = self.inner().layout.records()?;
        let left: BTreeSet<Digest> = left.iter().filter_map(Record::digest).collect();
        let (gone, stuck): (Vec<_>, Vec<_>) =
            chosen.into_iter().partition(|collected| !left.contains(&collected.id));
        drop(leaving);
        for collected in stuck {
            // Tried again after the lease, not in the next moment.
            self.inner().uses.lease(collected.id);
        }
        Ok(if gone.is_empty() { Step::Done } else { Step::Went(gone) })
    }

    /// What a collection would remove, without removing it; parents of what goes first may not
    /// be among it.
    pub fn would_go(&self, keep: &Keep, budget: &Budget) -> Result<Vec<Collected>, ImageError> {
        let records = self.inner().layout.records()?;
        let view = self.view(&records, keep)?;
        let before = Timestamp::now().checked_sub(self.inner().options.lease);
        self.choose(&view, budget, before.unwrap_or(Timestamp::UNIX_EPOCH), usize::MAX)
    }

    async fn let_go(&self, id: &Digest) -> Result<(), ImageError> {
        if mount::is_mounted(&mount::place(self.run_root(), id)) {
            self.unmount(id).await?;
        }
        Ok(())
    }

    /// Unmounts images that nothing needs and nobody asked for lately; gives back how many went.
    pub async fn unmount_unneeded(&self, keep: &Keep) -> Result<usize, ImageError> {
        let records = self.inner().layout.records()?;
        let before = Timestamp::now().checked_sub(self.inner().options.lease);
        let before = before.unwrap_or(Timestamp::UNIX_EPOCH);
        let mut leaving = Vec::new();
        {
            let view = self.view(&records, keep)?;
            for image in view.images.iter().filter(|image| image.role != Role::Needed) {
                if mount::is_mounted(&mount::place(self.run_root(), &image.id)) {
                    leaving.extend(self.inner().uses.begin_removal(image.id, before));
                }
            }
        }
        for image in &leaving {
            self.let_go(&image.id).await?;
        }
        Ok(leaving.len())
    }

    fn view<'a>(&self, records: &'a [Record], keep: &Keep) -> Result<View<'a>, ImageError> {
        let layout = &self.inner().layout;
        let mut needed = keep.ids.clone();
        for name in &keep.names {
            needed.extend(layout.find(name)?.and_then(|record| record.digest()));
        }
        let mut bases = BTreeSet::new();
        for base in &base::CATALOGUE {
            bases.extend(layout.find(&base.image())?.and_then(|record| record.digest()));
        }
        let sizes: HashMap<String, u64> = layout
            .all_layers()?
            .iter()
            .map(|layer| (layer.id.clone(), layer.size.unwrap_or(0)))
            .collect();
        let mut images = Vec::new();
        let mut holders: HashMap<String, usize> = HashMap::new();
        let mut below = HashSet::new();
        let mut youngest: HashMap<String, Option<Timestamp>> = HashMap::new();
        for record in records {
            let Some(id) = record.digest() else { continue };
            // One whose layers are being removed at this moment has none any more.
            let layers = layout.layers(record).unwrap_or_default();
            let layers: Vec<String> = layers.into_iter().map(|(layer, _)| layer).collect();
            for layer in &layers {
                *holders.entry(layer.clone()).or_default() += 1;
            }
            below.extend(layers.iter().skip(1).cloned());
            if let Some(top) = layers.first() {
                let made = youngest.entry(top.clone()).or_default();
                *made = (*made).max(record.created);
            }
            let role = if needed.contains(&id) {
                Role::Needed
            } else if bases.contains(&id) {
                Role::Base
            } else if record.names.is_empty() {
                Role::Cache
            } else {
                Role::Unused
            };
            images.push(Seen { record, id, layers, role });
        }
        Ok(View { images, sizes, holders, below, youngest })
    }

    fn choose(
        &self,
        view: &View<'_>,
        budget: &Budget,
        leased_since: Timestamp,
        most: usize,
    ) -> Result<Vec<Collected>, ImageError> {
        let uses = &self.inner().uses;
        let mut candidates: Vec<(&Seen<'_>, Timestamp)> = view
            .images
            .iter()
            .filter(|image| matches!(image.role, Role::Unused | Role::Cache))
            .filter(|image| !view.has_children(image) && !view.would_take_along(image))
            .map(|image| (image, uses.last(image.id)))
            .filter(|(_, last)| *last < leased_since)
            .collect();
        candidates.sort_by_key(|(image, last)| (*last, image.record.created));
        let total: u64 = view.sizes.values().sum();
        let mut over = budget.total_bytes.map_or(0, |most| total.saturating_sub(most));
        over = over.max(budget.free_bytes.saturating_sub(self.free_bytes()?));
        let mut over_cache = view.bytes_of(&[Role::Cache]).saturating_sub(budget.cache_bytes);
        let expired = Timestamp::now().checked_sub(budget.unused_for);
        let expired = expired.unwrap_or(Timestamp::UNIX_EPOCH);
        let mut chosen: BTreeMap<usize, (&'static str, u64)> = BTreeMap::new();
        for (index, (image, last)) in candidates.iter().enumerate() {
            let bytes = view.own_bytes(image);
            let is_cache = image.role == Role::Cache;
            let reason = if *last < expired {
                "not used for long"
            } else if is_cache && over_cache > 0 {
                "the build cache is over its share"
            } else {
                continue;
            };
            if is_cache {
                over_cache = over_cache.saturating_sub(bytes);
            }
            over = over.saturating_sub(bytes);
            chosen.insert(index, (reason, bytes));
        }
        // What only makes builds faster goes before what somebody gave a name.
        for role in [Role::Cache, Role::Unused] {
            for (index, (image, _)) in candidates.iter().enumerate() {
                if over == 0 || image.role != role || chosen.contains_key(&index) {
                    continue;
                }
                let bytes = view.own_bytes(image);
                over = over.saturating_sub(bytes);
                chosen.insert(index, ("the disk or the budget is full", bytes));
            }
        }
        let collected = chosen.into_iter().take(most).map(|(index, (reason, bytes))| {
            let image = candidates[index].0;
            let names = image.record.names.iter().filter_map(|name| name.parse().ok()).collect();
            Collected { id: image.id, names, bytes, reason }
        });
        Ok(collected.collect())
    }
}
