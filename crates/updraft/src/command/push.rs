//! `updraft push`: the working tree goes to the server as it is, and the story of what becomes
//! of it comes back.

use std::path::Path;

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use updraft_api::client::Client;
use updraft_model::{OwnerName, RepositoryName};
use updraft_pipeline::{PushEventKind, render};
use updraft_source::git::ContentLimits;
use updraft_source::git::upload::packed_body;

use crate::cli::Push;
use crate::output::Output;

pub(crate) async fn run(client: &Client, command: Push, output: Output) -> Result<()> {
    let owner = OwnerName::new(command.owner)?;
    let folder = command
        .folder
        .canonicalize()
        .with_context(|| format!("cannot open {}", command.folder.display()))?;
    let repository = match command.repo {
        Some(name) => RepositoryName::new(name)?,
        None => repository_of(&folder)?,
    };
    let (body, packing) = packed_body(folder, ContentLimits::default());
    let pushed = client.upload(&owner, &repository, body).await;
    // Why packing broke off says more than what the server made of the rest.
    packing.await.context("packing the working tree stopped")??;
    let push = pushed?;

    let mut events = client.push_events(push, 1).await?;
    while let Some(event) = events.try_next().await? {
        if output.is_json() {
            output.line(&serde_json::to_string(&event)?)?;
        } else {
            render::terminal(&event).iter().try_for_each(|line| output.line(line))?;
        }
        if let PushEventKind::Finished { verdict } = &event.kind {
            if verdict.is_success() {
                return Ok(());
            }
            bail!("{}", verdict.summary);
        }
    }
    bail!("the server stopped before the push was over; it goes on with the next start")
}

/// The folder's own name, as a repository is called after the folder it is cloned to.
fn repository_of(folder: &Path) -> Result<RepositoryName> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    RepositoryName::new(name).with_context(|| {
        format!("{} cannot name a repository; give a name with --repo", folder.display())
    })
}
