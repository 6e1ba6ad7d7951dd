//! `updraft down`: ends every replica of a cloud whose server does not run, and removes its
//! network and mounts. What is deployed stays on record and comes back with the next `up`.

use anyhow::Result;
use updraft_engine_local::LocalEngine;

use crate::command::images;
use crate::data_dir::DataDir;
use crate::output::Output;

pub(crate) async fn run(data_dir: &DataDir, output: Output) -> Result<()> {
    let _lock = data_dir.lock()?;
    clear_machine(data_dir).await?;
    data_dir.retract();
    if output.is_json() {
        return Ok(());
    }
    output.line("every replica has ended; `updraft up` brings back what was deployed")
}

/// Takes everything of a cloud off the machine that lies outside its data directory. The caller
/// holds the lock, and no part of the cloud runs.
pub(crate) async fn clear_machine(data_dir: &DataDir) -> Result<()> {
    LocalEngine::destroy(&crate::up::engine_options(data_dir, None)).await?;
    updraft_builder::BuildahBuilder::destroy(&data_dir.containers()).await?;
    let images = images::open(data_dir).await?;
    images.unmount_all().await?;
    data_dir.remove_volatile()
}
