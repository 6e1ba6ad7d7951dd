//! `updraft token`: made, listed and revoked in the data directory itself, server or not.

use anyhow::{Context, Result, bail};
use serde_json::json;
use updraft_model::OwnerName;
use updraft_store::Store;

use crate::cli::Token;
use crate::data_dir::DataDir;
use crate::output::Output;

pub(crate) async fn run(data_dir: &DataDir, command: Token, output: Output) -> Result<()> {
    let store = Store::open(&data_dir.database(), &data_dir.blobs())?;
    match command {
        Token::Create { owner, name } => create(&store, &owner, &name, output).await,
        Token::List { owner } => list(&store, owner.as_deref(), output).await,
        Token::Revoke { id } => revoke(&store, &id).await,
    }
}

async fn create(store: &Store, owner: &str, name: &str, output: Output) -> Result<()> {
    let owner = OwnerName::new(owner)?;
    let token = store.create_token(&owner, name).await?;
    if output.is_json() {
        return output.json(&json!({
            "id": token.id.to_string(),
            "owner": owner,
            "name": name,
            "token": token.secret.expose(),
        }));
    }
    output.line(token.secret.expose())
}

async fn list(store: &Store, owner: Option<&str>, output: Output) -> Result<()> {
    let owner = owner.map(OwnerName::new).transpose()?;
    let tokens = store.tokens(owner.as_ref()).await?;
    if output.is_json() {
        let tokens: Vec<_> = tokens
            .iter()
            .map(|token| {
                json!({
                    "id": token.id.to_string(),
                    "owner": token.owner,
                    "name": token.name,
                    "created_at": token.created_at,
                    "last_used": token.last_used,
                })
            })
            .collect();
        return output.json(&tokens);
    }
    let rows: Vec<_> = tokens
        .iter()
        .map(|token| {
            let last_used = token.last_used.map_or_else(|| "never".to_owned(), |at| at.to_string());
            vec![
                token.id.to_string(),
                token.owner.to_string(),
                token.name.clone(),
                token.created_at.to_string(),
                last_used,
            ]
        })
        .collect();
    output.table(&["ID", "OWNER", "NAME", "CREATED", "LAST USED"], &rows)
}

async fn revoke(store: &Store, id: &str) -> Result<()> {
    let tokens = store.tokens(None).await?;
    let token = tokens
        .iter()
        .find(|token| token.id.to_string() == id)
        .with_context(|| format!("there is no token `{id}`; `updraft token list` shows them"))?;
    if !store.revoke_token(&token.owner, token.id).await? {
        bail!("token `{id}` was revoked already");
    }
    Ok(())
}
