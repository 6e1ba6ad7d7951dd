//! Secrets: sets of items, what is told of them, and what no engine takes.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use updraft_model::{Digest, ItemKey, OwnerName, RepositoryName, SecretName};
use zeroize::Zeroizing;

use crate::EngineError;

/// Most bytes in all items of one secret, as on Kubernetes.
pub const SECRET_BYTES_MAX: usize = 1 << 20;

/// Most items of one secret.
pub const SECRET_ITEMS_MAX: usize = 1000;

/// A secret's bytes. Never printed, wiped when dropped; hand it on or drop it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// Wraps the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes, to be written where the function reads them and nowhere else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

/// The items of one secret: each becomes a file under `/var/openfaas/secrets`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretItems(BTreeMap<ItemKey, SecretValue>);

impl SecretItems {
    /// A secret of one value: one item that has the secret's name.
    pub fn single(name: &SecretName, value: SecretValue) -> Self {
        Self(BTreeMap::from([(ItemKey::from(name), value)]))
    }

    /// The item of that key.
    pub fn get(&self, key: &str) -> Option<&SecretValue> {
        self.0.get(key)
    }

    /// The one value that is meant by the secret's name: its item of that name, else its only
    /// item.
    pub fn value(&self, name: &SecretName) -> Option<&SecretValue> {
        let only = || self.0.values().next().filter(|_| self.0.len() == 1);
        self.0.get(name.as_str()).or_else(only)
    }

    /// The items by key.
    pub fn iter(&self) -> impl Iterator<Item = (&ItemKey, &SecretValue)> {
        self.0.iter()
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &ItemKey> {
        self.0.keys()
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes in all items.
    pub fn bytes(&self) -> usize {
        self.0.values().map(|value| value.0.len()).sum()
    }
}

impl FromIterator<(ItemKey, SecretValue)> for SecretItems {
    fn from_iter<I: IntoIterator<Item = (ItemKey, SecretValue)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

/// Who made a secret what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum SecretOrigin {
    /// Somebody by hand, through an API.
    Api,
    /// A sealed document in a repository.
    Sealed {
        /// Whose repository.
        owner: OwnerName,
        /// Which repository.
        repository: RepositoryName,
        /// The commit that changed the secret last.
        commit: String,
        /// The file in it.
        file: String,
    },
}

impl SecretOrigin {
    /// Whether both are the same hand or the same repository.
    pub fn is_same_source(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Api, Self::Api) => true,
            (
                Self::Sealed { owner, repository, .. },
                Self::Sealed { owner: other_owner, repository: other_repository, .. },
            ) => owner == other_owner && repository == other_repository,
            _ => false,
        }
    }
}

/// What a secret is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretContent {
    /// Its items. What it held before and is not among them is gone.
    pub items: SecretItems,
    /// Its type as Kubernetes has it, for instance `kubernetes.io/tls`; `Opaque` when absent.
    pub kind: Option<String>,
    /// Labels, as its maker gave them.
    pub labels: BTreeMap<String, String>,
    /// Annotations, as its maker gave them.
    pub annotations: BTreeMap<String, String>,
    /// Who makes it so.
    pub origin: SecretOrigin,
}

impl SecretContent {
    /// Items given by hand.
    pub fn by_hand(items: SecretItems) -> Self {
        Self {
            items,
            kind: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            origin: SecretOrigin::Api,
        }
    }

    /// Refuses what no engine keeps.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: more items or more bytes than a secret may have.
    pub fn check(&self, name: &SecretName) -> Result<(), EngineError> {
        let (items, bytes) = (self.items.len(), self.items.bytes());
        if items > SECRET_ITEMS_MAX {
            return Err(EngineError::Invalid(format!(
                "secret `{name}` has {items} items, {SECRET_ITEMS_MAX} are allowed"
            )));
        }
        if bytes > SECRET_BYTES_MAX {
            return Err(EngineError::Invalid(format!(
                "secret `{name}` has {bytes} bytes in its items, {SECRET_BYTES_MAX} are allowed"
            )));
        }
        Ok(())
    }
}

/// Which secret may be there when one is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutSecret {
    /// None of that name.
    New,
    /// One of that name.
    Existing,
    /// Whatever is there.
    Either,
}

/// What putting a secret changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretChange {
    /// There was none of that name.
    Created,
    /// It holds other items now.
    Replaced,
    /// It held the same items already.
    Unchanged,
}

/// What may be told of a secret: everything but its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretInfo {
    /// Its name.
    pub name: SecretName,
    /// Its items.
    pub items: BTreeMap<ItemKey, ItemInfo>,
    /// Of all items together: the same as long as the items are.
    pub digest: Digest,
    /// Its type as Kubernetes has it; `Opaque` when absent.
    pub kind: Option<String>,
    /// Labels, as its maker gave them.
    pub labels: BTreeMap<String, String>,
    /// Annotations, as its maker gave them.
    pub annotations: BTreeMap<String, String>,
    /// Who made it what it is.
    pub origin: SecretOrigin,
    /// When there was first a secret of that name.
    pub created_at: Timestamp,
    /// When its items changed last.
    pub changed_at: Timestamp,
}

/// What may be told of one item of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemInfo {
    /// Changes with the value. Made with a key of the engine's own and with the names of secret
    /// and item, so that nobody learns from it what the value is, nor that two values are equal.
    pub digest: Digest,
    /// How long the value is.
    pub bytes: usize,
}

impl SecretInfo {
    /// What is to be told of a secret that holds `content` from `now` on, and of what it held
    /// `before`. `mac` makes a digest with the engine's key; names go into it with the values.
    pub fn of(
        name: &SecretName,
        content: &SecretContent,
        before: Option<&Self>,
        now: Timestamp,
        mac: impl Fn(&[u8]) -> Digest,
    ) -> Self {
        let joined = |parts: &[&[u8]]| {
            let mut text = Zeroizing::new(Vec::new());
            for part in parts {
                text.extend_from_slice(&(part.len() as u64).to_be_bytes());
                text.extend_from_slice(part);
            }
            mac(&text)
        };
        let item = |(key, value): (&ItemKey, &SecretValue)| {
            let digest = joined(&[
                b"item",
                name.as_str().as_bytes(),
                key.as_str().as_bytes(),
                value.expose(),
            ]);
            (key.clone(), ItemInfo { digest, bytes: value.expose().len() })
        };
        let items: BTreeMap<_, _> = content.items.iter().map(item).collect();
        let mut all: Vec<&[u8]> = vec![b"secret", name.as_str().as_bytes()];
        all.extend(items.values().map(|item| item.digest.as_bytes().as_slice()));
        let digest = joined(&all);
        let same = before.filter(|before| before.digest == digest);
        Self {
            name: name.clone(),
            items,
            digest,
            kind: content.kind.clone(),
            labels: content.labels.clone(),
            annotations: content.annotations.clone(),
            origin: content.origin.clone(),
            created_at: before.map_or(now, |before| before.created_at),
            changed_at: same.map_or(now, |same| same.changed_at),
        }
    }

    /// What putting `self` after `before` changed.
    pub fn change(&self, before: Option<&Self>) -> SecretChange {
        match before {
            None => SecretChange::Created,
            Some(before) if before.digest == self.digest => SecretChange::Unchanged,
            Some(_) => SecretChange::Replaced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Good enough to tell texts apart.
    fn mac(text: &[u8]) -> Digest {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&hasher.finish().to_be_bytes());
        Digest::from_bytes(bytes)
    }

    #[test]
    fn digests_move_with_values_keys_and_names_and_times_with_digests() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let name = SecretName::new("a").unwrap();
        let of = |keys: &[&str], before: Option<&SecretInfo>, second| {
            SecretInfo::of(&name, &SecretContent::by_hand(items(keys)), before, at(second), mac)
        };
        let first = of(&["x", "y"], None, 1);
        let same = of(&["x", "y"], Some(&first), 2);
        assert_eq!((same.digest, same.changed_at), (first.digest, at(1)));
        assert_eq!(same.change(Some(&first)), SecretChange::Unchanged);
        let other = of(&["x"], Some(&same), 3);
        assert_eq!((other.created_at, other.changed_at), (at(1), at(3)));
        assert_eq!(other.change(Some(&same)), SecretChange::Replaced);
        let elsewhere = SecretName::new("b").unwrap();
        let content = SecretContent::by_hand(items(&["x"]));
        let elsewhere = SecretInfo::of(&elsewhere, &content, None, at(4), mac);
        assert_ne!(elsewhere.digest, other.digest);
        assert_ne!(elsewhere.items["x"].digest, other.items["x"].digest);
    }

    fn items(keys: &[&str]) -> SecretItems {
        let item = |key: &&str| (ItemKey::new(*key).unwrap(), SecretValue::new(*key));
        keys.iter().map(item).collect()
    }

    #[test]
    fn the_value_of_a_secret_is_its_namesake_or_its_only_item() {
        let name = SecretName::new("alice-key").unwrap();
        let value = |keys: &[&str]| items(keys).value(&name).map(|v| v.expose().to_vec());
        assert_eq!(value(&["alice-key", "other"]), Some(b"alice-key".to_vec()));
        assert_eq!(value(&["other"]), Some(b"other".to_vec()));
        assert_eq!(value(&["one", "two"]), None);
        assert_eq!(value(&[]), None);
    }

    #[test]
    fn values_are_never_printed() {
        let content = SecretContent::by_hand(items(&["hunter2"]));
        let value = SecretValue::new("swordfish");
        assert!(!format!("{value:?}").contains("swordfish"));
        assert_eq!(format!("{content:?}").matches("hunter2").count(), 1, "the key alone");
    }

    #[test]
    fn a_secret_that_is_too_large_is_refused() {
        let name = SecretName::new("s").unwrap();
        let of = |bytes| {
            let value = SecretValue::new(vec![0; bytes]);
            SecretContent::by_hand(SecretItems::single(&name, value)).check(&name)
        };
        assert!(of(SECRET_BYTES_MAX).is_ok());
        assert!(of(SECRET_BYTES_MAX + 1).unwrap_err().to_string().contains("1048576 are allowed"));
        let keys: Vec<_> = (0..=SECRET_ITEMS_MAX).map(|number| number.to_string()).collect();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        assert!(SecretContent::by_hand(items(&keys)).check(&name).is_err());
    }
}
