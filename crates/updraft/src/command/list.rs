//! `updraft list`: functions and what they are doing.

use anyhow::Result;
use updraft_api::client::Client;
use updraft_api::wire;
use updraft_model::OwnerName;

use crate::cli::List;
use crate::output::{Output, Tone};

pub(crate) async fn run(client: &Client, command: List, output: Output) -> Result<()> {
    let owner = command.owner.map(OwnerName::new).transpose()?;
    let functions = client.functions(owner.as_ref()).await?;
    if output.is_json() {
        return output.json(&functions);
    }
    if functions.is_empty() {
        return output.line("no functions yet; `updraft new --lang python hello` starts one");
    }
    if command.wide {
        let rows: Vec<_> = functions.iter().map(wide_row).collect();
        let heading =
            ["FUNCTION", "REPLICAS", "MIN", "MAX", "LOAD", "STOPS AFTER", "LAST DECISION", "URL"];
        output.table(&heading, &rows)?;
    } else {
        let rows: Vec<_> = functions.iter().map(row).collect();
        output.table(&["FUNCTION", "REPLICAS", "RELEASE", "COMMIT", "URL"], &rows)?;
    }
    for function in &functions {
        for warning in &function.warnings {
            output.line(&format!("{}: warning: {warning}", full_name(function)))?;
        }
        if let Some(message) = &function.message {
            output.line(&output.tone(Tone::Bad, &format!("{}: {message}", full_name(function))))?;
        }
        if command.replicas {
            for replica in &function.ready {
                output.line(&format!(
                    "{}: {} at {}",
                    full_name(function),
                    replica.name,
                    replica.address
                ))?;
            }
        }
    }
    Ok(())
}

fn row(function: &wire::Function) -> Vec<String> {
    let release = function.release.map_or_else(
        || "-".to_owned(),
        |number| {
            let pinned = if function.pinned { " (pinned)" } else { "" };
            format!("v{number}{pinned}")
        },
    );
    let commit = function.commit.as_deref().unwrap_or("-");
    vec![
        full_name(function),
        format!("{}/{}", function.available_replicas, function.replicas),
        release,
        commit.chars().take(7).collect(),
        function.url.clone(),
    ]
}

fn wide_row(function: &wire::Function) -> Vec<String> {
    let none = || "-".to_owned();
    let scaling = function.scaling.as_ref();
    let number = |of: fn(&wire::Scaling) -> u32| scaling.map_or_else(none, |it| of(it).to_string());
    let load = |target: &wire::Target| {
        format!("{} {:.1} of {}", target.mode, target.measured, target.load)
    };
    let loads: Vec<_> = scaling.iter().flat_map(|scaling| &scaling.targets).map(load).collect();
    let last = scaling.and_then(|scaling| scaling.last.as_ref());
    vec![
        full_name(function),
        format!("{}/{}", function.available_replicas, function.replicas),
        number(|scaling| scaling.min),
        number(|scaling| scaling.max),
        if loads.is_empty() { none() } else { loads.join(", ") },
        scaling.and_then(|scaling| scaling.zero_after.clone()).unwrap_or_else(none),
        last.map_or_else(none, |last| format!("{} at {}", last.text, last.at.strftime("%F %TZ"))),
        function.url.clone(),
    ]
}

fn full_name(function: &wire::Function) -> String {
    match &function.owner {
        Some(owner) => format!("{owner}/{}", function.name),
        None => function.name.to_string(),
    }
}
