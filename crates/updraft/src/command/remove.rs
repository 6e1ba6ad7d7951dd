//! `updraft remove`: a function goes, with its replicas and releases.

use anyhow::Result;
use updraft_api::client::Client;

use crate::cli::OneFunction;
use crate::command::function::identify;
use crate::output::Output;

pub(crate) async fn run(client: &Client, command: OneFunction, output: Output) -> Result<()> {
    let function = identify(client, &command).await?;
    client.remove_function(&function.owner, &function.name).await?;
    if output.is_json() {
        return Ok(());
    }
    output.line(&format!("{}/{} is removed", function.owner, function.name))
}
