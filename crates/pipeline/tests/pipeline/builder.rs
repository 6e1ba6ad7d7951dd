//! A builder that records what it is asked, and does what the test says.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::sync::watch;
use updraft_builder::{BuildError, BuildRequest, Builder, BuiltImage, LineSink};
use updraft_model::Digest;

/// What a build of a function does.
#[derive(Debug, Clone)]
pub(crate) enum OnBuild {
    /// Ends with exit code 1 after these lines.
    Fail(Vec<String>),
    /// Goes on until it is cancelled.
    Hang,
    /// Goes on when `key` is asked, so that the push stays in its plan.
    HangInKey,
}

#[derive(Debug)]
pub(crate) struct RecordingBuilder {
    behaviour: Mutex<HashMap<String, OnBuild>>,
    images: Mutex<HashSet<Digest>>,
    /// The functions built, in order of their beginning.
    pub(crate) built: Mutex<Vec<String>>,
    begun: watch::Sender<usize>,
}

impl Default for RecordingBuilder {
    fn default() -> Self {
        Self {
            behaviour: Mutex::default(),
            images: Mutex::default(),
            built: Mutex::default(),
            begun: watch::Sender::new(0),
        }
    }
}

/// The function that an image is for, from its name `localhost/<owner>/<repository>-<function>`.
fn function_of(request: &BuildRequest) -> String {
    request.tag.name().rsplit('-').next().unwrap().to_owned()
}

impl RecordingBuilder {
    pub(crate) fn on_build(&self, function: &str, behaviour: OnBuild) {
        self.behaviour.lock().unwrap().insert(function.to_owned(), behaviour);
    }

    pub(crate) fn succeed(&self, function: &str) {
        self.behaviour.lock().unwrap().remove(function);
    }

    /// As if somebody had removed all images.
    pub(crate) fn lose_images(&self) {
        self.images.lock().unwrap().clear();
    }

    pub(crate) fn take_built(&self) -> Vec<String> {
        let mut built = std::mem::take(&mut *self.built.lock().unwrap());
        built.sort();
        built
    }

    /// Waits until so many hanging calls have begun.
    pub(crate) async fn hanging(&self, calls: usize) {
        self.begun.subscribe().wait_for(|begun| *begun >= calls).await.unwrap();
    }

    fn behaviour(&self, request: &BuildRequest) -> Option<OnBuild> {
        self.behaviour.lock().unwrap().get(&function_of(request)).cloned()
    }

    async fn hang(&self, request: &BuildRequest) -> BuildError {
        self.begun.send_modify(|begun| *begun += 1);
        request.cancel.cancelled().await;
        BuildError::Cancelled
    }
}

#[async_trait]
impl Builder for RecordingBuilder {
    async fn key(&self, request: &BuildRequest, _: &LineSink) -> Result<Digest, BuildError> {
        assert!(request.context.join("Dockerfile").is_file(), "the context is not there");
        if matches!(self.behaviour(request), Some(OnBuild::HangInKey)) {
            return Err(self.hang(request).await);
        }
        Ok(request.context_digest)
    }

    async fn build(
        &self,
        request: &BuildRequest,
        output: &LineSink,
    ) -> Result<BuiltImage, BuildError> {
        self.built.lock().unwrap().push(function_of(request));
        output("STEP 1/2: FROM scratch");
        match self.behaviour(request) {
            Some(OnBuild::Fail(lines)) => {
                for line in &lines {
                    output(line);
                }
                return Err(BuildError::Failed {
                    exit_code: Some(1),
                    step: Some("RUN false".to_owned()),
                    log_tail: Vec::new(),
                });
            }
            Some(OnBuild::Hang) => return Err(self.hang(request).await),
            Some(OnBuild::HangInKey) | None => {}
        }
        output("STEP 2/2: COPY . .");
        let id = request.context_digest;
        self.images.lock().unwrap().insert(id);
        Ok(BuiltImage { image: request.tag.clone(), id })
    }

    async fn exists(&self, image: &BuiltImage) -> Result<bool, BuildError> {
        Ok(self.images.lock().unwrap().contains(&image.id))
    }
}
