//! `updraft images`: the images kept on this machine, server or not.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use updraft_images::base::{self, BaseImage};
use updraft_images::{Image, ImageStore, ImageStoreOptions};
use updraft_model::ImageRef;

use crate::WATCHDOG;
use crate::cli::Images;
use crate::config::ImagesConfig;
use crate::data_dir::DataDir;
use crate::output::Output;

/// Opens the store of a data directory; the one way in, for the server too.
pub(crate) async fn open(data_dir: &DataDir) -> Result<ImageStore> {
    data_dir.note_volatile()?;
    let run_root = data_dir.volatile().join("containers");
    let options = ImageStoreOptions::new(data_dir.containers(), run_root);
    Ok(ImageStore::open(options).await?)
}

/// As [`open`], as the server is configured.
pub(crate) async fn open_with(data_dir: &DataDir, config: &ImagesConfig) -> Result<ImageStore> {
    data_dir.note_volatile()?;
    let run_root = data_dir.volatile().join("containers");
    let options = ImageStoreOptions::new(data_dir.containers(), run_root);
    let (free_bytes_min, lease) = (config.free, config.settle);
    Ok(ImageStore::open(ImageStoreOptions { free_bytes_min, lease, ..options }).await?)
}

pub(crate) async fn run(data_dir: &DataDir, command: Images, output: Output) -> Result<()> {
    if let Images::Watchdog { file } = &command {
        return write_watchdog(file);
    }
    let store = open(data_dir).await?;
    match command {
        Images::List => list(&store, output).await,
        Images::Prune { .. } => bail!("no server runs here, and only it knows what is needed"),
        Images::Load { file } => {
            let names = store.load(&file).await?;
            if output.is_json() {
                return output.json(&names);
            }
            names.iter().try_for_each(|name| output.line(&format!("loaded {name}")))
        }
        Images::Remove { image } => {
            let image: ImageRef = image.parse()?;
            if !store.remove(&image).await? {
                bail!("there is no image `{image}`; `updraft images list` shows them");
            }
            Ok(())
        }
        Images::Base { names, all } => make_base_images(&store, &names, all, output).await,
        Images::Watchdog { file } => write_watchdog(&file),
    }
}

/// Needs no store: the watchdog is a part of this program.
fn write_watchdog(file: &Path) -> Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o755);
    options
        .open(file)
        .and_then(|mut opened| opened.write_all(WATCHDOG))
        .with_context(|| format!("cannot write the watchdog to {}", file.display()))
}

async fn list(store: &ImageStore, output: Output) -> Result<()> {
    let images = store.list().await?;
    if output.is_json() {
        let images: Vec<_> = images
            .iter()
            .map(|image| {
                json!({
                    "id": image.id,
                    "names": image.names,
                    "size_bytes": image.size_bytes,
                    "created": image.created,
                })
            })
            .collect();
        return output.json(&images);
    }
    let row = |image: &Image, name: &ImageRef| {
        let size = image.size_bytes as f64 / f64::from(1 << 20);
        vec![name.to_string(), image.id.short(), format!("{size:.1} MiB")]
    };
    let rows: Vec<_> = images
        .iter()
        .flat_map(|image| image.names.iter().map(move |name| row(image, name)))
        .collect();
    output.table(&["IMAGE", "ID", "SIZE"], &rows)
}

async fn make_base_images(
    store: &ImageStore,
    names: &[String],
    all: bool,
    output: Output,
) -> Result<()> {
    let wanted: Vec<&BaseImage> = if all {
        base::CATALOGUE.iter().collect()
    } else {
        names.iter().map(|name| base_image(name)).collect::<Result<_>>()?
    };
    if wanted.is_empty() {
        return list_base_images(store, output).await;
    }
    for base in wanted {
        let image = store.ensure(&base.image(), &|line: &str| eprintln!("{line}")).await?;
        if !output.is_json() {
            output.line(&format!("{} is here: {}", base.name, image.id.short()))?;
        }
    }
    Ok(())
}

fn base_image(name: &str) -> Result<&'static BaseImage> {
    base::CATALOGUE.iter().find(|base| base.short_name() == name || base.name == name).with_context(
        || {
            let known: Vec<_> = base::CATALOGUE.iter().map(BaseImage::short_name).collect();
            format!("there is no base image `{name}`; there are {}", known.join(", "))
        },
    )
}

async fn list_base_images(store: &ImageStore, output: Output) -> Result<()> {
    let mut rows = Vec::new();
    let mut entries = Vec::new();
    for base in &base::CATALOGUE {
        let is_here = store.resolve(&base.image()).await?.is_some();
        entries.push(json!({"name": base.short_name(), "purpose": base.purpose, "here": is_here}));
        let state = if is_here { "here" } else { "made when needed" };
        rows.push(vec![base.short_name().to_owned(), base.purpose.to_owned(), state.to_owned()]);
    }
    if output.is_json() {
        return output.json(&entries);
    }
    output.table(&["BASE IMAGE", "PURPOSE", "STATE"], &rows)
}
