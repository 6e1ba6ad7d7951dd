//! `updraft secrets`: set and unset; only names ever come back.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use updraft_api::client::Client;
use updraft_model::{OwnerName, SecretName};

use crate::cli::Secrets;
use crate::output::Output;

pub(crate) async fn run(client: &Client, command: Secrets, output: Output) -> Result<()> {
    match command {
        Secrets::List(owner) => {
            let secrets = client.secrets(&OwnerName::new(owner.owner)?).await?;
            if output.is_json() {
                return output.json(&secrets);
            }
            secrets.iter().try_for_each(|secret| output.line(secret.name.as_str()))
        }
        Secrets::Set { name, from_file, owner } => {
            let (owner, name) = (OwnerName::new(owner.owner)?, SecretName::new(name)?);
            let value = value(from_file.as_deref())?;
            Ok(client.set_secret(&owner, &name, value).await?)
        }
        Secrets::Unset { name, owner } => {
            let (owner, name) = (OwnerName::new(owner.owner)?, SecretName::new(name)?);
            Ok(client.unset_secret(&owner, &name).await?)
        }
    }
}

/// The file as it is; standard input without the line feed that a terminal or `echo` adds.
fn value(file: Option<&Path>) -> Result<Vec<u8>> {
    if let Some(file) = file {
        return std::fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).context("cannot read standard input")?;
    if input.last() == Some(&b'\n') {
        input.pop();
    }
    Ok(input)
}
