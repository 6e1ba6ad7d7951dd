//! What clients send.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use updraft_engine::{NamespaceInfo, SecretValue};
use updraft_model::{FunctionId, FunctionName, FunctionSpec, Namespace, ResourceSet, SecretName};

use super::decode::{DecodeError, Members};

/// Most replicas that a request may ask for.
const MAX_REPLICAS: u32 = 10_000;

/// Resource names of devices that OpenFaaS knows; others are ignored.
const DEVICES: &[&str] = &["nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu"];

/// The environment variable behind `envProcess`.
const PROCESS_VARIABLE: &str = "fprocess";

/// The annotation and label that make a namespace one for functions.
const NAMESPACE_MARK: (&str, &str) = ("openfaas", "1");

/// The body of a deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FunctionDeployment {
    /// The function's name.
    pub service: String,
    /// The image, as written.
    pub image: String,
    /// The namespace, when the body has one.
    pub namespace: Option<String>,
    /// The process that the watchdog runs.
    pub env_process: Option<String>,
    /// Environment variables.
    pub env_vars: BTreeMap<String, String>,
    /// Placement constraints.
    pub constraints: Vec<String>,
    /// Names of secrets to mount.
    pub secrets: Vec<String>,
    /// Labels; `null` is none.
    pub labels: BTreeMap<String, String>,
    /// Annotations; `null` is none.
    pub annotations: BTreeMap<String, String>,
    /// Hard limits.
    pub limits: Option<Resources>,
    /// Reserved amounts.
    pub requests: Option<Resources>,
    /// Whether the root file system is read-only.
    pub read_only_root_filesystem: bool,
}

/// Amounts of resources as texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Memory.
    pub memory: Option<String>,
    /// Processor share.
    pub cpu: Option<String>,
    /// Devices by resource name.
    pub devices: BTreeMap<String, String>,
}

impl FunctionDeployment {
    /// Reads the body of `POST` and `PUT /system/functions`.
    ///
    /// # Errors
    /// The caller's fault: no JSON, or a value of the wrong type.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut members = Members::parse(body)?;
        Ok(Self {
            service: members.text("service")?.unwrap_or_default(),
            image: members.text("image")?.unwrap_or_default(),
            namespace: members.text("namespace")?,
            env_process: members.text("envProcess")?,
            env_vars: members.text_map("envVars")?,
            constraints: members.text_list("constraints")?,
            secrets: members.text_list("secrets")?,
            labels: members.text_map("labels")?,
            annotations: members.text_map("annotations")?,
            limits: Resources::decode(&mut members, "limits")?,
            requests: Resources::decode(&mut members, "requests")?,
            read_only_root_filesystem: members.boolean("readOnlyRootFilesystem")?,
        })
    }

    /// Checks the deployment and says it in the model's words, in `namespace`.
    ///
    /// # Errors
    /// The caller's fault: a text for people that names the field.
    pub fn into_spec(self, namespace: Namespace) -> Result<FunctionSpec, String> {
        if self.service.is_empty() {
            return Err("validation failed: service: is required".to_owned());
        }
        if self.image.is_empty() {
            return Err("validation failed: image: is required".to_owned());
        }
        let name = FunctionName::new(self.service.as_str()).map_err(|_| {
            format!(
                "validation failed: service: ({}) is invalid, must be a valid DNS entry",
                self.service
            )
        })?;
        let image =
            self.image.parse().map_err(|error| format!("validation failed: image: {error}"))?;
        let mut spec = FunctionSpec::new(FunctionId { namespace, name }, image);
        let mut environment = self.env_vars;
        // Both spellings set the same variable, and a reply never shows it among the others.
        let in_environment = environment.remove(PROCESS_VARIABLE).filter(|text| !text.is_empty());
        spec.process = self.env_process.or(in_environment);
        spec.environment = environment;
        spec.constraints = self.constraints;
        spec.secrets = secret_names(self.secrets)?;
        spec.labels = self.labels;
        spec.annotations = self.annotations;
        spec.limits = self.limits.map(|limits| limits.into_model("limits")).transpose()?;
        spec.requests =
            self.requests.map(|requests| requests.into_model("requests")).transpose()?;
        spec.read_only_root = self.read_only_root_filesystem;
        spec.check().map_err(|error| format!("validation failed: {error}"))?;
        Ok(spec)
    }
}

fn secret_names(names: Vec<String>) -> Result<Vec<SecretName>, String> {
    let mut checked = Vec::with_capacity(names.len());
    for (index, name) in names.into_iter().enumerate() {
        let name = SecretName::new(name)
            .map_err(|error| format!("validation failed: secrets[{index}]: {error}"))?;
        if !checked.contains(&name) {
            checked.push(name);
        }
    }
    Ok(checked)
}

impl Resources {
    /// Absent, `null`, `{}` and an object of empty texts all mean that nothing was asked for.
    fn decode(members: &mut Members, name: &str) -> Result<Option<Self>, DecodeError> {
        let Some(mut members) = members.object(name)? else {
            return Ok(None);
        };
        let mut resources =
            Self { memory: members.text("memory")?, cpu: members.text("cpu")?, ..Self::default() };
        for &device in DEVICES {
            if let Some(amount) = members.text(device)? {
                resources.devices.insert(device.to_owned(), amount);
            }
        }
        Ok(Some(resources).filter(|resources| *resources != Self::default()))
    }

    fn into_model(self, field: &str) -> Result<ResourceSet, String> {
        let wrong = |part: &str, error: &dyn fmt::Display| {
            format!("validation failed: {field}.{part}: {error}")
        };
        for (device, amount) in &self.devices {
            if amount.parse::<u32>().is_err() {
                return Err(wrong(device, &format!("`{amount}` is no whole number of devices")));
            }
        }
        let memory = self.memory.as_deref().map(str::parse).transpose();
        let cpu = self.cpu.as_deref().map(str::parse).transpose();
        Ok(ResourceSet {
            memory: memory.map_err(|error| wrong("memory", &error))?,
            cpu: cpu.map_err(|error| wrong("cpu", &error))?,
            devices: self.devices,
        })
    }
}

/// The body of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteFunctionRequest {
    /// The function's name.
    pub function_name: Option<String>,
    /// The namespace, when the body has one.
    pub namespace: Option<String>,
}

impl DeleteFunctionRequest {
    /// Reads the body of `DELETE /system/functions`.
    ///
    /// # Errors
    /// The caller's fault: no JSON, or a value of the wrong type.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut members = Members::parse(body)?;
        Ok(Self {
            function_name: members.text("functionName")?,
            namespace: members.text("namespace")?,
        })
    }
}

/// The body of a change of the number of replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleServiceRequest {
    /// The number wanted.
    pub replicas: u32,
    /// The namespace, when the body has one.
    pub namespace: Option<String>,
}

impl ScaleServiceRequest {
    /// Reads the body of `POST /system/scale-function/{name}`. The name in it is not read: the
    /// path's counts.
    ///
    /// # Errors
    /// The caller's fault: no JSON, a value of the wrong type, no number or too high a one.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut members = Members::parse(body)?;
        let wrong = |reason: String| DecodeError::Value { field: "replicas".to_owned(), reason };
        // Go would read an absent number as 0 and stop the function; clients always send one.
        let replicas =
            members.whole_number("replicas")?.ok_or_else(|| wrong("is required".to_owned()))?;
        let replicas =
            u32::try_from(replicas).ok().filter(|replicas| *replicas <= MAX_REPLICAS).ok_or_else(
                || wrong(format!("at most {MAX_REPLICAS} are allowed, found {replicas}")),
            )?;
        Ok(Self { replicas, namespace: members.text("namespace")? })
    }
}

/// A secret as clients send it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// Its name.
    pub name: Option<String>,
    /// The namespace, when the body has one.
    pub namespace: Option<String>,
    /// `rawValue` decoded, else the bytes of `value`.
    pub value: SecretValue,
}

impl Secret {
    /// Reads the body of the `/system/secrets` routes.
    ///
    /// # Errors
    /// The caller's fault: no JSON, a value of the wrong type, or `rawValue` is no base64. The
    /// message never holds the value.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut members = Members::parse(body)?;
        let raw = members.text("rawValue")?.map(|raw| BASE64_STANDARD.decode(raw)).transpose();
        let raw = raw.map_err(|_| DecodeError::Value {
            field: "rawValue".to_owned(),
            reason: "is no base64 text".to_owned(),
        })?;
        let value = members.text("value")?;
        Ok(Self {
            name: members.text("name")?,
            namespace: members.text("namespace")?,
            value: SecretValue::new(raw.unwrap_or_else(|| value.unwrap_or_default().into_bytes())),
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// A namespace as clients send it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FunctionNamespace {
    /// Its name.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

impl FunctionNamespace {
    /// Reads the body of the `/system/namespace/` routes.
    ///
    /// # Errors
    /// The caller's fault: no JSON, or a value of the wrong type.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut members = Members::parse(body)?;
        Ok(Self {
            name: members.text("name")?,
            labels: members.text_map("labels")?,
            annotations: members.text_map("annotations")?,
        })
    }

    /// In the model's words. Every namespace carries OpenFaaS's mark both as label and as
    /// annotation, since clients differ in where they look.
    pub fn into_info(self, name: Namespace) -> NamespaceInfo {
        let (mark, value) = NAMESPACE_MARK;
        let mut info = NamespaceInfo { name, labels: self.labels, annotations: self.annotations };
        for marks in [&mut info.labels, &mut info.annotations] {
            marks.entry(mark.to_owned()).or_insert_with(|| value.to_owned());
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Result<FunctionSpec, String> {
        let deployment = FunctionDeployment::decode(json.as_bytes()).map_err(|e| e.to_string())?;
        deployment.into_spec(Namespace::default())
    }

    #[test]
    fn old_fields_nulls_and_empty_resources_are_accepted() {
        let spec = spec(
            r#"{"service":"f","image":"i","network":"func","registryAuth":"x","labels":null,
                "annotations":null,"envVars":null,"secrets":null,"limits":{},"requests":{"memory":""}}"#,
        )
        .unwrap();
        assert_eq!(spec, FunctionSpec::new(spec.id.clone(), spec.image.clone()));
    }

    #[test]
    fn the_process_never_stays_among_the_variables() {
        let one =
            spec(r#"{"service":"f","image":"i","envVars":{"fprocess":"cat","a":"b"}}"#).unwrap();
        assert_eq!(one.process.as_deref(), Some("cat"));
        assert_eq!(one.environment, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        let both = r#"{"service":"f","image":"i","envProcess":"env","envVars":{"fprocess":"cat"}}"#;
        assert_eq!(spec(both).unwrap().process.as_deref(), Some("env"));
    }

    #[test]
    fn refusals_name_the_field() {
        let check = |json: &str, text: &str| {
            let error = spec(json).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        check("{}", "service: is required");
        check(r#"{"service":"f"}"#, "image: is required");
        check(
            r#"{"service":"No_Dns","image":"i"}"#,
            "validation failed: service: (No_Dns) is invalid, must be a valid DNS entry",
        );
        check(r#"{"service":"a.b","image":"i"}"#, "service: (a.b) is invalid");
        check(r#"{"service":"f","image":"a b"}"#, "image: image reference `a b` is invalid");
        check(r#"{"service":"f","image":"i","limits":{"memory":"5Xi"}}"#, "limits.memory:");
        check(r#"{"service":"f","image":"i","requests":{"cpu":"much"}}"#, "requests.cpu:");
        check(
            r#"{"service":"f","image":"i","limits":{"nvidia.com/gpu":"x"}}"#,
            "limits.nvidia.com/gpu:",
        );
        check(r#"{"service":"f","image":"i","secrets":["ok","../x"]}"#, "secrets[1]:");
        check(r#"{"service":"f","image":"i","labels":{"faas_function":"g"}}"#, "faas_function");
        check(r#"{"service":"f","image":"i","envVars":{"a=b":""}}"#, "a=b");
    }

    #[test]
    fn the_raw_value_of_a_secret_wins_and_nothing_prints_it() {
        let secret = Secret::decode(br#"{"name":"s","value":"plain","rawValue":"AP8="}"#).unwrap();
        assert_eq!(secret.value.expose(), [0, 255]);
        assert!(!format!("{secret:?}").contains("255"));
        let secret = Secret::decode(br#"{"name":"s","value":"plain"}"#).unwrap();
        assert_eq!(secret.value.expose(), b"plain");
        let error = Secret::decode(br#"{"rawValue":"hunter2!"}"#).unwrap_err().to_string();
        assert_eq!(error, "rawValue: is no base64 text");
    }

    #[test]
    fn a_scale_without_a_number_is_refused() {
        let check = |json: &str, text: &str| {
            let error = ScaleServiceRequest::decode(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        };
        check(r#"{"serviceName":"f"}"#, "replicas: is required");
        check(r#"{"replicas":10001}"#, "at most 10000");
        check(r#"{"replicas":1.5}"#, "whole number");
        assert_eq!(ScaleServiceRequest::decode(br#"{"Replicas":0}"#).unwrap().replicas, 0);
    }

    #[test]
    fn a_namespace_carries_its_mark_twice_and_keeps_an_older_one() {
        let info = FunctionNamespace::decode(br#"{"name":"a","annotations":{"openfaas":"true"}}"#)
            .unwrap()
            .into_info(Namespace::new("a").unwrap());
        assert_eq!(info.labels["openfaas"], "1");
        assert_eq!(info.annotations["openfaas"], "true");
    }
}
