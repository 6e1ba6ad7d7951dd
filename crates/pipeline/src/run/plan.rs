//! What happens with each function: the stack is read, contexts are made, and each function is
//! compared with its newest release, so that only what changed is built and deployed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, stream};
use updraft_builder::{BuildRequest, BuiltImage, LineSink};
use updraft_model::{Digest, FunctionName, FunctionSpec, ImageRef, OwnerName, RepositoryName};
use updraft_source::context::{self, Context, ContextRequest};
use updraft_source::stack::{Stack, StackFunction};

use super::{Done, Halt, Run, build_error, chain, function_failed};
use crate::event::{FailedStep, PlannedAction, PlannedFunction, PushEventKind};
use crate::spec;
use crate::step::Outcome;

/// Contexts made at once; it is disk work.
const CONTEXTS_AT_ONCE: usize = 4;

/// Lines about base images that are told for one function.
const NOTICES_MAX: usize = 500;

/// What was planned by this process.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) functions: Vec<FunctionPlan>,
    /// Functions that left the stack.
    pub(super) removed: Vec<FunctionName>,
}

/// What happens with one function.
#[derive(Debug)]
pub(super) struct FunctionPlan {
    pub(super) name: FunctionName,
    pub(super) template: String,
    pub(super) action: Action,
    /// What the owner should know about it.
    warnings: Vec<String>,
}

#[derive(Debug)]
pub(super) enum Action {
    /// Build it, then make a release of `spec` with the image.
    Build { request: Box<BuildRequest>, key: Digest, spec: FunctionSpec },
    /// Make a release of `spec`, whose image is here.
    New { spec: FunctionSpec, image_id: Option<Digest>, image: Known },
    /// That release is what the stack says.
    Existing { release: u64, unchanged: bool },
    /// Nothing, for the reason in the event.
    Refused { planned: PlannedAction, step: FailedStep, event: PushEventKind },
}

/// Where a known image comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Known {
    /// From an earlier build with the same key.
    Built,
    /// From the stack, which says not to build.
    Given,
}

impl Action {
    fn planned(&self) -> PlannedAction {
        match self {
            Self::Build { .. } => PlannedAction::Build,
            Self::New { image: Known::Given, .. } => PlannedAction::Image,
            Self::New { image: Known::Built, .. } | Self::Existing { unchanged: false, .. } => {
                PlannedAction::Reuse
            }
            Self::Existing { unchanged: true, .. } => PlannedAction::Unchanged,
            Self::Refused { planned, .. } => planned.clone(),
        }
    }
}

impl Run {
    pub(super) async fn plan(&mut self) -> Result<Done, Halt> {
        self.have_files_in_place().await?;
        let prepared = self.prepare().await?;
        let functions = &prepared.functions;
        self.detail.plan = functions
            .iter()
            .map(|plan| PlannedFunction {
                name: plan.name.clone(),
                template: plan.template.clone(),
                action: plan.action.planned(),
            })
            .collect();
        self.detail.removed.clone_from(&prepared.removed);
        let mut events = vec![PushEventKind::Plan {
            functions: self.detail.plan.clone(),
            removed: prepared.removed.clone(),
        }];
        for plan in functions {
            let warnings = plan.warnings.iter().cloned();
            events.extend(warnings.map(|text| PushEventKind::Warning { text }));
            match &plan.action {
                Action::Refused { event, .. } => events.push(event.clone()),
                Action::New { spec, image: Known::Built, .. } => {
                    let (function, image) = (plan.name.clone(), spec.image.clone());
                    events.push(PushEventKind::BuildReused { function, image });
                }
                _ => {}
            }
        }
        self.prepared = Some(prepared);
        Ok((Outcome::Planned, events))
    }

    /// Reads the stack and makes the contexts. The same commit gives the same result each time.
    pub(super) async fn prepare(&self) -> Result<Prepared, Halt> {
        let checkout = self.checkout_folder();
        let variables = self.variables();
        let stack = tokio::task::spawn_blocking(move || Stack::read(&checkout, &variables))
            .await
            .map_err(|error| Halt::failed(FailedStep::Plan, &error.to_string()))?
            .map_err(|error| Halt::failed(FailedStep::Plan, &chain(&error)))?;
        if stack.secrets_only {
            // Who loses a stack file must not lose every function with it.
            let (owner, repository) = (&self.push.owner, &self.push.repository);
            let declared = self.pipeline.store.declared_functions(owner, Some(repository)).await?;
            if !declared.is_empty() {
                let missing = Stack::missing(&self.checkout_folder());
                return Err(Halt::failed(FailedStep::Plan, &chain(&missing)));
            }
        }
        for text in &stack.warnings {
            self.warn(text.clone());
        }
        let stack = Arc::new(stack);
        let store = &self.pipeline.store;
        let (owner, repository) = (&self.push.owner, &self.push.repository);
        let names: Vec<FunctionName> = stack.functions.keys().cloned().collect();
        let taken = store.claim_functions(owner, repository, names).await?;
        let removed = store
            .declared_functions(owner, Some(repository))
            .await?
            .into_iter()
            .map(|declared| declared.name)
            .filter(|name| !stack.functions.contains_key(name))
            .collect();
        let mut plans = Vec::new();
        for (name, function) in &stack.functions {
            plans.push(self.plan_function(Arc::clone(&stack), name, function, taken.get(name)));
        }
        let functions: Vec<_> = stream::iter(plans).buffered(CONTEXTS_AT_ONCE).collect().await;
        let functions = functions.into_iter().collect::<Result<_, _>>()?;
        Ok(Prepared { functions, removed })
    }

    /// What `${…}` in a stack file may mean: facts of the push itself, nothing of the platform.
    pub(super) fn variables(&self) -> BTreeMap<String, String> {
        let push = &self.push;
        [
            ("GIT_SHA", push.commit.as_str()),
            ("GIT_BRANCH", self.branch.as_str()),
            ("OWNER", push.owner.as_str()),
            ("REPOSITORY", push.repository.as_str()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    async fn plan_function(
        &self,
        stack: Arc<Stack>,
        name: &FunctionName,
        function: &StackFunction,
        taken: Option<&RepositoryName>,
    ) -> Result<FunctionPlan, Halt> {
        let template = if function.skip_build { "" } else { &function.template };
        let mut plan = FunctionPlan {
            name: name.clone(),
            template: template.to_owned(),
            action: Action::Existing { release: 0, unchanged: false },
            warnings: Vec::new(),
        };
        plan.action = if let Some(by) = taken {
            let text = format!(
                "repository `{by}` of {owner} declares a function of that name already\nhint: rename it, or remove it from `{by}` first",
                owner = self.push.owner
            );
            let event = function_failed(name, FailedStep::Plan, &text, Vec::new());
            let planned = PlannedAction::Taken { by: by.clone() };
            Action::Refused { planned, step: FailedStep::Plan, event }
        } else {
            match self.decide(stack, name, function, &mut plan.warnings).await {
                Ok(action) => action,
                Err(Refusal::Halt(halt)) => return Err(halt),
                Err(Refusal::Function { step, text, log_tail }) => {
                    let event = function_failed(name, step, &text, log_tail);
                    Action::Refused { planned: PlannedAction::Refused, step, event }
                }
            }
        };
        Ok(plan)
    }

    async fn decide(
        &self,
        stack: Arc<Stack>,
        name: &FunctionName,
        function: &StackFunction,
        warnings: &mut Vec<String>,
    ) -> Result<Action, Refusal> {
        let owner = &self.push.owner;
        let id = spec::id_of(owner, name).map_err(|error| Refusal::plan(&error))?;
        // Told before anything is built for nothing; looked at again before it is deployed.
        let status = self.pipeline.engine.get(&id).await.map_err(|error| Refusal::plan(&error))?;
        let repository = Some(&self.push.repository);
        if let Some(text) = status.as_ref().and_then(|s| spec::foreign(s, owner, repository)) {
            return Err(Refusal::text(FailedStep::Plan, text));
        }
        if function.skip_build {
            let image = self.given_image(name, function).await?;
            let process = function.process.clone();
            let spec = self.spec(name, function, process, image, warnings)?;
            return self.compare(name, spec, None, Known::Given).await;
        }
        let context = self.context(stack, name).await?;
        let tag = spec::image_tag(self.origin(), name, function, &self.push.commit)
            .map_err(|error| Refusal::plan(&error))?;
        let spec = self.spec(name, function, context.process.clone(), tag.clone(), warnings)?;
        let request = BuildRequest {
            context: context.folder,
            context_digest: context.digest,
            tag,
            build_args: context.build_args,
            limits: self.pipeline.options.build_limits,
            cancel: self.stop.token().clone(),
        };
        let output = self.notices();
        let key = tokio::select! {
            key = self.pipeline.builder.key(&request, &output) => key,
            halt = self.shut_down() => return Err(halt.into()),
        };
        let key = match key {
            Ok(key) => key,
            Err(_) if self.stop.reason().is_some() => return Err(Refusal::Halt(self.stopped())),
            Err(error) => {
                let log_tail = error.log_tail().to_vec();
                let (step, text) = (FailedStep::Build, build_error(&error));
                return Err(Refusal::Function { step, text, log_tail });
            }
        };
        match self.image_of(name, key).await? {
            Some(built) => {
                let mut spec = spec;
                spec.image = built.image.pinned(built.id);
                self.compare(name, spec, Some(built.id), Known::Built).await
            }
            None => Ok(Action::Build { request: Box::new(request), key, spec }),
        }
    }

    fn spec(
        &self,
        name: &FunctionName,
        function: &StackFunction,
        process: Option<String>,
        image: ImageRef,
        warnings: &mut Vec<String>,
    ) -> Result<FunctionSpec, Refusal> {
        let options = &self.pipeline.options;
        let (spec, changed) = spec::spec(self.origin(), name, function, process, image, options)
            .map_err(|error| Refusal::plan(&error))?;
        spec.check().map_err(|error| Refusal::plan(&error))?;
        warnings.extend(changed);
        Ok(spec)
    }

    /// Where the lines go that tell how base images are made.
    fn notices(&self) -> LineSink {
        let (journal, told) = (Arc::clone(&self.journal), AtomicUsize::new(0));
        Arc::new(move |line| {
            if told.fetch_add(1, Ordering::Relaxed) < NOTICES_MAX {
                journal.tell(&PushEventKind::Notice { text: line.to_owned() });
            }
        })
    }

    /// The image that a stack names to be deployed as it is.
    async fn given_image(
        &self,
        name: &FunctionName,
        function: &StackFunction,
    ) -> Result<ImageRef, Refusal> {
        let Some(image) = &function.image else {
            let text = format!(
                "function `{name}` says `skip_build` and names no image\nhint: set `image`, or remove `skip_build`"
            );
            return Err(Refusal::text(FailedStep::Plan, text));
        };
        let image: ImageRef = image.parse().map_err(|error| Refusal::plan(&error))?;
        // What was built here from others' code is theirs.
        let local = image.name().strip_prefix("localhost/").and_then(|path| path.split_once('/'));
        let other = local.and_then(|(first, _)| OwnerName::new(first).ok());
        if let Some(other) = other.filter(|other| *other != self.push.owner)
            && self.pipeline.store.owner(&other).await.map_err(Halt::from)?.is_some()
        {
            let text = format!("image `{image}` belongs to owner `{other}`");
            return Err(Refusal::text(FailedStep::Plan, text));
        }
        Ok(image)
    }

    async fn context(&self, stack: Arc<Stack>, name: &FunctionName) -> Result<Context, Refusal> {
        let checkout = self.checkout_folder();
        let contexts = self.pipeline.work_folder(self.push.id).join("contexts");
        let templates = self.pipeline.templates.clone();
        let limits = self.pipeline.options.context_limits;
        let name = name.clone();
        let made = tokio::task::spawn_blocking(move || {
            // Said with the line of the stack file.
            let known = stack.check_template(&name, &checkout, &templates);
            known.map_err(|error| Refusal::plan(&error))?;
            let made = context::prepare(ContextRequest {
                checkout: &checkout,
                stack: &stack,
                function: &name,
                templates: &templates,
                destination: &contexts.join(name.as_str()),
                limits: &limits,
            });
            made.map_err(|error| Refusal::plan(&error))
        })
        .await;
        made.map_err(|error| Refusal::text(FailedStep::Plan, error.to_string()))?
    }

    /// The image of the last build with that key, when it is still here.
    async fn image_of(&self, name: &FunctionName, key: Digest) -> Result<Option<BuiltImage>, Halt> {
        let build = self.pipeline.store.build_by_key(&self.push.owner, name, key).await?;
        let Some((image, id)) = build.and_then(|build| build.image) else { return Ok(None) };
        let built = BuiltImage { image, id };
        match self.pipeline.builder.exists(&built).await {
            Ok(true) => Ok(Some(built)),
            Ok(false) => Ok(None),
            Err(error) => {
                tracing::warn!(%error, "an earlier image cannot be looked up and is built anew");
                Ok(None)
            }
        }
    }

    /// Compares what the stack says with the newest release and with what runs.
    async fn compare(
        &self,
        name: &FunctionName,
        spec: FunctionSpec,
        image_id: Option<Digest>,
        image: Known,
    ) -> Result<Action, Refusal> {
        let (store, owner) = (&self.pipeline.store, &self.push.owner);
        let newest = store.releases(owner, name, 1).await.map_err(Halt::from)?.pop();
        let Some(newest) = newest.filter(|newest| newest.spec == spec) else {
            return Ok(Action::New { spec, image_id, image });
        };
        let live = store.live(owner, name).await.map_err(Halt::from)?;
        let is_live = live.is_some_and(|live| live.release == newest.number);
        let status = self.pipeline.engine.get(&spec.id).await;
        let status = status.map_err(|error| Refusal::plan(&error))?;
        let unchanged = is_live && status.is_some_and(|status| spec::runs(&status, &newest));
        Ok(Action::Existing { release: newest.number, unchanged })
    }
}

/// Why nothing is planned for a function.
enum Refusal {
    /// The whole push stops.
    Halt(Halt),
    /// Only this function fails.
    Function { step: FailedStep, text: String, log_tail: Vec<String> },
}

impl From<Halt> for Refusal {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl Refusal {
    fn text(step: FailedStep, text: String) -> Self {
        Self::Function { step, text, log_tail: Vec::new() }
    }

    fn plan(error: &dyn std::error::Error) -> Self {
        Self::text(FailedStep::Plan, chain(error))
    }
}
