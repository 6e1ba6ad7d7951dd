//! Sealing again with the newest key: by the ring in the data directory, or by a server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use updraft_api::client::{Client, ClientError};
use updraft_seal::{
    Certificate, Document, Format, KeyRing, Limits, SealedFile, SealedSecret, parse_documents,
};

use super::{input, printed};
use crate::cli::Global;
use crate::command::keys;
use crate::connection;
use crate::data_dir::DataDir;
use crate::output::Output;

/// Longest wait for a server that has had enough for now.
const PATIENCE: u32 = 60;

/// Who seals again.
enum Resealer {
    Here(Box<KeyRing>),
    Server(Client),
}

impl Resealer {
    async fn reseal(&self, secret: &SealedSecret) -> Result<SealedSecret> {
        match self {
            Self::Here(ring) => Ok(ring.reseal(&secret.clone().or_in_namespace(super::NAMESPACE))?),
            Self::Server(client) => {
                let text = secret.to_text(Format::Json);
                let text = patiently(async || client.rotate(&text).await).await;
                let text = text.context("unable to rotate secret")?;
                match parse_documents(&text, Limits::usual())?.pop() {
                    Some(Document::Sealed(sealed)) => Ok(*sealed),
                    _ => bail!("the server answered something else than a sealed secret"),
                }
            }
        }
    }

    /// Whether nothing but the newest key opens it.
    fn is_newest(&self, secret: &SealedSecret) -> bool {
        let Self::Here(ring) = self else { return false };
        let newest = ring.certificate().ok();
        let newest = newest.as_ref().map(Certificate::fingerprint);
        secret.legacy.is_none() && ring.opened_by(secret).iter().map(String::as_str).eq(newest)
    }
}

pub(super) async fn run(
    global: &Global,
    configuration: Option<&Path>,
    path: Option<&Path>,
    format: Option<Format>,
    output: Output,
) -> Result<()> {
    let resealer = if global.server.is_some() {
        Resealer::Server(connection::client(global)?)
    } else {
        Resealer::Here(Box::new(keys::ring(&DataDir::open(&global.data_dir)?, configuration)?))
    };
    let Some(path) = path else {
        let file = input::sealed_input(None)?;
        for secret in file.sealed()? {
            let sealed = resealer.reseal(&secret).await?;
            printed(&sealed.to_text(format.unwrap_or(Format::Json)))?;
        }
        return Ok(());
    };
    let mut failed = 0;
    for path in input::sealed_files(path)? {
        match reseal_file(&resealer, &path).await {
            Ok(0) => {}
            Ok(count) => output.line(&format!("{}: {count} sealed again", path.display()))?,
            Err(error) => {
                failed += 1;
                output.line(&format!("{}: {error:#}", path.display()))?;
            }
        }
    }
    if failed > 0 {
        bail!("cannot re-encrypt secret: {failed} files stay as they are");
    }
    Ok(())
}

/// A file is written when all of it could be sealed again.
async fn reseal_file(resealer: &Resealer, path: &Path) -> Result<usize> {
    let mut file = SealedFile::parse(&input::read_capped(path)?, Limits::usual())?;
    let mut count = 0;
    for secret in file.sealed()? {
        if resealer.is_newest(&secret.clone().or_in_namespace(super::NAMESPACE)) {
            continue;
        }
        if secret.legacy.is_some() {
            bail!(
                "{}: `{}` has the deprecated `spec.data`; print it sealed again with --re-encrypt < FILE",
                secret.place,
                secret.name
            );
        }
        let sealed = resealer.reseal(&secret).await;
        let sealed = sealed.with_context(|| format!("{}: `{}`", secret.place, secret.name))?;
        file.set_items(&secret, &sealed.items)?;
        count += 1;
    }
    if count > 0 {
        input::write(path, file.as_str())?;
    }
    Ok(count)
}

/// Asks again while the server says that it was asked too often.
pub(super) async fn patiently<T>(
    ask: impl AsyncFn() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    for _ in 0..PATIENCE {
        match ask().await {
            Err(error) if error.status().is_some_and(|status| status.as_u16() == 429) => {
                tokio::time::sleep(Duration::from_millis(600)).await;
            }
            answer => return answer,
        }
    }
    ask().await
}
