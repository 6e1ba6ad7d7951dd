//! `updraft schedules`: what is called by the clock.

use anyhow::Result;
use updraft_api::client::Client;
use updraft_api::wire;
use updraft_model::OwnerName;

use crate::cli::Schedules;
use crate::output::{Output, Tone};

pub(crate) async fn run(client: &Client, command: Schedules, output: Output) -> Result<()> {
    let owner = command.owner.map(OwnerName::new).transpose()?;
    let schedules = client.schedules(owner.as_ref()).await?;
    if output.is_json() {
        return output.json(&schedules);
    }
    if schedules.is_empty() {
        return output.line(
            "no schedules; annotations `topic: cron-function` and `schedule: \"@hourly\"` make one",
        );
    }
    let rows: Vec<_> = schedules.iter().map(row).collect();
    output.table(&["FUNCTION", "SCHEDULE", "ZONE", "NEXT", "LAST", "OUTCOME"], &rows)?;
    for schedule in &schedules {
        if let Some(problem) = &schedule.problem {
            let text = format!("{}: `{}`: {problem}", name(schedule), schedule.schedule);
            output.line(&output.tone(Tone::Bad, &text))?;
        }
    }
    Ok(())
}

fn name(schedule: &wire::Schedule) -> &str {
    schedule.function.strip_suffix(".openfaas-fn").unwrap_or(&schedule.function)
}

fn row(schedule: &wire::Schedule) -> Vec<String> {
    let absent = || "-".to_owned();
    let last = schedule.runs.first();
    vec![
        name(schedule).to_owned(),
        schedule.schedule.clone(),
        schedule.timezone.clone(),
        schedule.next.map_or_else(absent, |next| next.to_string()),
        last.map_or_else(absent, |run| run.due.to_string()),
        last.map_or_else(absent, outcome),
    ]
}

fn outcome(run: &wire::ScheduledRun) -> String {
    match (&run.skipped, run.state, run.status) {
        (Some(reason), ..) => format!("skipped: {reason}"),
        (None, Some(state), Some(status)) => format!("{state}, {status}"),
        (None, Some(state), None) => state.to_string(),
        (None, None, _) => "called".to_owned(),
    }
}
