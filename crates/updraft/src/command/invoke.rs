//! `updraft invoke`: calls a function as any client would, through the gateway's route.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::BodyExt;
use updraft_api::client::Client;

use crate::cli::Invoke;

pub(crate) async fn run(client: &Client, command: Invoke) -> Result<()> {
    let words = &command.function;
    let visible = match (words.function.split_once('/'), &words.owner) {
        (Some((owner, name)), _) => format!("{owner}-{name}"),
        (None, Some(owner)) => format!("{owner}-{}", words.function),
        (None, None) => words.function.clone(),
    };
    let body = command.data.as_deref().map(body).transpose()?;
    let default = if body.is_some() { Method::POST } else { Method::GET };
    let method = command.method.as_deref().map_or(Ok(default), |method| {
        method.to_ascii_uppercase().parse().with_context(|| format!("`{method}` is no method"))
    })?;
    let separator = if command.path.starts_with(['/', '?']) { "" } else { "/" };
    let path = format!("/function/{visible}{separator}{}", command.path);
    let headers = headers(&command.header)?;
    let answer = client.invoke(method, None, &path, headers, body.unwrap_or_default()).await?;

    let status = answer.status();
    let mut body = answer.into_body();
    let mut stdout = std::io::stdout();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the answer broke off")?;
        if let Some(data) = frame.data_ref() {
            stdout.write_all(data)?;
            stdout.flush()?;
        }
    }
    if !status.is_success() {
        bail!("the call was answered with status {status}");
    }
    Ok(())
}

/// The body as given, or standard input for `-`.
fn body(data: &str) -> Result<Vec<u8>> {
    if data != "-" {
        return Ok(data.as_bytes().to_vec());
    }
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).context("cannot read standard input")?;
    Ok(input)
}

fn headers(lines: &[String]) -> Result<HeaderMap> {
    lines
        .iter()
        .map(|line| {
            let wrong = || format!("`{line}` is no header; write `Name: value`");
            let (name, value) = line.split_once(':').with_context(wrong)?;
            let name: HeaderName = name.trim().parse().with_context(wrong)?;
            let value: HeaderValue = value.trim().parse().with_context(wrong)?;
            Ok((name, value))
        })
        .collect()
}
