//! Resources as text: stable order, and in a form that reads back the same.

mod yaml;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};
use zeroize::Zeroizing;

use crate::document::{API_VERSION, Item, SealedSecret, Template};
use crate::{Format, OpenedSecret};

pub(crate) use yaml::{scalar, yaml};

impl Format {
    /// A value as a document of this format, with the marks that documents begin or end with.
    pub(crate) fn write(self, value: &Json) -> String {
        match self {
            Self::Yaml => format!("---\n{}", yaml(value)),
            Self::Json => format!("{value:#}\n"),
        }
    }
}

impl SealedSecret {
    /// The resource as text.
    pub fn to_text(&self, format: Format) -> String {
        format.write(&self.to_json())
    }

    pub(crate) fn to_json(&self) -> Json {
        let items = self.items.iter().filter_map(|(key, item)| match item {
            Item::Sealed(value) => Some((key.clone(), Json::from(value.as_str()))),
            Item::Faulty(_) => None,
        });
        let mut metadata = named(&self.name, self.namespace.as_deref());
        put_texts(&mut metadata, "labels", &self.labels);
        put_texts(&mut metadata, "annotations", &self.annotations);
        let mut spec = Map::new();
        spec.insert("encryptedData".to_owned(), Json::Object(items.collect()));
        if let Some(legacy) = &self.legacy {
            spec.insert("data".to_owned(), legacy.0.as_str().into());
        }
        spec.insert("template".to_owned(), self.template_json());
        json!({"apiVersion": API_VERSION, "kind": "SealedSecret", "metadata": metadata, "spec": spec})
    }

    fn template_json(&self) -> Json {
        let Template { kind, immutable, labels, annotations, finalizers, data } = &self.template;
        // Name and namespace are there for people; nobody reads them.
        let mut metadata = named(&self.name, self.namespace.as_deref());
        put_texts(&mut metadata, "labels", labels);
        put_texts(&mut metadata, "annotations", annotations);
        if !finalizers.is_empty() {
            metadata.insert("finalizers".to_owned(), json!(finalizers));
        }
        let mut template = Map::new();
        template.insert("metadata".to_owned(), metadata.into());
        template.extend(kind.as_ref().map(|kind| ("type".to_owned(), json!(kind))));
        template.extend(immutable.map(|immutable| ("immutable".to_owned(), json!(immutable))));
        put_texts(&mut template, "data", data);
        template.into()
    }
}

impl OpenedSecret {
    /// The plain resource as text, wiped when dropped.
    pub fn to_text(&self, format: Format) -> Zeroizing<String> {
        let data =
            self.items.iter().map(|(key, value)| (key.clone(), STANDARD.encode(value.expose())));
        let data: BTreeMap<String, String> = data.collect();
        let mut metadata = named(&self.name, self.namespace.as_deref());
        put_texts(&mut metadata, "labels", &self.labels);
        put_texts(&mut metadata, "annotations", &self.annotations);
        let mut secret = Map::new();
        secret.insert("apiVersion".to_owned(), "v1".into());
        secret.insert("kind".to_owned(), "Secret".into());
        secret.insert("metadata".to_owned(), metadata.into());
        secret.extend(self.kind.as_ref().map(|kind| ("type".to_owned(), json!(kind))));
        if self.immutable {
            secret.insert("immutable".to_owned(), true.into());
        }
        put_texts(&mut secret, "data", &data);
        Zeroizing::new(format.write(&secret.into()))
    }
}

fn named(name: &str, namespace: Option<&str>) -> Map<String, Json> {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), name.into());
    metadata.extend(namespace.map(|namespace| ("namespace".to_owned(), namespace.into())));
    metadata
}

fn put_texts(into: &mut Map<String, Json>, key: &str, texts: &BTreeMap<String, String>) {
    if !texts.is_empty() {
        into.insert(key.to_owned(), json!(texts));
    }
}
