//! Layers that belong to no image: what a fetch left that was ended between two of its layers.
//!
//! `buildah` has no command for them. But it takes an image over without reading the layers that
//! the store has already. So such layers are given an image, a description without a single byte
//! of content, and go with it like any other. Nothing of the store's own files is written here.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use updraft_model::Digest;

use crate::layout::Layer;
use crate::store::{ImageStore, OPEN_POLICY, SHORT};
use crate::{ImageError, architecture, process};

/// Folder below the run root in which descriptions lie for a moment.
const FOLDER: &str = "updraft-loose";

impl ImageStore {
    /// Removes up to `most` stacks of layers that no image and no working container has and that
    /// are older than a lease; gives back how many bytes went. Does nothing while something
    /// builds or fetches, whose layers they may be.
    ///
    /// # Errors
    /// The store's lists cannot be read, or a description cannot be written.
    pub async fn remove_loose(&self, most: usize) -> Result<u64, ImageError> {
        let Ok(_alone) = self.inner().work.try_write() else { return Ok(0) };
        let stacks = self.loose()?;
        let mut bytes = 0;
        for stack in stacks.into_iter().take(most) {
            match self.remove_stack(&stack).await {
                Ok(()) => bytes += stack.bytes,
                // Tried again with the next collection.
                Err(error @ ImageError::Program { .. }) => {
                    tracing::debug!(%error, "layers of no image stay");
                }
                Err(other) => return Err(other),
            }
        }
        Ok(bytes)
    }

    fn loose(&self) -> Result<Vec<Stack>, ImageError> {
        let layout = &self.inner().layout;
        let before = Timestamp::now().checked_sub(self.inner().options.lease);
        let before = before.unwrap_or(Timestamp::UNIX_EPOCH);
        let layers = layout.all_layers()?;
        let records = layout.records()?;
        let tops = records.iter().map(|record| record.layer.clone());
        let tops: Vec<String> = tops.chain(layout.written()?).collect();
        Ok(stacks(&layers, &tops, before))
    }

    async fn remove_stack(&self, stack: &Stack) -> Result<(), ImageError> {
        let folder = Folder(self.run_root().join(FOLDER));
        let id = stack.describe(&folder.0)?;
        let mut command = self.command();
        command.args(["pull", "--quiet", "--signature-policy"]).arg(folder.0.join("policy"));
        command.arg(format!("dir:{}", folder.0.display()));
        let action = "take over layers of no image";
        process::output(command, "buildah", action, SHORT).await?;
        let mut command = self.command();
        command.args(["rmi", &id.hex()]);
        let action = "remove layers of no image";
        process::output(command, "buildah", action, SHORT).await.map(drop)
    }
}

/// A layer on which no other lies, with those below it.
#[derive(Debug, PartialEq, Eq)]
struct Stack {
    /// The digests of their content, from the bottom to the top.
    contents: Vec<Digest>,
    /// What comes free.
    bytes: u64,
}

impl Stack {
    /// Writes an image of these layers, without them; gives its id.
    fn describe(&self, folder: &Path) -> Result<Digest, ImageError> {
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": self.contents },
            // Unlike any other image's, or removing this one would take along those below it that
            // have no name.
            "history": self.contents.iter().map(|_| json!({ "created_by": FOLDER })).collect::<Vec<_>>(),
        })
        .to_string();
        let id = Digest::from_bytes(Sha256::digest(&config).into());
        let kind = |what: &str| format!("application/vnd.docker.{what}");
        let layers = self.contents.iter().map(|content| {
            json!({ "mediaType": kind("image.rootfs.diff.tar"), "size": 0, "digest": content })
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind("distribution.manifest.v2+json"),
            "config": {
                "mediaType": kind("container.image.v1+json"),
                "size": config.len(),
                "digest": id,
            },
            "layers": layers.collect::<Vec<_>>(),
        })
        .to_string();
        fs::create_dir_all(folder).map_err(ImageError::io("create", folder))?;
        for (name, content) in [
            (id.hex().as_str(), config.as_str()),
            ("manifest.json", &manifest),
            ("version", "Directory Transport Version: 1.1\n"),
            ("policy", OPEN_POLICY),
        ] {
            let path = folder.join(name);
            fs::write(&path, content).map_err(ImageError::io("write", path))?;
        }
        Ok(id)
    }
}

/// A folder that goes with this.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_dir_all(&self.0) {
            tracing::debug!(%cause, "a description of layers stays");
        }
    }
}

/// The stacks of which nothing at the top belongs to what is in use, in the order of `layers`.
fn stacks(layers: &[Layer], tops: &[String], before: Timestamp) -> Vec<Stack> {
    let by_id: HashMap<&str, &Layer> =
        layers.iter().map(|layer| (layer.id.as_str(), layer)).collect();
    let from = |top: &str| {
        let mut seen = HashSet::new();
        let first = by_id.get(top).copied();
        std::iter::successors(first, |layer| by_id.get(layer.parent()?).copied())
            // A list that leads in a circle ends all the same.
            .take_while(|layer| seen.insert(layer.id.as_str()))
            .collect::<Vec<&Layer>>()
    };
    let used: HashSet<&str> =
        tops.iter().flat_map(|top| from(top)).map(|layer| layer.id.as_str()).collect();
    let below: HashSet<&str> = layers.iter().filter_map(Layer::parent).collect();
    let is_loose = |layer: &&Layer| {
        !used.contains(layer.id.as_str())
            && !below.contains(layer.id.as_str())
            && layer.created.is_some_and(|created| created < before)
    };
    let stack = |layer: &Layer| {
        let mut chain = from(&layer.id);
        chain.reverse();
        let contents = chain.iter().map(|layer| layer.content()).collect::<Option<Vec<_>>>()?;
        let own = chain.iter().filter(|layer| !used.contains(layer.id.as_str()));
        let bytes = own.filter_map(|layer| layer.size).sum();
        let named = chain.iter().map(|layer| layer.id.clone()).eq(names(&contents));
        named.then_some(Stack { contents, bytes })
    };
    layers.iter().filter(is_loose).filter_map(stack).collect()
}

/// How a store names layers of this content, each on the one before: as the libraries of `buildah`
/// and `podman` do for every layer of an image. One by another name would not be found again.
fn names(contents: &[Digest]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for content in contents {
        let name = match names.last() {
            None => content.hex(),
            Some(below) => {
                let both = format!("{below}+{}", content.hex());
                Digest::from_bytes(Sha256::digest(both).into()).hex()
            }
        };
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    /// A stack of layers of these contents, as the store lists them.
    fn listed(contents: &[u8]) -> Vec<Layer> {
        let contents: Vec<Digest> = contents.iter().map(|number| digest(*number)).collect();
        let names = names(&contents);
        let layer = |(index, content): (usize, &Digest)| {
            let parent = index.checked_sub(1).map(|below| names[below].clone());
            let record = json!({
                "id": names[index], "parent": parent, "created": "2026-01-01T00:00:00Z",
                "diff-digest": content, "diff-size": 10,
            });
            serde_json::from_value(record).unwrap()
        };
        contents.iter().enumerate().map(layer).collect()
    }

    fn found(layers: &[Layer], tops: &[&str]) -> Vec<(Vec<Digest>, u64)> {
        let tops: Vec<String> = tops.iter().map(|top| (*top).to_owned()).collect();
        let stacks = stacks(layers, &tops, Timestamp::now());
        stacks.into_iter().map(|stack| (stack.contents, stack.bytes)).collect()
    }

    #[test]
    fn layers_are_named_as_the_store_names_them() {
        // As `buildah` 1.28 listed an image of two small files.
        let contents = [
            "sha256:65a48fdba36f36bbafb1ba242b094ae96da29d6545b977aa4dc507f792f2904c",
            "sha256:f8e0c13896e57c2879e08716aa5a02470136007f5cce98242227b01a05acadad",
        ]
        .map(|text| text.parse().unwrap());
        assert_eq!(
            names(&contents),
            [
                "65a48fdba36f36bbafb1ba242b094ae96da29d6545b977aa4dc507f792f2904c",
                "279497efd5f5e71b8646ef9c52507a9f17b966cbd486dfb53b99d16208e4b857",
            ]
        );
    }

    #[test]
    fn only_what_no_image_and_no_container_stands_on_is_loose() {
        let three = listed(&[1, 2, 3]);
        let all = [1, 2, 3].map(digest).to_vec();
        assert_eq!(found(&three, &[]), [(all.clone(), 30)]);
        assert_eq!(found(&three, &[&three[2].id]), []);
        // An image of the two below: only the top is loose, and only its bytes come free.
        assert_eq!(found(&three, &[&three[1].id]), [(all, 10)]);
        let (mut young, mut other) = (listed(&[1, 2, 3]), listed(&[1, 2, 3]));
        young[2].created = Timestamp::now().checked_add(std::time::Duration::from_hours(1)).ok();
        assert_eq!(found(&young, &[]), [], "it may be of what is being fetched");
        other[2].id = "another".to_owned();
        assert_eq!(found(&other, &[]), [], "it could not be found again");
        let written =
            json!({ "id": "new", "parent": three[0].id, "created": "2026-01-01T00:00:00Z" });
        let written = [three[0].clone(), serde_json::from_value(written).unwrap()];
        assert_eq!(found(&written, &[]), [], "a container wrote it and has not ended it");
    }

    #[test]
    fn a_list_that_leads_in_a_circle_or_nowhere_has_an_end() {
        let mut circle = listed(&[1, 2]);
        circle.extend(listed(&[1, 2, 3]).pop());
        circle[0] = serde_json::from_value(json!({
            "id": circle[0].id, "parent": circle[1].id, "created": "2026-01-01T00:00:00Z",
            "diff-digest": digest(1),
        }))
        .unwrap();
        assert_eq!(found(&circle, &[]).len(), 1);
        assert_eq!(found(&listed(&[1, 2])[1..], &["nothing"]), []);
    }
}
