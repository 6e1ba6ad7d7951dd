//! The commit's files into the work folder.

use std::io;
use std::path::PathBuf;

use updraft_source::git;

use super::{Done, Halt, Run, chain};
use crate::event::FailedStep;
use crate::step::Outcome;

impl Run {
    /// Where the commit's files are.
    pub(super) fn checkout_folder(&self) -> PathBuf {
        self.pipeline.work_folder(self.push.id).join("checkout")
    }

    pub(super) async fn checkout(&mut self) -> Result<Done, Halt> {
        self.have_files_in_place().await?;
        Ok((Outcome::CheckedOut, Vec::new()))
    }

    /// Checks the commit out anew, or takes the upload over, unless this process has.
    pub(super) async fn have_files_in_place(&mut self) -> Result<(), Halt> {
        if !self.files_in_place {
            self.put_files_into_place().await?;
            self.files_in_place = true;
        }
        Ok(())
    }

    async fn put_files_into_place(&self) -> Result<(), Halt> {
        let folder = self.checkout_folder();
        if let Some(upload) = &self.push.upload {
            return take_over(upload.clone(), folder).await.map_err(|error| {
                let text = format!("the uploaded files are gone ({error})\nhint: push again");
                Halt::failed(FailedStep::Checkout, &text)
            });
        }
        let work = self.pipeline.work_folder(self.push.id);
        fresh(work).await.map_err(|error| machine(&error))?;
        let owner = self.pipeline.repositories.join(self.push.owner.as_str());
        let bare = owner.join(format!("{}.git", self.push.repository));
        let limits = &self.pipeline.options.checkout_limits;
        let checkout = git::checkout(&bare, &self.push.commit, &folder, limits);
        let checked_out = tokio::select! {
            () = self.stop.token().cancelled() => return Err(self.stopped()),
            result = checkout => result,
        };
        let checked_out =
            checked_out.map_err(|error| Halt::failed(FailedStep::Checkout, &chain(&error)))?;
        for path in checked_out.submodules {
            self.warn(format!("submodule `{path}` is left out, submodules are not supported"));
        }
        Ok(())
    }
}

fn machine(error: &io::Error) -> Halt {
    let text = format!(
        "the work folder cannot be used ({error})\nhint: the machine may be full, tell the operator"
    );
    Halt::failed(FailedStep::Checkout, &text)
}

/// An empty work folder.
async fn fresh(folder: PathBuf) -> io::Result<()> {
    tokio::task::spawn_blocking(move || {
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir_all(&folder)
    })
    .await
    .map_err(io::Error::other)?
}

/// Moves an upload into its place; when it is there already, all is well.
async fn take_over(upload: PathBuf, folder: PathBuf) -> io::Result<()> {
    tokio::task::spawn_blocking(move || {
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::rename(&upload, &folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::metadata(&folder).map(drop)
            }
            other => other,
        }
    })
    .await
    .map_err(io::Error::other)?
}
