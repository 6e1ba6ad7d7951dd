//! Credentials that a function names for its own image, by an annotation.

use updraft_engine::{EngineError, SecretItems};
use updraft_images::RegistryCredentials;
use updraft_model::{FunctionSpec, SecretName, annotations};

use crate::secrets::{SecretStore, is_pull_kind};

impl SecretStore {
    /// The credentials that a spec names for the registry of its image, if it names some. Read
    /// anew for each start, so that a changed secret is used by the next one.
    ///
    /// # Errors
    /// The deployer's fault: the annotation names no secret that is there, or one that holds no
    /// credentials.
    pub(crate) fn pull_credentials(
        &self,
        spec: &FunctionSpec,
    ) -> Result<Option<RegistryCredentials>, EngineError> {
        let namespace = &spec.id.namespace;
        let annotation = annotations::PULL_SECRET;
        let Some(named) = spec.annotations.get(annotation) else {
            return self.credentials_among(spec);
        };
        let name = SecretName::new(named.trim()).map_err(|error| {
            EngineError::Invalid(format!("annotation `{annotation}` names no secret: {error}"))
        })?;
        if self.info(namespace, &name).is_none() {
            let namespace = namespace.clone();
            return Err(EngineError::MissingSecrets { namespace, names: vec![name] });
        }
        let parsed = parse(&self.read(namespace, &name)?, &name);
        parsed.map(Some).map_err(|reason| {
            EngineError::Invalid(format!(
                "secret `{name}`, which annotation `{annotation}` names, holds no credentials for \
                 a registry: {reason}"
            ))
        })
    }

    /// The first of a function's secrets whose type says that it holds such credentials.
    fn credentials_among(
        &self,
        spec: &FunctionSpec,
    ) -> Result<Option<RegistryCredentials>, EngineError> {
        let namespace = &spec.id.namespace;
        for name in &spec.secrets {
            let kind = self.info(namespace, name).and_then(|info| info.kind);
            if is_pull_kind(kind.as_deref()) {
                let parsed = parse(&self.read(namespace, name)?, name);
                return parsed.map(Some).map_err(|reason| {
                    EngineError::Invalid(format!(
                        "secret `{name}` holds no credentials for a registry: {reason}"
                    ))
                });
            }
        }
        Ok(None)
    }
}

fn parse(items: &SecretItems, name: &SecretName) -> Result<RegistryCredentials, String> {
    let value = items.get(".dockerconfigjson").or_else(|| items.value(name));
    let value = value.ok_or_else(|| "it has several items and none of its name".to_owned())?;
    RegistryCredentials::parse(value.expose()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::LocalEngineOptions;
    use updraft_engine::{PutSecret, SecretContent, SecretValue};
    use updraft_model::FunctionId;

    #[test]
    fn a_pull_secret_is_checked_before_it_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let options =
            LocalEngineOptions::new("00000000", folder.path(), &folder.path().join("run"));
        let secrets = SecretStore::in_folders(&options).unwrap().0;
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut spec = FunctionSpec::new(id, "r.example/i".parse().unwrap());
        assert!(secrets.pull_credentials(&spec).unwrap().is_none());
        let mut with = |value: &str| {
            spec.annotations.insert(annotations::PULL_SECRET.to_owned(), value.to_owned());
            secrets.pull_credentials(&spec)
        };
        assert!(matches!(with("Not A Name").unwrap_err(), EngineError::Invalid(_)));
        let missing = with("registry").unwrap_err();
        assert!(matches!(missing, EngineError::MissingSecrets { .. }), "{missing}");
        let keep = |value: &str| {
            let (place, name) = (updraft_model::Namespace::default(), "registry".parse().unwrap());
            let items = SecretItems::single(&name, SecretValue::new(value));
            let content = SecretContent::by_hand(items);
            secrets.put(&place, &name, &content, PutSecret::Either).unwrap();
        };
        keep("someone:hunter2");
        let wrong = with("registry").unwrap_err();
        assert!(matches!(wrong, EngineError::Invalid(_)), "{wrong}");
        assert!(!wrong.to_string().contains("hunter2"), "{wrong}");
        keep(r#"{"auths":{"r.example":{"auth":"dTpw"}}}"#);
        assert!(with(" registry ").unwrap().is_some());
        // As on Kubernetes, a secret of that type is for the registry without an annotation.
        spec.annotations.clear();
        spec.secrets = vec!["registry".parse().unwrap()];
        assert!(secrets.pull_credentials(&spec).unwrap().is_none());
        let (place, name) = (updraft_model::Namespace::default(), "registry".parse().unwrap());
        let mut content = SecretContent::by_hand(secrets.read(&place, &name).unwrap());
        content.kind = Some("kubernetes.io/dockerconfigjson".to_owned());
        secrets.put(&place, &name, &content, PutSecret::Either).unwrap();
        assert!(secrets.pull_credentials(&spec).unwrap().is_some());
    }
}
