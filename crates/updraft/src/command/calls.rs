//! `updraft calls`: asynchronous calls and dead letters.

use std::io::Write;

use anyhow::{Context, Result};
use updraft_api::client::{CallOptions, Client};
use updraft_api::wire;
use updraft_model::{FunctionName, OwnerName};
use updraft_queue::{CallId, CallState};

use crate::cli::{Calls, ChosenCalls};
use crate::output::Output;

pub(crate) async fn run(client: &Client, command: Calls, output: Output) -> Result<()> {
    match command {
        Calls::List { chosen, state, dead, limit, before } => {
            let state = if dead { Some("dead".to_owned()) } else { state };
            let state = state.map(|state| state.parse()).transpose()?;
            let options = CallOptions { state, limit, before, ..options(chosen)? };
            list(client, &options, output).await
        }
        Calls::Show { call } => show(&client.async_call(&id(&call)?).await?, output),
        Calls::Result { call } => result(client, &id(&call)?, output).await,
        Calls::Cancel { call } => {
            client.cancel_call(&id(&call)?).await?;
            output.line(&format!("{call} is cancelled"))
        }
        Calls::Redrive { call: Some(call), .. } => {
            client.redrive_call(&id(&call)?).await?;
            output.line(&format!("{call} is made again"))
        }
        Calls::Redrive { call: None, chosen, .. } => {
            let calls = client.redrive_calls(&options(chosen)?).await?;
            if output.is_json() {
                return output.json(&wire::Redriven { calls });
            }
            output.line(&format!("{calls} dead letters are made again"))
        }
        Calls::Discard { call } => {
            client.discard_call(&id(&call)?).await?;
            output.line(&format!("{call} is forgotten"))
        }
        Calls::Key { owner } => {
            let owner = owner.map(OwnerName::new).transpose()?;
            let answer = client.callback_key(owner.as_ref()).await?;
            if output.is_json() {
                return output.json(&answer);
            }
            output.line(answer.key.expose())
        }
    }
}

fn id(text: &str) -> Result<CallId> {
    text.parse().with_context(|| format!("`{text}` is no call; `updraft calls list` shows them"))
}

/// `OWNER/NAME` is the function of an owner; anything else is passed on as it is.
fn options(chosen: ChosenCalls) -> Result<CallOptions> {
    let mut owner = chosen.owner.map(OwnerName::new).transpose()?;
    let function = match chosen.function {
        None => None,
        Some(text) => match text.split_once('/') {
            None => Some(text),
            Some((of, name)) => {
                let of = OwnerName::new(of)?;
                let visible = of.visible_name(&FunctionName::new(name)?)?;
                owner = Some(of);
                Some(visible.to_string())
            }
        },
    };
    Ok(CallOptions { function, owner, ..CallOptions::default() })
}

async fn list(client: &Client, options: &CallOptions, output: Output) -> Result<()> {
    let calls = client.calls(options).await?;
    if output.is_json() {
        return output.json(&calls);
    }
    let rows: Vec<_> = calls.iter().map(row).collect();
    output.table(&["CALL", "FUNCTION", "STATE", "ATTEMPTS", "STATUS", "ACCEPTED"], &rows)
}

fn row(call: &wire::Call) -> Vec<String> {
    let state = match (&call.reason, call.state) {
        (Some(reason), CallState::Dead) => format!("{}: {reason}", call.state),
        _ => call.state.to_string(),
    };
    vec![
        call.id.clone(),
        call.function.strip_suffix(".openfaas-fn").unwrap_or(&call.function).to_owned(),
        state,
        call.attempts.to_string(),
        call.status.map_or_else(String::new, |status| status.to_string()),
        call.created_at.to_string(),
    ]
}

fn show(call: &wire::Call, output: Output) -> Result<()> {
    if output.is_json() {
        return output.json(call);
    }
    let mut rows = vec![
        ("call", call.id.clone()),
        ("function", call.function.clone()),
        ("state", call.state.to_string()),
        ("request", format!("{} {} ({} bytes)", call.method, call.path, call.body_length)),
        ("accepted", call.created_at.to_string()),
        ("attempts", call.attempts.to_string()),
    ];
    let mut add = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    add("next attempt", call.next_attempt_at.map(|moment| moment.to_string()));
    add("ended", call.finished_at.map(|moment| moment.to_string()));
    add("status", call.status.map(|status| status.to_string()));
    add("reason", call.reason.clone());
    add("took", call.took_seconds.map(|took| format!("{took:.3} s")));
    if let Some(callback) = &call.callback {
        add("callback", Some(format!("{}: {}", callback.url, callback.state)));
        add("callback failed", callback.reason.clone());
    }
    for (name, value) in rows {
        output.line(&format!("{name:<16}{value}"))?;
    }
    Ok(())
}

async fn result(client: &Client, id: &CallId, output: Output) -> Result<()> {
    let result = client.call_result(id).await?;
    if output.is_json() {
        return output.json(&result);
    }
    let body = result.bytes().context("the server sent a body that cannot be read")?;
    let mut stdout = std::io::stdout();
    stdout.write_all(&body)?;
    stdout.flush()?;
    if result.cut {
        tracing::warn!("only the first {} of {} bytes are kept", body.len(), result.length);
    }
    Ok(())
}
