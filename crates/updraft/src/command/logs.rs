//! `updraft logs`: what a function writes.

use std::time::SystemTime;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use updraft_api::client::{Client, LogOptions};
use updraft_model::parse_duration;

use crate::cli::Logs;
use crate::command::function::identify;
use crate::output::{Output, Tone};

pub(crate) async fn run(client: &Client, command: Logs, output: Output) -> Result<()> {
    let function = identify(client, &command.function).await?;
    let options = LogOptions {
        follow: command.follow,
        since: command.since.as_deref().map(moment).transpose()?,
        tail: command.tail,
        instance: None,
    };
    let mut lines = client.logs(&function.owner, &function.name, &options).await?;
    while let Some(line) = lines.try_next().await? {
        if output.is_json() {
            output.line(&serde_json::to_string(&line)?)?;
        } else {
            let origin = output.tone(Tone::Quiet, &format!("{} {}", line.timestamp, line.instance));
            output.line(&format!("{origin} {}", line.text))?;
        }
    }
    Ok(())
}

/// A moment, or so long ago.
fn moment(text: &str) -> Result<Timestamp> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let ago = parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
    let moment = ago.with_context(|| {
        format!("`{text}` is no time; write for instance 2026-11-20T10:00:00Z or 10m")
    })?;
    Ok(Timestamp::try_from(moment)?)
}
