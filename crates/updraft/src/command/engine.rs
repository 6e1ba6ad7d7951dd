//! `updraft engine`: what runs the functions.

use anyhow::Result;
use updraft_api::client::Client;

use crate::cli::EngineCommand;
use crate::output::{Output, Tone};

pub(crate) async fn run(client: &Client, command: &EngineCommand, output: Output) -> Result<()> {
    let EngineCommand::Status = command;
    let engine = client.engine().await?;
    if output.is_json() {
        return output.json(&engine);
    }
    let width = engine.facts.iter().map(|fact| fact.subject.chars().count()).max().unwrap_or(0);
    for fact in &engine.facts {
        let mark = match fact.degraded {
            None => output.tone(Tone::Good, "ok      "),
            Some(_) => output.tone(Tone::Bad, "degraded"),
        };
        output.line(&format!("{mark} {:<width$}  {}", fact.subject, fact.found))?;
        if let Some(why) = fact.degraded.as_ref().filter(|why| **why != fact.found) {
            output.line(&format!("         {:<width$}  {why}", ""))?;
        }
    }
    Ok(())
}
