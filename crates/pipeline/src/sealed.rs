//! Sealed secrets of a repository: which of its documents may become secrets, and what of them.
//!
//! Whoever can push decides what a document says, and all owners' secrets lie side by side in one
//! namespace. So a name must begin with the owner's and `-`, the namespace is the functions' own,
//! values are bound to exactly that name and namespace, and of the metadata only what cannot
//! steer the platform is kept. Nothing here opens a value by itself or keeps one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use updraft_engine::{SecretContent, SecretItems, SecretOrigin, SecretValue};
use updraft_model::{ItemKey, Namespace, OwnerName, RepositoryName, SecretName};
use updraft_seal::{
    Document, Hints, KeyRing, Limits, OpenedSecret, Scope, SealedSecret, UnsealError, parse_each,
};
use updraft_source::stack::SecretFile;

/// Marks a secret whose document says that it never changes.
pub(crate) const IMMUTABLE: &str = "updraft.immutable";

/// Types that a secret may have.
const KINDS: [&str; 6] = [
    "Opaque",
    "kubernetes.io/tls",
    "kubernetes.io/dockerconfigjson",
    "kubernetes.io/dockercfg",
    "kubernetes.io/basic-auth",
    "kubernetes.io/ssh-auth",
];

/// Prefixes of labels and annotations that are kept, besides names without one.
const KEPT_PREFIXES: [&str; 1] = ["app.kubernetes.io/"];

/// Names without a prefix that belong to the platform.
const PLATFORM_NAMES: [&str; 3] = ["com.openfaas", "faas_", "updraft"];

/// Most labels and annotations that are kept, and most bytes in each of them.
const NOTES_MAX: usize = 50;
const NOTE_BYTES_MAX: usize = 1024;

/// Opens sealed secrets.
pub trait Unsealer: Send + Sync + fmt::Debug + 'static {
    /// Opens one, with every key there is; where none fits, `hints` are other places that it may
    /// have been sealed for.
    ///
    /// # Errors
    /// Every item that does not open, with the reason.
    fn unseal(&self, secret: &SealedSecret, hints: &Hints) -> Result<OpenedSecret, UnsealError>;

    /// The ring of keys, which counts what becomes of secrets and knows which key opened them.
    fn ring(&self) -> Option<&KeyRing> {
        None
    }
}

impl Unsealer for KeyRing {
    fn unseal(&self, secret: &SealedSecret, hints: &Hints) -> Result<OpenedSecret, UnsealError> {
        self.unseal_with(secret, hints)
    }

    fn ring(&self) -> Option<&KeyRing> {
        Some(self)
    }
}

/// Whose secrets are looked at, and by which rules.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) owner: OwnerName,
    pub(crate) repository: RepositoryName,
    pub(crate) commit: String,
    pub(crate) namespace: Namespace,
    /// Whether the operator lets values be bound to less than one name.
    pub(crate) wider_scopes: bool,
}

/// What the files of a commit say.
#[derive(Debug, Default)]
pub(crate) struct Import {
    /// The secrets as they shall be, with their files.
    pub(crate) opened: BTreeMap<SecretName, Opened>,
    /// What cannot be taken, in the order of the files.
    pub(crate) refused: Vec<Refused>,
    /// Names in the files, in whatever state their documents are.
    pub(crate) named: BTreeSet<SecretName>,
    /// Whether every file could be read, so that what is not named is known to have left.
    pub(crate) complete: bool,
    /// What the owner should know.
    pub(crate) warnings: Vec<String>,
}

/// A secret as it shall be.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: String,
    pub(crate) place: String,
    pub(crate) content: SecretContent,
    /// Fingerprints of the keys that opened it.
    pub(crate) keys_used: BTreeSet<String>,
}

/// A document, or a file, that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) file: String,
    /// Where in the file; empty for the file as a whole.
    pub(crate) place: String,
    /// The secret's name, as written.
    pub(crate) name: Option<String>,
    /// Why; never with a value.
    pub(crate) reason: String,
}

/// Reads the files and opens what may be opened. Costs processor time: RSA operations for each
/// item.
pub(crate) fn import(rules: &Rules, files: &[SecretFile], unsealer: &dyn Unsealer) -> Import {
    let mut import = Import { complete: true, ..Import::default() };
    let mut found: Vec<(&str, SealedSecret)> = Vec::new();
    for file in files {
        let refuse = |place: String, name, reason| {
            let file = file.path.clone();
            Refused { file, place, name, reason }
        };
        let read = match &file.content {
            Ok(bytes) => parse_each(bytes, Limits::usual()).map_err(|error| error.to_string()),
            Err(reason) => Err(reason.clone()),
        };
        let documents = match read {
            Ok(documents) => documents,
            Err(reason) => {
                import.complete = false;
                import.refused.push(refuse(String::new(), None, reason));
                continue;
            }
        };
        for document in documents {
            match document {
                Ok(Document::Sealed(sealed)) => found.push((&file.path, *sealed)),
                Ok(Document::Other(other)) if other.kind == "Secret" => {
                    let reason = "it is not sealed, and everybody who can read the repository can \
                                  read it: change the value where it is used, then seal the new \
                                  one with `updraft seal`";
                    let named = other.name.as_deref().and_then(in_lower_case);
                    import.complete &= named.is_some();
                    import.named.extend(named);
                    let place = other.place.to_string();
                    import.refused.push(refuse(place, other.name, reason.to_owned()));
                }
                Ok(Document::Other(other)) => import.warnings.push(format!(
                    "{}, {}: `{}` is no SealedSecret and is left out",
                    file.path, other.place, other.kind
                )),
                Err(unreadable) => {
                    // Without a name it may be any of those that the repository brought before.
                    let named = unreadable.name.as_deref().and_then(in_lower_case);
                    import.complete &= named.is_some();
                    import.named.extend(named);
                    let reason = unreadable.error.to_string();
                    import.refused.push(refuse(String::new(), unreadable.name, reason));
                }
            }
        }
    }
    let names = found.iter().map(|(_, sealed)| sealed.name.clone());
    let unreadable = import.refused.iter().filter_map(|refused| refused.name.clone());
    let names: Vec<String> = names.chain(unreadable).collect();
    let hints = Hints { names: names.clone(), namespaces: vec![rules.namespace.to_string()] };
    for (file, sealed) in found {
        let place = sealed.place.to_string();
        let lower = sealed.name.to_lowercase();
        let namesakes = names.iter().filter(|name| name.to_lowercase() == lower).count();
        import.named.extend(in_lower_case(&lower));
        let mut warnings = Vec::new();
        let judged = judge(rules, &sealed, namesakes).and_then(|name| {
            let sealed = sealed.clone().or_in_namespace(rules.namespace.as_str());
            let opened = unsealer.unseal(&sealed, &hints).map_err(|error| error.to_string())?;
            let keys_used = opened.opened_by.clone();
            let content = content(rules, file, opened, &mut warnings)?;
            content.check(&name).map_err(|error| error.to_string())?;
            Ok((name, content, keys_used))
        });
        for warning in warnings {
            import.warnings.push(format!("{file}, {place}, secret `{}`: {warning}", sealed.name));
        }
        match judged {
            Ok((name, content, keys_used)) => {
                let file = file.to_owned();
                import.opened.insert(name, Opened { file, place, content, keys_used });
            }
            Err(reason) => {
                let (file, name) = (file.to_owned(), Some(sealed.name.clone()));
                import.refused.push(Refused { file, place, name, reason });
            }
        }
    }
    import
}

/// The secret that a name as written means.
fn in_lower_case(name: &str) -> Option<SecretName> {
    SecretName::new(name.to_lowercase()).ok()
}

/// Whether a document may be this owner's, before any key is tried.
fn judge(rules: &Rules, sealed: &SealedSecret, namesakes: usize) -> Result<SecretName, String> {
    let Rules { owner, namespace, .. } = rules;
    if namesakes > 1 {
        return Err(format!(
            "{namesakes} documents have this name (upper case counts as lower case); put all items \
             into one of them"
        ));
    }
    let lower = sealed.name.to_lowercase();
    if lower != sealed.name && SecretName::new(lower.as_str()).is_ok() {
        return Err(format!("names of secrets are in lower case; seal it again as `{lower}`"));
    }
    let name = SecretName::new(sealed.name.as_str()).map_err(|error| error.to_string())?;
    let own = name.as_str().strip_prefix(owner.as_str()).and_then(|rest| rest.strip_prefix('-'));
    if own.is_none_or(|own| SecretName::new(own).is_err()) {
        return Err(format!(
            "the name must begin with `{owner}-`, because that is whose repository this is; seal \
             it again with such a name"
        ));
    }
    if let Some(other) = sealed.namespace.as_deref().filter(|other| *other != namespace.as_str()) {
        return Err(format!(
            "it is for namespace `{other}`, and functions run in `{namespace}`; seal it again \
             with `--namespace {namespace}`"
        ));
    }
    if sealed.scope != Scope::Strict && !rules.wider_scopes {
        return Err(format!(
            "it is sealed {}, so that others could copy it out of the repository and have it \
             opened as theirs; seal it again in scope `strict`",
            sealed.scope
        ));
    }
    Ok(name)
}

/// What is kept of an opened secret.
fn content(
    rules: &Rules,
    file: &str,
    opened: OpenedSecret,
    warnings: &mut Vec<String>,
) -> Result<SecretContent, String> {
    let kind = opened.kind.filter(|kind| !kind.is_empty());
    if let Some(kind) = kind.as_deref().filter(|kind| !KINDS.contains(kind)) {
        return Err(format!("type `{kind}` is not supported, known are {}", KINDS.join(", ")));
    }
    let item = |(key, value): (String, updraft_seal::SecretBytes)| {
        let key = ItemKey::new(key).map_err(|error| error.to_string())?;
        Ok::<_, String>((key, SecretValue::new(value.expose())))
    };
    let items: SecretItems = opened.items.into_iter().map(item).collect::<Result<_, _>>()?;
    let mut kept = |what: &str, notes: BTreeMap<String, String>| {
        let mut kept = BTreeMap::new();
        for (key, value) in notes {
            if is_kept(&key) && value.len() <= NOTE_BYTES_MAX && kept.len() < NOTES_MAX {
                kept.insert(key, value);
            } else {
                warnings.push(format!("{what} `{key}` of its template is left out"));
            }
        }
        kept
    };
    let labels = kept("label", opened.labels);
    let mut annotations = kept("annotation", opened.annotations);
    if opened.immutable {
        annotations.insert(IMMUTABLE.to_owned(), "true".to_owned());
    }
    let origin = SecretOrigin::Sealed {
        owner: rules.owner.clone(),
        repository: rules.repository.clone(),
        commit: rules.commit.clone(),
        file: file.to_owned(),
    };
    Ok(SecretContent { items, kind, labels, annotations, origin })
}

/// Whether a label or annotation is the owner's own affair.
fn is_kept(key: &str) -> bool {
    if KEPT_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
        return true;
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    key.len() <= 63
        && key.bytes().all(fits)
        && !PLATFORM_NAMES.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_that_could_steer_the_platform_is_left_out() {
        for key in ["app", "team_1", "app.kubernetes.io/name"] {
            assert!(is_kept(key), "{key}");
        }
        for key in [
            "com.openfaas.cloud.git-owner",
            "updraft.immutable",
            "faas_function",
            "sealedsecrets.bitnami.com/managed",
            "kubernetes.io/service-account.name",
            "a b",
            &"k".repeat(64),
        ] {
            assert!(!is_kept(key), "{key}");
        }
    }
}
