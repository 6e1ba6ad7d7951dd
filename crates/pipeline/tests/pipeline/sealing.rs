//! What the tests of sealed secrets share: keys, documents, what is in force.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use updraft_engine::{Engine, SecretItems};
use updraft_model::{Namespace, SecretName};
use updraft_pipeline::{PipelineOptions, PushEventKind, SecretOutcome, Unsealer};
use updraft_seal::{
    Certificate, Hints, KeyRing, KeyRingOptions, Limits, OpenedSecret, OpeningKey, PrivateKey,
    SealedSecret, SecretBytes, UnsealError, seal_value, unseal_with_keys,
};

use crate::world::{BOUND, Story, World, stack};

pub(crate) const DOCKERFILE: &str = "FROM scratch\n";

/// The one key of a platform, of a size that tests can wait for.
#[derive(Debug)]
pub(crate) struct OneKey(PrivateKey);

impl Unsealer for OneKey {
    fn unseal(&self, secret: &SealedSecret, hints: &Hints) -> Result<OpenedSecret, UnsealError> {
        let key = OpeningKey { key: &self.0, in_use: true };
        unseal_with_keys(&[key], secret, hints, Limits::usual())
    }
}

pub(crate) fn sealer() -> (Arc<OneKey>, Certificate) {
    let key = PrivateKey::generate(2048).unwrap();
    let certificate = key.certify("", Timestamp::now(), SignedDuration::from_hours(1)).unwrap();
    (Arc::new(OneKey(key)), certificate)
}

/// A platform that opens what is sealed with the certificate.
pub(crate) fn world_with(change: fn(&mut PipelineOptions)) -> (World, Certificate) {
    let (key, certificate) = sealer();
    let mut world = World::with(change);
    world.kill();
    world.unsealer = key;
    world.start();
    (world, certificate)
}

pub(crate) fn world() -> (World, Certificate) {
    world_with(|_| {})
}

pub(crate) fn value(certificate: &Certificate, label: &str, value: &[u8]) -> String {
    seal_value(certificate, label.as_bytes(), &SecretBytes::new(value.to_vec())).unwrap()
}

/// A document in strict scope for the functions' namespace.
pub(crate) fn sealed(certificate: &Certificate, name: &str, items: &[(&str, &str)]) -> String {
    let label = format!("openfaas-fn/{name}");
    let mut text = format!(
        "---\napiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata:\n  name: {name}\n  \
         namespace: openfaas-fn\nspec:\n  encryptedData:\n"
    );
    for (key, plain) in items {
        let sealed = value(certificate, &label, plain.as_bytes());
        writeln!(text, "    {key}: {sealed}").unwrap();
    }
    text
}

/// A stack of one function `hello` with secrets.
pub(crate) fn stack_with(secrets: &[&str]) -> String {
    let mut text = stack(&["hello"]);
    text.push_str("    secrets:\n");
    for name in secrets {
        writeln!(text, "      - {name}").unwrap();
    }
    text
}

pub(crate) fn name(text: &str) -> SecretName {
    SecretName::new(text).unwrap()
}

pub(crate) fn held(world: &World, secret: &str) -> Option<BTreeMap<String, String>> {
    let items = world.run(world.engine.read_secret(&Namespace::default(), &name(secret))).ok()?;
    let text = |items: &SecretItems| {
        let items = items.iter();
        items
            .map(|(key, value)| {
                (key.to_string(), String::from_utf8_lossy(value.expose()).into_owned())
            })
            .collect()
    };
    Some(text(&items))
}

pub(crate) fn items(items: &[(&str, &str)]) -> BTreeMap<String, String> {
    items.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn outcomes(story: &Story) -> Vec<(String, SecretOutcome)> {
    let of = |event: &updraft_pipeline::PushEvent| match &event.kind {
        PushEventKind::SecretTaken { secret, outcome, .. } => Some((secret.to_string(), *outcome)),
        _ => None,
    };
    story.events.iter().filter_map(of).collect()
}

pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// A ring of keys of a size that tests can wait for, in a folder.
pub(crate) fn ring(folder: &std::path::Path, make: bool) -> Arc<KeyRing> {
    let usual = KeyRingOptions::usual(folder.join("machine-key"));
    let options = KeyRingOptions { key_bits: 2048, make, ..usual };
    Arc::new(KeyRing::open(&folder.join("keys"), options).unwrap())
}

/// A platform that opens with the keys of a ring.
pub(crate) fn world_of(ring: &Arc<KeyRing>) -> World {
    let mut world = World::new();
    world.kill();
    world.unsealer = Arc::<KeyRing>::clone(ring);
    world.start();
    world
}
