//! `updraft builds`: builds, or the log of one.

use std::io::Write;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use updraft_api::client::{Client, ListOptions};
use updraft_api::wire;
use updraft_model::OwnerName;

use crate::cli::Builds;
use crate::output::Output;

pub(crate) async fn run(client: &Client, command: Builds, output: Output) -> Result<()> {
    if let Some(id) = &command.build {
        return log(client, id).await;
    }
    let owner = command.owner.map(OwnerName::new).transpose()?;
    let builds = client.builds(&ListOptions { owner, ..ListOptions::default() }).await?;
    if output.is_json() {
        return output.json(&builds);
    }
    let rows: Vec<_> = builds.iter().map(row).collect();
    output.table(&["BUILD", "FUNCTION", "STATE", "STARTED", "TOOK"], &rows)
}

fn row(build: &wire::Build) -> Vec<String> {
    let took = build.finished_at.map_or_else(String::new, |finished| {
        let duration = finished.duration_since(build.started_at);
        format!("{:.1} s", duration.as_secs_f64())
    });
    let state = match &build.reason {
        Some(reason) => format!("{}: {reason}", build.state),
        None => build.state.to_string(),
    };
    vec![
        build.id.to_string(),
        format!("{}/{}", build.owner, build.function),
        state,
        build.started_at.to_string(),
        took,
    ]
}

/// Prints a build's log, going on while it builds.
async fn log(client: &Client, id: &str) -> Result<()> {
    let id = id
        .parse()
        .ok()
        .with_context(|| format!("`{id}` is no build; `updraft builds` lists them"))?;
    let mut chunks = client.build_log(id, true).await?;
    let mut stdout = std::io::stdout();
    while let Some(chunk) = chunks.try_next().await? {
        stdout.write_all(&chunk)?;
        stdout.flush()?;
    }
    Ok(())
}
