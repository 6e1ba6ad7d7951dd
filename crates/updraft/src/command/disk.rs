//! `updraft disk`, `updraft images list` and `updraft images prune` of a server: what uses the
//! disk, why, and what of it can go.

use anyhow::Result;
use updraft_api::client::Client;
use updraft_api::wire::{CollectedImage, KeptImage, UsedBy};

use crate::output::Output;

pub(crate) async fn run(client: &Client, output: Output) -> Result<()> {
    let disk = client.disk().await?;
    if output.is_json() {
        return output.json(&disk);
    }
    let row = |what: &str, bytes: u64, note: String| vec![what.to_owned(), size(bytes), note];
    let most =
        |bytes: Option<u64>| bytes.map_or_else(String::new, |most| format!("of {}", size(most)));
    let mut rows = vec![
        row("images", disk.images_bytes, most(disk.images_budget_bytes)),
        row("  not needed", disk.unneeded_bytes, String::new()),
        row("  build cache", disk.cache_bytes, most(Some(disk.cache_budget_bytes))),
    ];
    if disk.loose_bytes > 0 {
        rows.push(row("  of no image", disk.loose_bytes, String::new()));
    }
    rows.extend(disk.folders.iter().map(|(what, bytes)| row(what, *bytes, String::new())));
    let wanted = format!("at least {}", size(disk.free_bytes_wanted));
    rows.push(row("free", disk.free_bytes, wanted));
    output.table(&["WHAT", "SIZE", ""], &rows)
}

pub(crate) async fn images(client: &Client, output: Output) -> Result<()> {
    let mut images = client.images().await?;
    if output.is_json() {
        return output.json(&images);
    }
    images.sort_by(|one, other| one.names.cmp(&other.names));
    let row = |image: &KeptImage, name: String| {
        let used_by = match image.used_by {
            UsedBy::Functions => "functions",
            UsedBy::Templates => "templates",
            UsedBy::Nothing => "-",
            UsedBy::Builds => "builds",
        };
        let last_used = image.last_used.strftime("%Y-%m-%d %H:%M").to_string();
        vec![name, image.id.short(), size(image.size_bytes), used_by.to_owned(), last_used]
    };
    let rows: Vec<_> = images
        .iter()
        .flat_map(|image| image.names.iter().map(move |name| row(image, name.to_string())))
        .collect();
    output.table(&["IMAGE", "ID", "SIZE", "USED BY", "LAST USED"], &rows)
}

pub(crate) async fn prune(client: &Client, dry_run: bool, output: Output) -> Result<()> {
    let gone = client.prune_images(dry_run).await?;
    if output.is_json() {
        return output.json(&gone);
    }
    let row = |image: &CollectedImage| {
        let name =
            image.names.first().map_or_else(|| "(build step)".to_owned(), ToString::to_string);
        vec![name, image.id.short(), size(image.bytes), image.reason.clone()]
    };
    if !gone.is_empty() {
        output.table(&["IMAGE", "ID", "SIZE", "WHY"], &gone.iter().map(row).collect::<Vec<_>>())?;
    }
    let (count, bytes) = (gone.len(), size(gone.iter().map(|image| image.bytes).sum()));
    let verb = if dry_run { "would be removed" } else { "removed" };
    output.line(&format!("{count} images {verb}, {bytes}"))
}

fn size(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
