//! Pointing a function at a release, by a push or by hand: the only way in which anything goes
//! live, is rolled back or is taken away.

use thiserror::Error;
use updraft_builder::BuiltImage;
use updraft_engine::{EngineError, Expect, Wake};
use updraft_model::{FunctionName, OwnerName, RepositoryName};
use updraft_store::{PinnedTo, Release, StoreError};

use crate::error::{RemoveError, RollbackError};
use crate::pipeline::Pipeline;
use crate::spec;

/// How often a function may change between a look at it and its change.
const LOOKS: usize = 8;

/// Why a function was not pointed at a release, or not taken away.
#[derive(Debug, Error)]
pub(crate) enum PointError {
    /// What runs under that name is not this owner's.
    #[error("{0}")]
    Foreign(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Pipeline {
    /// Makes a release the live one and returns when it serves. On an error what served before
    /// still does. The caller holds the function's lock. May be done twice.
    pub(crate) async fn point(
        &self,
        release: &Release,
        repository: Option<&RepositoryName>,
        pinned: PinnedTo,
    ) -> Result<(), PointError> {
        let Release { owner, function, number, .. } = release;
        let spec = spec::running(release);
        let id = spec.id.clone();
        let mut looks = 0;
        let revision = loop {
            let status = self.engine.get(&id).await?;
            if let Some(text) = status.as_ref().and_then(|s| spec::foreign(s, owner, repository)) {
                return Err(PointError::Foreign(text));
            }
            let seen = Expect::as_seen(status.as_ref());
            match self.engine.apply_if(spec.clone(), Wake::AtLeastMinimum, seen).await {
                // Somebody else came in between, and it may be theirs now.
                Err(EngineError::Superseded(_)) if looks < LOOKS => looks += 1,
                applied => break applied?,
            }
        };
        self.engine.wait_ready(&id, revision, self.options.ready_limit).await?;
        self.store.set_live(owner, function, *number, pinned).await?;
        Ok(())
    }

    /// Ends a function that `repository` declares and frees its name; its releases stay. The
    /// caller holds the function's lock. May be done twice.
    pub(crate) async fn take_away(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
        function: &FunctionName,
    ) -> Result<(), PointError> {
        let mut foreign = None;
        if let Ok(id) = spec::id_of(owner, function)
            && let Some(status) = self.engine.get(&id).await?
        {
            foreign = spec::foreign(&status, owner, Some(repository));
            if foreign.is_none() {
                match self.engine.remove(&id).await {
                    Ok(()) | Err(EngineError::UnknownFunction(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.store.give_up_function(owner, repository, function).await?;
        foreign.map_or(Ok(()), |text| Err(PointError::Foreign(text)))
    }

    /// Goes back to an earlier release, by default the one before the live one, and pins it:
    /// later pushes build and release, but do not move this function until [`Self::unpin`].
    /// Nothing is built.
    ///
    /// # Errors
    /// See [`RollbackError`]; what served before still does.
    pub async fn rollback(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
        to: Option<u64>,
    ) -> Result<Release, RollbackError> {
        let unknown =
            || RollbackError::UnknownFunction { owner: owner.clone(), function: function.clone() };
        let declared = self.store.function(owner, function).await?.ok_or_else(unknown)?;
        let repository = declared.repository.ok_or_else(unknown)?;
        let _alone = self.functions.lock((owner.clone(), function.clone())).await;
        let number = match to {
            Some(number) => number,
            None => self.number_before_live(owner, function).await?,
        };
        let release =
            self.store.release(owner, function, number).await?.ok_or_else(|| {
                RollbackError::UnknownRelease { function: function.clone(), number }
            })?;
        self.point_by_hand(&release, &repository, PinnedTo::ThisRelease).await?;
        Ok(release)
    }

    /// Makes a function's newest release live and lets later pushes move it again.
    ///
    /// # Errors
    /// See [`RollbackError`]; what served before still does.
    pub async fn unpin(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
    ) -> Result<Release, RollbackError> {
        let unknown =
            || RollbackError::UnknownFunction { owner: owner.clone(), function: function.clone() };
        let declared = self.store.function(owner, function).await?.ok_or_else(unknown)?;
        let repository = declared.repository.ok_or_else(unknown)?;
        let _alone = self.functions.lock((owner.clone(), function.clone())).await;
        let newest = self.store.releases(owner, function, 1).await?.pop();
        let newest =
            newest.ok_or_else(|| RollbackError::NothingLive { function: function.clone() })?;
        self.point_by_hand(&newest, &repository, PinnedTo::Newest).await?;
        Ok(newest)
    }

    async fn number_before_live(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
    ) -> Result<u64, RollbackError> {
        let live = self.store.live(owner, function).await?;
        let live =
            live.ok_or_else(|| RollbackError::NothingLive { function: function.clone() })?.release;
        let releases = self.store.releases(owner, function, u32::MAX).await?;
        releases
            .iter()
            .map(|release| release.number)
            .find(|number| *number < live)
            .ok_or_else(|| RollbackError::NothingEarlier { function: function.clone(), live })
    }

    async fn point_by_hand(
        &self,
        release: &Release,
        repository: &RepositoryName,
        pinned: PinnedTo,
    ) -> Result<(), RollbackError> {
        let (function, number) = (&release.function, release.number);
        // An image that was built here is nowhere else.
        if let Some(id) = release.image_id {
            let image = BuiltImage { image: release.image.clone(), id };
            let is_here = self.builder.exists(&image).await.map_err(|source| {
                let (function, source) = (function.clone(), Box::new(source));
                RollbackError::Image { function, number, source }
            })?;
            if !is_here {
                let commit = release.commit.chars().take(12).collect();
                return Err(RollbackError::Collected {
                    function: function.clone(),
                    number,
                    commit,
                });
            }
        }
        self.point(release, Some(repository), pinned).await.map_err(|error| match error {
            PointError::Foreign(text) => RollbackError::Foreign(text),
            PointError::Store(error) => RollbackError::Store(error),
            PointError::Engine(source) => RollbackError::Engine {
                function: release.function.clone(),
                number: release.number,
                source: Box::new(source),
            },
        })
    }

    /// Removes a function by hand. It comes back with the next push that declares it.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub async fn remove(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
    ) -> Result<(), RemoveError> {
        let unknown =
            || RemoveError::UnknownFunction { owner: owner.clone(), function: function.clone() };
        let declared = self.store.function(owner, function).await?.ok_or_else(unknown)?;
        let repository = declared.repository.ok_or_else(unknown)?;
        let _alone = self.functions.lock((owner.clone(), function.clone())).await;
        self.take_away(owner, &repository, function).await.map_err(|error| match error {
            PointError::Foreign(text) => RemoveError::Foreign(text),
            PointError::Engine(error) => RemoveError::Engine(error),
            PointError::Store(error) => RemoveError::Store(error),
        })
    }
}
