//! From what a stack says of a function to what is to run.
//!
//! A release keeps the spec without what differs from push to push (commit, time, number), so
//! that two releases can be compared; [`running`] adds that when a release is deployed.

use std::collections::BTreeMap;

use updraft_engine::FunctionStatus;
use updraft_model::{
    FunctionId, FunctionName, FunctionSpec, ImageRef, NameError, OwnerName, RepositoryName,
    ResourceSet, SecretName, annotations, labels,
};
use updraft_source::stack::StackFunction;
use updraft_store::Release;

use crate::options::PipelineOptions;

/// Labels of this prefix are the platform's.
const CLOUD_PREFIX: &str = "com.openfaas.cloud.";

/// The label with the visible name that OpenFaaS Cloud puts beside `faas_function`.
const APP: &str = "app";

/// The source forge's name for repositories that Updraft keeps itself.
const SCM: &str = "updraft";

/// Labels that OpenFaaS Cloud gives every function, unless the stack says otherwise.
const DEFAULT_LABELS: &[(&str, &str)] = &[
    (labels::SCALE_MIN, "1"),
    (labels::SCALE_MAX, "4"),
    (labels::SCALE_FACTOR, "20"),
    (labels::SCALE_ZERO, "true"),
];

/// Whose function, which, and from where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) owner: &'a OwnerName,
    pub(crate) repository: &'a RepositoryName,
    pub(crate) branch: &'a str,
}

/// Where an owner's function is found in the engine.
pub(crate) fn id_of(owner: &OwnerName, function: &FunctionName) -> Result<FunctionId, NameError> {
    Ok(FunctionId::in_default(owner.visible_name(function)?))
}

/// The spec that a stack's function asks for, within what the operator allows, and what was
/// changed about it, one line each.
pub(crate) fn spec(
    origin: Origin<'_>,
    name: &FunctionName,
    function: &StackFunction,
    process: Option<String>,
    image: ImageRef,
    options: &PipelineOptions,
) -> Result<(FunctionSpec, Vec<String>), NameError> {
    let mut changed = Vec::new();
    let id = id_of(origin.owner, name)?;
    let mut spec = FunctionSpec::new(id, image);
    spec.process = process;
    spec.environment.clone_from(&function.environment);
    spec.constraints.clone_from(&function.constraints);
    spec.secrets = function
        .secrets
        .iter()
        .map(|secret| SecretName::new(format!("{}-{secret}", origin.owner)))
        .collect::<Result<_, _>>()?;
    spec.labels = labels_of(origin, &spec.id.name, function, options, &mut changed);
    spec.annotations = function
        .annotations
        .iter()
        .filter(|(key, _)| !key.starts_with(CLOUD_PREFIX) && *key != annotations::RELEASE)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut limits = function.limits.clone().unwrap_or_default();
    limits.memory = limits.memory.or_else(|| options.default_limits.memory.clone());
    limits.cpu = limits.cpu.or_else(|| options.default_limits.cpu.clone());
    spec.limits = Some(within(limits, "limits", options, &mut changed));
    spec.requests = function
        .requests
        .clone()
        .map(|requests| within(requests, "requests", options, &mut changed));
    spec.read_only_root = function.read_only_root.unwrap_or(true);
    let changed = changed.into_iter().map(|text| format!("function `{name}`: {text}")).collect();
    Ok((spec, changed))
}

fn labels_of(
    origin: Origin<'_>,
    visible: &FunctionName,
    function: &StackFunction,
    options: &PipelineOptions,
    changed: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> =
        DEFAULT_LABELS.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    for (key, value) in &function.labels {
        if key.starts_with(CLOUD_PREFIX) || [APP, labels::FUNCTION].contains(&key.as_str()) {
            changed.push(format!("label `{key}` is the platform's and was left out"));
        } else {
            all.insert(key.clone(), value.clone());
        }
    }
    for key in [labels::SCALE_MIN, labels::SCALE_MAX] {
        let Some(value) = all.get_mut(key) else { continue };
        if value.trim().parse::<u32>().is_ok_and(|replicas| replicas > options.max_replicas) {
            changed.push(format!("label `{key}` is {value}, {} is allowed", options.max_replicas));
            *value = options.max_replicas.to_string();
        }
    }
    let platform = [
        (APP, visible.as_str()),
        (labels::GIT_CLOUD, "1"),
        (labels::GIT_OWNER, origin.owner.as_str()),
        (labels::GIT_REPO, origin.repository.as_str()),
        (labels::GIT_BRANCH, origin.branch),
        (labels::GIT_SCM, SCM),
        // Only its owner and the operator can read a repository that Updraft keeps.
        (labels::GIT_PRIVATE, "1"),
    ];
    all.extend(platform.map(|(key, value)| (key.to_owned(), value.to_owned())));
    all
}

/// Cuts what was asked for to what is allowed.
fn within(
    mut set: ResourceSet,
    field: &str,
    options: &PipelineOptions,
    changed: &mut Vec<String>,
) -> ResourceSet {
    let max = options.max_memory_bytes;
    if let Some(memory) = set.memory.take() {
        if memory.bytes() > max || memory.bytes() == 0 {
            changed.push(format!("`{field}.memory` is {memory}, {max} bytes are allowed"));
            set.memory = max.to_string().parse().ok();
        } else {
            set.memory = Some(memory);
        }
    }
    let max = options.max_millicores;
    if let Some(cpu) = set.cpu.take() {
        if cpu.millicores() > max || cpu.millicores() == 0 {
            changed.push(format!("`{field}.cpu` is {cpu}, {max}m are allowed"));
            set.cpu = format!("{max}m").parse().ok();
        } else {
            set.cpu = Some(cpu);
        }
    }
    set
}

/// What runs for a release: its spec, and which release it is.
pub(crate) fn running(release: &Release) -> FunctionSpec {
    let mut spec = release.spec.clone();
    // Taken from the record, not from the clock: the same release is the same spec each time.
    let time = release.created_at.as_second().to_string();
    spec.labels.insert(labels::GIT_SHA.to_owned(), release.commit.clone());
    spec.labels.insert(labels::GIT_DEPLOYTIME.to_owned(), time);
    spec.annotations.insert(annotations::RELEASE.to_owned(), release.number.to_string());
    spec
}

/// Whether the engine runs that release (or would, were the function awake).
pub(crate) fn runs(status: &FunctionStatus, release: &Release) -> bool {
    let number = release.number.to_string();
    status.spec.annotations.get(annotations::RELEASE) == Some(&number)
        && status.spec.image == release.image
}

/// Why what runs under a function's name is not this owner's and repository's to change.
pub(crate) fn foreign(
    status: &FunctionStatus,
    owner: &OwnerName,
    repository: Option<&RepositoryName>,
) -> Option<String> {
    let name = &status.spec.id.name;
    match status.spec.owner() {
        None => Some(format!(
            "`{name}` runs already and did not come by a push; remove it (`faas-cli remove {name}`) or rename the function"
        )),
        Some(other) if other != *owner => Some(format!(
            "`{name}` belongs to owner `{other}` and is left as it is; rename the function"
        )),
        Some(_) => {
            let other = status.spec.repository()?;
            let repository = repository?;
            (other != repository.as_str()).then(|| {
                format!(
                    "`{name}` belongs to repository `{other}` and is left as it is; remove it there or rename the function"
                )
            })
        }
    }
}

/// The name that a build gives its image: `localhost/<owner>/<repository>-<function>`, with the
/// stack's tag, branch and commit in the tag.
pub(crate) fn image_tag(
    origin: Origin<'_>,
    name: &FunctionName,
    function: &StackFunction,
    commit: &str,
) -> Result<ImageRef, updraft_model::ParseImageRefError> {
    let repository = component(origin.repository.as_str());
    let last = function.image.as_deref().and_then(|image| image.rsplit('/').next());
    let tag = last.and_then(|last| last.split_once(':')).map_or("latest", |(_, tag)| tag);
    let short = &commit[..commit.len().min(7)];
    // A tag may be 128 long; branches may be longer, and hold what tags may not.
    let head: String = format!("{tag}-{}", origin.branch)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .take(100)
        .collect();
    let head = head.trim_start_matches(['-', '.']);
    format!("localhost/{}/{repository}-{name}:{head}-{short}", origin.owner).to_lowercase().parse()
}

/// What image paths may hold of a name; it need not be unique, the function's name is.
fn component(name: &str) -> String {
    let mut text = String::new();
    for c in name.to_ascii_lowercase().chars() {
        if c.is_ascii_alphanumeric() {
            text.push(c);
        } else if !text.is_empty() && !text.ends_with('-') {
            text.push('-');
        }
    }
    text.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn options() -> PipelineOptions {
        crate::options::tests::options(Arc::new(|_, function| function.to_string()))
    }

    fn name(text: &str) -> FunctionName {
        FunctionName::new(text).unwrap()
    }

    fn with_origin<T>(work: impl FnOnce(Origin<'_>) -> T) -> T {
        let owner = OwnerName::new("alice").unwrap();
        let repository = RepositoryName::new("My.Shop").unwrap();
        work(Origin { owner: &owner, repository: &repository, branch: "main" })
    }

    fn with(change: impl FnOnce(&mut StackFunction)) -> StackFunction {
        let mut function = StackFunction::default();
        change(&mut function);
        function
    }

    fn spec_of(function: &StackFunction) -> (FunctionSpec, Vec<String>) {
        let image = "localhost/x:1".parse().unwrap();
        with_origin(|o| spec(o, &name("cart"), function, None, image, &options())).unwrap()
    }

    #[test]
    fn every_pushed_function_carries_the_labels_of_openfaas_cloud() {
        let (spec, changed) = spec_of(&StackFunction::default());
        assert_eq!(spec.id.to_string(), "alice-cart.openfaas-fn");
        for (key, value) in [
            ("app", "alice-cart"),
            ("com.openfaas.cloud.git-cloud", "1"),
            ("com.openfaas.cloud.git-owner", "alice"),
            ("com.openfaas.cloud.git-repo", "My.Shop"),
            ("com.openfaas.cloud.git-branch", "main"),
            ("com.openfaas.cloud.git-scm", "updraft"),
            ("com.openfaas.cloud.git-private", "1"),
            ("com.openfaas.scale.min", "1"),
            ("com.openfaas.scale.zero", "true"),
        ] {
            assert_eq!(spec.labels[key], value, "{key}");
        }
        assert!(spec.read_only_root);
        assert_eq!(spec.limits.unwrap().memory.unwrap().as_str(), "128Mi");
        assert!(changed.is_empty());
    }

    #[test]
    fn the_owner_may_not_set_the_platforms_labels() {
        let labels = BTreeMap::from([
            ("com.openfaas.cloud.git-owner".to_owned(), "bob".to_owned()),
            ("com.openfaas.scale.zero".to_owned(), "false".to_owned()),
            ("com.openfaas.scale.max".to_owned(), "500".to_owned()),
            ("team".to_owned(), "blue".to_owned()),
        ]);
        let (spec, changed) = spec_of(&with(|function| function.labels = labels));
        assert_eq!(spec.labels["com.openfaas.cloud.git-owner"], "alice");
        assert_eq!(spec.labels["com.openfaas.scale.zero"], "false");
        assert_eq!(spec.labels["com.openfaas.scale.max"], "20");
        assert_eq!(spec.labels["team"], "blue");
        assert_eq!(changed.len(), 2, "{changed:?}");
    }

    #[test]
    fn resources_are_honoured_up_to_what_is_allowed() {
        let limits = |memory: &str, cpu: &str| ResourceSet {
            memory: Some(memory.parse().unwrap()),
            cpu: Some(cpu.parse().unwrap()),
            ..ResourceSet::default()
        };
        let function = |limits| with(|function| function.limits = Some(limits));
        let (spec, changed) = spec_of(&function(limits("256Mi", "500m")));
        assert_eq!(spec.limits, Some(limits("256Mi", "500m")));
        assert!(changed.is_empty());
        for unlimited in ["64Gi", "0"] {
            let (spec, changed) = spec_of(&function(limits(unlimited, "500m")));
            assert_eq!(spec.limits.unwrap().memory.unwrap().bytes(), 1 << 30);
            assert_eq!(changed.len(), 1);
        }
    }

    #[test]
    fn secrets_are_the_owners() {
        let secrets = vec![SecretName::new("db").unwrap()];
        let (spec, _) = spec_of(&with(|function| function.secrets = secrets));
        assert_eq!(spec.secrets, [SecretName::new("alice-db").unwrap()]);
    }

    #[test]
    fn an_image_is_named_after_owner_repository_function_branch_and_commit() {
        let check = |image: Option<&str>, branch: &str, expected: &str| {
            let function = with(|function| function.image = image.map(str::to_owned));
            let tag = with_origin(|origin| {
                image_tag(Origin { branch, ..origin }, &name("cart"), &function, "04b8e44988")
            });
            assert_eq!(tag.unwrap().as_str(), expected);
        };
        let prefix = "localhost/alice/my-shop-cart";
        check(None, "main", &format!("{prefix}:latest-main-04b8e44"));
        check(Some("me/func:0.2"), "main", &format!("{prefix}:0.2-main-04b8e44"));
        check(Some("reg:5000/func"), "feat/ä b", &format!("{prefix}:latest-feat---b-04b8e44"));
    }
}
