//! Which function a person means: `OWNER/NAME`, `NAME` with an owner, or the visible name.

use anyhow::{Context, Result, bail};
use updraft_api::client::Client;
use updraft_api::wire;
use updraft_model::{FunctionName, OwnerName};

use crate::cli::OneFunction;

/// A function by its identity.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) owner: OwnerName,
    pub(crate) name: FunctionName,
}

/// Finds out who owns the function; asks the server only when the words do not say it.
pub(crate) async fn identify(client: &Client, words: &OneFunction) -> Result<Identity> {
    if let Some((owner, name)) = words.function.split_once('/') {
        return Ok(Identity { owner: OwnerName::new(owner)?, name: FunctionName::new(name)? });
    }
    let name = FunctionName::new(words.function.as_str())?;
    if let Some(owner) = &words.owner {
        return Ok(Identity { owner: OwnerName::new(owner.as_str())?, name });
    }
    let function = by_visible_name(client, &name).await?;
    let Some(owner) = function.owner else {
        bail!(
            "function `{name}` was deployed through the OpenFaaS API; use its clients, for instance faas-cli"
        );
    };
    Ok(Identity { owner, name: function.name })
}

/// The function with this visible name, owned or not.
pub(crate) async fn by_visible_name(
    client: &Client,
    name: &FunctionName,
) -> Result<wire::Function> {
    let functions = client.functions(None).await?;
    let is_meant = |function: &wire::Function| visible_name(function) == name.as_str();
    functions.into_iter().find(is_meant).with_context(|| {
        format!("there is no function `{name}`; write OWNER/NAME, `updraft list` shows them")
    })
}

/// What the engine and OpenFaaS clients call it.
pub(crate) fn visible_name(function: &wire::Function) -> String {
    match &function.owner {
        Some(owner) => format!("{owner}-{}", function.name),
        None => function.name.to_string(),
    }
}
