//! Sealing a plain secret.

use std::collections::BTreeMap;

use jiff::Timestamp;
use thiserror::Error;

use crate::document::{Item, Place, PlainSecret, SealedSecret, Template};
use crate::scope::is_plain_name;
use crate::value::seal_value;
use crate::{Certificate, CertificateError, Limits, Scope, SecretBytes};

/// Annotations that tools put on a secret and that hold its plain values.
const LEAKING: [&str; 2] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "kubecfg.ksonnet.io/last-applied-configuration",
];

/// What is to be sealed.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Name of the secret.
    pub name: String,
    /// Its namespace; may be missing in cluster-wide scope.
    pub namespace: Option<String>,
    /// How tightly its items are bound.
    pub scope: Scope,
    /// What the opened secret shall look like.
    pub template: Template,
    /// The items.
    pub items: BTreeMap<String, SecretBytes>,
}

/// A secret cannot be sealed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SealError {
    /// The certificate's fault.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// There is no key here to seal with.
    #[error("there is no certificate to seal with")]
    NoCertificate,
    /// The writer's fault.
    #[error("missing metadata.name in input Secret; name it with --name")]
    NoName,
    /// The writer's fault.
    #[error("missing metadata.namespace in input Secret; say it with --namespace")]
    NoNamespace,
    /// The writer's fault.
    #[error("the {what} `{found}` may hold letters, digits, `-`, `_` and `.`, at most 253")]
    Name {
        /// Name, namespace or key.
        what: &'static str,
        /// What it is.
        found: String,
    },
    /// The writer's fault.
    #[error("there is nothing to seal; an empty secret must be allowed on purpose")]
    Empty,
    /// The writer's fault.
    #[error("the item `{key}` has {size} bytes, {limit} are allowed")]
    TooLarge {
        /// Which item.
        key: String,
        /// How large it is.
        size: usize,
        /// How large it may be.
        limit: usize,
    },
    /// The writer's fault.
    #[error("the items have {size} bytes together, {limit} are allowed")]
    SecretTooLarge {
        /// How large they are.
        size: usize,
        /// How large they may be.
        limit: usize,
    },
    /// The writer's fault.
    #[error("there are {found} items, {limit} are allowed")]
    TooManyItems {
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The machine's fault.
    #[error("the item `{key}` cannot be encrypted")]
    Encrypt {
        /// Which item.
        key: String,
    },
}

impl Draft {
    /// What a plain `Secret` says, less what holds its values again or belongs to a cluster.
    pub fn of(secret: PlainSecret) -> Self {
        let annotations = &secret.template.annotations;
        let scope = Scope::of_annotations(|key| annotations.get(key).map(String::as_str));
        let mut template = secret.template;
        for leaking in LEAKING {
            template.annotations.remove(leaking);
        }
        template.finalizers.clear();
        Self {
            name: secret.name.unwrap_or_default(),
            namespace: secret.namespace,
            scope,
            template,
            items: secret.items,
        }
    }
}

/// Seals every item of a draft with a certificate whose time is not over.
///
/// # Errors
/// See [`SealError`].
pub fn seal(
    certificate: &Certificate,
    draft: &Draft,
    now: Timestamp,
) -> Result<SealedSecret, SealError> {
    certificate.check_time(now)?;
    check(draft)?;
    let namespace = draft.namespace.clone();
    let label = match (&namespace, draft.scope) {
        (Some(namespace), scope) => scope.label(namespace, &draft.name),
        (None, Scope::ClusterWide) => Vec::new(),
        (None, _) => return Err(SealError::NoNamespace),
    };
    let mut items = BTreeMap::new();
    for (key, value) in &draft.items {
        let sealed = seal_value(certificate, &label, value)
            .map_err(|_| SealError::Encrypt { key: key.clone() })?;
        items.insert(key.clone(), Item::Sealed(sealed));
    }
    let annotation = draft.scope.annotation();
    let mut template = draft.template.clone();
    for scope in Scope::ALL {
        if let Some(annotation) = scope.annotation() {
            template.annotations.remove(annotation);
        }
    }
    template.annotations.extend(annotation.map(|key| (key.to_owned(), "true".to_owned())));
    Ok(SealedSecret {
        place: Place { document: 1, item: None, line: 0 },
        name: draft.name.clone(),
        namespace,
        scope: draft.scope,
        annotations: annotation
            .map(|key| (key.to_owned(), "true".to_owned()))
            .into_iter()
            .collect(),
        labels: BTreeMap::new(),
        items,
        legacy: None,
        template,
    })
}

fn check(draft: &Draft) -> Result<(), SealError> {
    if draft.name.is_empty() {
        return Err(SealError::NoName);
    }
    let named = |what, text: &str| {
        let found = || text.chars().take(80).collect();
        if is_plain_name(text) { Ok(()) } else { Err(SealError::Name { what, found: found() }) }
    };
    named("name", &draft.name)?;
    if let Some(namespace) = &draft.namespace {
        named("namespace", namespace)?;
    }
    let limits = Limits::usual();
    if draft.items.len() > limits.items {
        return Err(SealError::TooManyItems { found: draft.items.len(), limit: limits.items });
    }
    // What Kubernetes takes as one secret.
    let limit = 1 << 20;
    let mut total = 0;
    for (key, value) in &draft.items {
        named("item key", key)?;
        if value.len() > limit {
            return Err(SealError::TooLarge { key: key.clone(), size: value.len(), limit });
        }
        total += value.len();
    }
    if total > limit {
        return Err(SealError::SecretTooLarge { size: total, limit });
    }
    Ok(())
}
