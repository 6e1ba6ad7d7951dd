//! Taking an instance off the machine: every replica, device, rule and mount of it, those of a
//! run that crashed included. What is desired stays on disk.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use crate::cgroup::Cgroups;
use crate::engine::LocalEngine;
use crate::network;
use crate::options::{LocalEngineOptions, OpenError};
use crate::secrets::is_mount_point;
use crate::volatile;

/// How long killed processes may take to vanish.
const VANISH_LIMIT: Duration = Duration::from_secs(10);

impl LocalEngine {
    /// Ends every replica of the instance and removes all it has on the machine outside its data
    /// directory. Works after a crash too, from names and the volatile folder alone; may be
    /// repeated. The next [`Self::open`] brings the deployments back.
    ///
    /// # Errors
    /// [`OpenError::InUse`] while an engine runs on this state; else the machine's fault, and
    /// the call can be repeated.
    pub async fn destroy(options: &LocalEngineOptions) -> Result<(), OpenError> {
        options.check()?;
        let _lock =
            if options.state.is_dir() { Some(crate::stock::lock(&options.state)?) } else { None };
        let cgroups = Cgroups::detect();
        let group = options.cgroup();
        let vanished = async {
            while cgroups.kill_all(&group) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // A killed process leaves its group a moment before it can be removed. And a runtime
            // that a crashed server had begun to start a replica with may put it there only now.
            loop {
                match cgroups.remove(&group) {
                    Err(OpenError::File { source, .. })
                        if source.kind() == io::ErrorKind::ResourceBusy =>
                    {
                        let _still_there = cgroups.kill_all(&group);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    other => return other,
                }
            }
        };
        tokio::time::timeout(VANISH_LIMIT, vanished).await.unwrap_or_else(|_| {
            let stuck = io::Error::other("its processes do not end");
            Err(OpenError::file("remove the cgroup", Path::new(&group))(stuck))
        })?;
        cgroups.unfavour(&options.own_group());
        network::destroy(options).await?;
        let secrets = options.mounted_secrets();
        if is_mount_point(&secrets) {
            umount2(&secrets, MntFlags::MNT_DETACH)
                .map_err(io::Error::from)
                .map_err(OpenError::file("unmount", &secrets))?;
        }
        volatile::remove(&options.run)?;
        if let Some(instance) = options.run.parent() {
            // Only when nobody else has something in it.
            drop(fs::remove_dir(instance));
        }
        Ok(())
    }
}
