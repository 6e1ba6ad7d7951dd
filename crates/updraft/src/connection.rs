//! How a command finds its server and what it shows to be let in.

use std::path::Path;

use anyhow::{Context, Result, bail};
use updraft_api::client::{Client, Credentials, ServerAddress};

use crate::cli::Global;
use crate::data_dir::DataDir;

/// The server that the flags name, else the one that runs on the data directory.
pub(crate) fn client(global: &Global) -> Result<Client> {
    let token = global.token.clone().map(Credentials::Bearer);
    if let Some(server) = &global.server {
        let address: ServerAddress = server.parse()?;
        let Some(credentials) = token else {
            bail!("{server} wants to know who you are; give a token with --token or UPDRAFT_TOKEN");
        };
        return Ok(Client::new(address, credentials));
    }
    let data_dir = DataDir::open(&global.data_dir)?;
    let record = data_dir.server().with_context(|| {
        format!(
            "no server runs on {}; start one with `updraft up`, or name another with --server",
            data_dir.root().display()
        )
    })?;
    let credentials = token.map_or_else(|| administrator(&data_dir), Ok)?;
    Ok(Client::new(record.address.into(), credentials))
}

/// Whether a server runs on the data directory.
pub(crate) fn is_served(global: &Global) -> bool {
    let record = DataDir::open(&global.data_dir).ok().and_then(|data_dir| data_dir.server());
    // A server that was killed leaves its record.
    record.is_some_and(|record| Path::new("/proc").join(record.pid.to_string()).is_dir())
}

/// Who may read the data directory is the administrator.
pub(crate) fn administrator(data_dir: &DataDir) -> Result<Credentials> {
    let path = data_dir.admin_password();
    let password = std::fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}; run as the user of the server, or give --token", path.display())
    })?;
    Ok(Credentials::Basic { user: "admin".to_owned(), password: password.trim().to_owned() })
}
