//! Reads the files in which the store keeps its images and layers.
//!
//! The store writes each of them anew and renames it into place, so that a reader always sees a
//! whole one without taking the store's locks. Only `buildah` writes here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use updraft_model::{Digest, ImageRef};

use crate::driver::Driver;
use crate::{ImageConfig, ImageError, name};

/// Largest record or configuration file read, far above any honest one.
const FILE_MAX: u64 = 64 << 20;
/// Most layers an image may have; the kernel's own bound is 500.
const LAYERS_MAX: usize = 500;

/// One image as the store's index has it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) names: Vec<String>,
    #[serde(default)]
    pub(crate) layer: String,
    #[serde(default)]
    pub(crate) created: Option<Timestamp>,
    #[serde(default, rename = "big-data-digests")]
    digests: std::collections::BTreeMap<String, String>,
}

impl Record {
    fn has_digest(&self, digest: &Digest) -> bool {
        if self.id == digest.hex() {
            return true;
        }
        let digest = digest.to_string();
        self.digests.iter().any(|(name, value)| name.starts_with("manifest") && *value == digest)
    }

    /// The digest of the image's configuration, which is its identity.
    pub(crate) fn digest(&self) -> Option<Digest> {
        format!("sha256:{}", self.id).parse().ok()
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Layer {
    pub(crate) id: String,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default, rename = "diff-size")]
    pub(crate) size: Option<u64>,
    #[serde(default)]
    pub(crate) created: Option<Timestamp>,
    #[serde(default, rename = "diff-digest")]
    content: Option<String>,
}

impl Layer {
    /// The digest of its content; none for what a working container wrote so far.
    pub(crate) fn content(&self) -> Option<Digest> {
        self.content.as_ref()?.parse().ok()
    }

    /// The layer it lies on.
    pub(crate) fn parent(&self) -> Option<&str> {
        self.parent.as_deref().filter(|parent| !parent.is_empty())
    }
}

#[derive(Debug, Deserialize)]
struct Container {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    layer: String,
}

/// What tells one written state of a file from the next.
type Stamp = (u64, i64, i64, i64);

/// The records of one file, and which state of it they are of.
type Known<T> = Mutex<Option<(Stamp, Arc<Vec<T>>)>>;

/// The store's folders and what was last read of them.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    driver: Driver,
    images: Known<Record>,
    layers: Known<Layer>,
}

impl Layout {
    pub(crate) const fn new(root: PathBuf, driver: Driver) -> Self {
        Self { root, driver, images: Mutex::new(None), layers: Mutex::new(None) }
    }

    fn folder(&self, kind: &str) -> PathBuf {
        self.root.join(format!("{}-{kind}", self.driver.storage_name()))
    }

    /// All images of the store.
    pub(crate) fn records(&self) -> Result<Arc<Vec<Record>>, ImageError> {
        read(&self.folder("images").join("images.json"), &self.images)
    }

    /// The names of all working containers: those of builds under way, and those that killed
    /// ones left.
    pub(crate) fn containers(&self) -> Result<Vec<String>, ImageError> {
        let all = self.all_containers()?;
        Ok(all.iter().flat_map(|container| container.names.clone()).collect())
    }

    /// The layers into which working containers write.
    pub(crate) fn written(&self) -> Result<Vec<String>, ImageError> {
        Ok(self.all_containers()?.iter().map(|container| container.layer.clone()).collect())
    }

    fn all_containers(&self) -> Result<Arc<Vec<Container>>, ImageError> {
        let known = Mutex::new(None);
        read(&self.folder("containers").join("containers.json"), &known)
    }

    /// The record that `image` means now.
    pub(crate) fn find(&self, image: &ImageRef) -> Result<Option<Record>, ImageError> {
        let records = self.records()?;
        if let Some(digest) = image.digest() {
            return Ok(records.iter().find(|record| record.has_digest(digest)).cloned());
        }
        for name in name::candidates(image) {
            if let Some(record) = records.iter().find(|record| record.names.contains(&name)) {
                return Ok(Some(record.clone()));
            }
        }
        Ok(None)
    }

    /// The image's configuration.
    pub(crate) fn config(&self, record: &Record) -> Result<ImageConfig, ImageError> {
        // Names that do not look like plain file names are stored in base 64 with a `=` before.
        let file = format!("={}", STANDARD.encode(format!("sha256:{}", record.id)));
        let path = self.folder("images").join(&record.id).join(file);
        let bytes = read_capped(&path)?;
        ImageConfig::parse(&bytes)
            .map_err(|error| ImageError::Damaged { path, reason: error.to_string() })
    }

    /// The image's layers from top to bottom: id and bytes of content.
    pub(crate) fn layers(&self, record: &Record) -> Result<Vec<(String, u64)>, ImageError> {
        let path = self.folder("layers").join("layers.json");
        let all = self.all_layers()?;
        let mut chain = Vec::new();
        let mut next = (!record.layer.is_empty()).then(|| record.layer.clone());
        while let Some(id) = next {
            let layer = all.iter().find(|layer| layer.id == id);
            let (Some(layer), true) = (layer, chain.len() < LAYERS_MAX) else {
                let reason = format!("layer `{id}` of image `{}` is not there", record.id);
                return Err(ImageError::Damaged { path, reason });
            };
            chain.push((id, layer.size.unwrap_or(0)));
            next = layer.parent().map(str::to_owned);
        }
        Ok(chain)
    }

    /// Every layer of the store.
    pub(crate) fn all_layers(&self) -> Result<Arc<Vec<Layer>>, ImageError> {
        read(&self.folder("layers").join("layers.json"), &self.layers)
    }

    /// The folders to stack for the image, from top to bottom. For a store that copies, one
    /// folder with everything.
    pub(crate) fn folders(&self, record: &Record) -> Result<Vec<PathBuf>, ImageError> {
        let chain = self.layers(record)?;
        let check = |folder: PathBuf| {
            if folder.is_dir() {
                return Ok(folder);
            }
            let reason = "the layer's folder is not there".to_owned();
            Err(ImageError::Damaged { path: folder, reason })
        };
        match self.driver {
            Driver::Copy => {
                let top = chain.first().map(|(id, _)| self.root.join("vfs/dir").join(id));
                top.into_iter().map(check).collect()
            }
            Driver::Overlay | Driver::FuseOverlay => chain
                .iter()
                .map(|(id, _)| {
                    let layer = self.root.join("overlay").join(id);
                    // Short links exist because the kernel bounds the length of all names.
                    let link = fs::read_to_string(layer.join("link")).ok();
                    let short = link.map(|link| self.root.join("overlay/l").join(link.trim()));
                    check(short.filter(|path| path.is_dir()).unwrap_or_else(|| layer.join("diff")))
                })
                .collect(),
        }
    }
}

/// Reads a list of records, or remembers it when the file did not change since.
fn read<T: serde::de::DeserializeOwned>(
    path: &Path,
    known: &Known<T>,
) -> Result<Arc<Vec<T>>, ImageError> {
    let Ok(stat) = rustix::fs::stat(path) else {
        // A store is without this file until the first image comes.
        return Ok(Arc::new(Vec::new()));
    };
    let stamp = (
        stat.st_ino,
        stat.st_mtime,
        i64::from_ne_bytes(stat.st_mtime_nsec.to_ne_bytes()),
        stat.st_size,
    );
    let mut known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((seen, records)) = known.as_ref()
        && *seen == stamp
    {
        return Ok(records.clone());
    }
    let bytes = read_capped(path)?;
    let records: Vec<T> = serde_json::from_slice(&bytes).map_err(|error| ImageError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let records = Arc::new(records);
    *known = Some((stamp, records.clone()));
    Ok(records)
}

fn read_capped(path: &Path) -> Result<Vec<u8>, ImageError> {
    use std::io::Read as _;
    let file = fs::File::open(path).map_err(ImageError::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(ImageError::io("read", path))?;
    Ok(bytes)
}
