//! `updraft replicas`: what each replica does and uses, and how the last one ended.

use anyhow::{Result, bail};
use jiff::{SignedDuration, Timestamp};
use updraft_api::client::Client;
use updraft_api::wire;
use updraft_model::OwnerName;

use crate::cli::Replicas;
use crate::output::{Output, Tone};

/// How many of the last lines of a replica that ended are shown.
const TAIL: usize = 3;

pub(crate) async fn run(client: &Client, command: Replicas, output: Output) -> Result<()> {
    let (owner, function) = chosen(command)?;
    let functions = client.replicas(owner.as_ref(), function.as_deref()).await?;
    if output.is_json() {
        return output.json(&functions);
    }
    if functions.is_empty() {
        return output.line("no functions yet; `updraft new --lang python hello` starts one");
    }
    let now = Timestamp::now();
    let rows: Vec<_> = functions.iter().flat_map(|function| rows(function, now)).collect();
    let heading =
        ["FUNCTION", "REPLICA", "STATE", "AGE", "RESTARTS", "CALLS", "CPU", "MEMORY", "ADDRESS"];
    output.table(&heading, &rows)?;
    for function in &functions {
        tell_end(function, now, output)?;
    }
    Ok(())
}

/// `OWNER/NAME` is the function of an owner; anything else is a visible name, unless an owner is
/// given beside it.
fn chosen(command: Replicas) -> Result<(Option<OwnerName>, Option<String>)> {
    let mut owner = command.owner.map(OwnerName::new).transpose()?;
    let Some(words) = command.function else { return Ok((owner, None)) };
    let own_name = match words.split_once('/') {
        Some((named, name)) => {
            let named = OwnerName::new(named)?;
            if owner.as_ref().is_some_and(|owner| *owner != named) {
                bail!("`{words}` is not a function of the owner that --owner names");
            }
            owner = Some(named);
            name.to_owned()
        }
        None => words,
    };
    let visible = owner.as_ref().map_or(own_name.clone(), |owner| format!("{owner}-{own_name}"));
    Ok((owner, Some(visible)))
}

fn name(function: &wire::FunctionReplicas) -> &str {
    // Most functions live in the default namespace, which nobody wants to read again and again.
    function.function.strip_suffix(".openfaas-fn").unwrap_or(&function.function)
}

fn rows(function: &wire::FunctionReplicas, now: Timestamp) -> Vec<Vec<String>> {
    let nothing = || "-".to_owned();
    let row = |replica: Option<&wire::ReplicaDetail>| {
        let number = |text: Option<String>| text.unwrap_or_else(nothing);
        vec![
            name(function).to_owned(),
            replica.map_or_else(nothing, |replica| replica.name.clone()),
            replica.map_or_else(|| absent(function).to_owned(), |replica| replica.state.clone()),
            replica.map_or_else(nothing, |replica| age(now.duration_since(replica.started_at))),
            function.restarts.to_string(),
            replica.map_or_else(nothing, |replica| replica.in_flight.to_string()),
            number(replica.and_then(|replica| Some(format!("{:.2}s", replica.cpu_seconds?)))),
            number(replica.and_then(|replica| Some(mebibytes(replica.memory_bytes?)))),
            number(replica.and_then(|replica| Some(replica.address?.to_string()))),
        ]
    };
    if function.replicas.is_empty() {
        return vec![row(None)];
    }
    function.replicas.iter().map(|replica| row(Some(replica))).collect()
}

/// The word for a function without replicas: one whose next start is held back does not sleep.
fn absent(function: &wire::FunctionReplicas) -> &'static str {
    let is_held = function.trouble.as_ref().is_some_and(|trouble| trouble.next_start.is_some());
    if is_held { "waiting" } else { "asleep" }
}

fn tell_end(function: &wire::FunctionReplicas, now: Timestamp, output: Output) -> Result<()> {
    if let Some(exit) = &function.last_exit {
        let ago = age(now.duration_since(exit.at));
        let text = format!("{}: {} ({}, {ago} ago)", name(function), exit.reason, exit.replica);
        output.line(&output.tone(Tone::Bad, &text))?;
        let skipped = exit.log_tail.len().saturating_sub(TAIL);
        for line in exit.log_tail.iter().skip(skipped) {
            output.line(&output.tone(Tone::Quiet, &format!("  {line}")))?;
        }
    }
    if let Some(trouble) = &function.trouble {
        let next = trouble
            .next_start
            .map(|at| format!(", the next start in {}", age(at.duration_since(now))));
        let (failures, next) = (trouble.failures, next.unwrap_or_default());
        let text = format!("{}: {failures} failures in a row{next}", name(function));
        output.line(&output.tone(Tone::Bad, &text))?;
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}Mi", bytes as f64 / f64::from(1 << 20))
}

/// The largest unit that tells enough: `45s`, `12m`, `7h`, `3d`.
fn age(age: SignedDuration) -> String {
    match age.as_secs().max(0) {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7_200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_the_unit_that_says_enough() {
        let told = [-5, 0, 119, 120, 7_199, 7_200, 172_800].map(SignedDuration::from_secs);
        let told = told.map(age);
        assert_eq!(told, ["0s", "0s", "119s", "2m", "119m", "2h", "2d"]);
    }

    #[test]
    fn what_waits_for_its_next_start_is_not_said_to_sleep() {
        let now = Timestamp::UNIX_EPOCH;
        let mut function = wire::FunctionReplicas {
            function: "demo-hello.openfaas-fn".to_owned(),
            owner: None,
            restarts: 7,
            last_exit: None,
            trouble: None,
            replicas: Vec::new(),
        };
        let state = |function: &wire::FunctionReplicas| rows(function, now)[0][2].clone();
        assert_eq!(state(&function), "asleep");
        function.trouble = Some(wire::Trouble { failures: 7, next_start: Some(now) });
        assert_eq!(state(&function), "waiting");
    }

    #[test]
    fn a_function_is_meant_by_every_name_it_has() {
        let chosen = |function: Option<&str>, owner: Option<&str>| {
            let chosen = super::chosen(Replicas {
                function: function.map(str::to_owned),
                owner: owner.map(str::to_owned),
            });
            chosen.map(|(owner, name)| (owner.map(|owner| owner.to_string()), name)).ok()
        };
        let both = |owner: &str, name: &str| Some((Some(owner.to_owned()), Some(name.to_owned())));
        assert_eq!(chosen(Some("demo/hello"), None), both("demo", "demo-hello"));
        assert_eq!(chosen(Some("hello"), Some("demo")), both("demo", "demo-hello"));
        assert_eq!(chosen(Some("figlet"), None), Some((None, Some("figlet".to_owned()))));
        assert_eq!(chosen(Some("demo/hello"), Some("other")), None);
        assert_eq!(chosen(None, None), Some((None, None)));
    }
}
