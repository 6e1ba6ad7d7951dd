//! `updraft releases` and `updraft rollback`: what was released, and which release is live.

use anyhow::Result;
use updraft_api::client::Client;
use updraft_api::wire;

use crate::cli::{OneFunction, Rollback};
use crate::command::function::identify;
use crate::output::Output;

pub(crate) async fn list(client: &Client, command: OneFunction, output: Output) -> Result<()> {
    let function = identify(client, &command).await?;
    let releases = client.releases(&function.owner, &function.name).await?;
    if output.is_json() {
        return output.json(&releases);
    }
    let rows: Vec<_> = releases
        .iter()
        .map(|release| {
            let state = match (release.live, release.pinned) {
                (true, true) => "live, pinned",
                (true, false) => "live",
                _ if release.kept => "kept",
                _ => "image removed",
            };
            vec![
                format!("v{}", release.number),
                release.commit.chars().take(7).collect(),
                release.created_at.to_string(),
                state.to_owned(),
            ]
        })
        .collect();
    output.table(&["RELEASE", "COMMIT", "CREATED", ""], &rows)
}

pub(crate) async fn rollback(client: &Client, command: Rollback, output: Output) -> Result<()> {
    let function = identify(client, &command.function).await?;
    let target = match (command.unpin, command.to) {
        (true, _) => wire::Rollback::Unpin,
        (false, Some(number)) => wire::Rollback::To(number),
        (false, None) => wire::Rollback::Previous,
    };
    let release = client.rollback(&function.owner, &function.name, target).await?;
    if output.is_json() {
        return output.json(&release);
    }
    let (owner, name) = (&function.owner, &function.name);
    output.line(&format!("{owner}/{name} runs v{} now", release.number))?;
    if command.unpin {
        return Ok(());
    }
    output.line(&format!(
        "later pushes do not change it until `updraft rollback {owner}/{name} --unpin`"
    ))
}
