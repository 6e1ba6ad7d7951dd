//! Credentials that a function names for its own image, by an annotation.

use updraft_engine::EngineError;
use updraft_images::RegistryCredentials;
use updraft_model::{FunctionSpec, SecretName, annotations};

use crate::secrets::SecretStore;

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
        let Some(named) = spec.annotations.get(annotations::PULL_SECRET) else { return Ok(None) };
        let annotation = annotations::PULL_SECRET;
        let name = SecretName::new(named.trim()).map_err(|error| {
            EngineError::Invalid(format!("annotation `{annotation}` names no secret: {error}"))
        })?;
        let namespace = &spec.id.namespace;
        if !self.contains(namespace, &name) {
            let namespace = namespace.clone();
            return Err(EngineError::MissingSecrets { namespace, names: vec![name] });
        }
        let value = self.read(namespace, &name)?;
        RegistryCredentials::parse(value.expose()).map(Some).map_err(|error| {
            EngineError::Invalid(format!(
                "secret `{name}`, which annotation `{annotation}` names, holds no credentials for \
                 a registry: {error}"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::LocalEngineOptions;
    use updraft_engine::SecretValue;
    use updraft_model::FunctionId;

    #[test]
    fn a_pull_secret_is_checked_before_it_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let options = LocalEngineOptions::new("00000000", folder.path(), folder.path());
        let secrets = SecretStore::in_folders(&options);
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
            secrets.keep(&place, &name, &SecretValue::new(value)).unwrap();
        };
        keep("someone:hunter2");
        let wrong = with("registry").unwrap_err();
        assert!(matches!(wrong, EngineError::Invalid(_)), "{wrong}");
        assert!(!wrong.to_string().contains("hunter2"), "{wrong}");
        keep(r#"{"auths":{"r.example":{"auth":"dTpw"}}}"#);
        assert!(with(" registry ").unwrap().is_some());
    }
}
