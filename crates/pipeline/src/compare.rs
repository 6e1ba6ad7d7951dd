//! What a file of sealed secrets would change, told by names and keys, with nothing changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use updraft_engine::{EngineError, SecretOrigin};
use updraft_model::{ItemKey, Namespace, OwnerName, RepositoryName, SecretName};
use updraft_source::stack::SecretFile;

use crate::pipeline::Pipeline;
use crate::sealed::{self, Refused, Rules};

/// What a push would do to one secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretDifference {
    /// The secret's name as the file has it; absent when the file as a whole cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What would happen with it.
    pub action: SecretAction,
    /// Items, by key.
    #[serde(default)]
    pub items: BTreeMap<ItemKey, ItemAction>,
    /// Why it would be refused, with the place in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What would happen with a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretAction {
    /// There is none of that name yet.
    Create,
    /// It holds other items.
    Replace,
    /// It holds the same items.
    Keep,
    /// It cannot be taken.
    Refuse,
    /// The repository made it, and the file does not name it.
    Remove,
}

/// What would happen with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ItemAction {
    /// It is new.
    Add,
    /// Its value is another.
    Change,
    /// Its value is the same.
    Keep,
    /// It is not there any more.
    Remove,
}

/// Why files could not be compared with what is in force.
#[derive(Debug, Error)]
pub enum CompareError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A mistake of ours.
    #[error("the files could not be opened")]
    BrokeOff,
}

impl Pipeline {
    /// Compares files of sealed secrets with what is in force. Values are compared here and never
    /// told. One comparison at a time: each costs as much processor time as a push.
    ///
    /// # Errors
    /// See [`CompareError`]; a document that cannot be taken is no error.
    pub async fn compare_secrets(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
        files: Vec<SecretFile>,
    ) -> Result<Vec<SecretDifference>, CompareError> {
        let _alone = self.comparing.lock().await;
        let namespace = Namespace::default();
        let rules = Rules {
            owner: owner.clone(),
            repository: repository.clone(),
            commit: String::new(),
            namespace: namespace.clone(),
            wider_scopes: self.options.wider_scopes,
        };
        let unsealer = Arc::clone(&self.unsealer);
        let opening =
            tokio::task::spawn_blocking(move || sealed::import(&rules, &files, &*unsealer));
        let import = opening.await.map_err(|_| CompareError::BrokeOff)?;
        let known = self.engine.list_secrets(&namespace).await?;
        let mut all = Vec::new();
        for (name, opened) in &import.opened {
            let there = known.iter().any(|known| known.name == *name);
            let held = if there {
                self.engine.read_secret(&namespace, name).await?
            } else {
                updraft_engine::SecretItems::default()
            };
            let new = &opened.content.items;
            let mut items: BTreeMap<ItemKey, ItemAction> = held
                .keys()
                .filter(|key| new.get(key.as_str()).is_none())
                .map(|key| (key.clone(), ItemAction::Remove))
                .collect();
            for (key, value) in new.iter() {
                let action = match held.get(key.as_str()) {
                    None => ItemAction::Add,
                    Some(held) if held == value => ItemAction::Keep,
                    Some(_) => ItemAction::Change,
                };
                items.insert(key.clone(), action);
            }
            let action = match there {
                false => SecretAction::Create,
                true if held == *new => SecretAction::Keep,
                true => SecretAction::Replace,
            };
            let name = Some(name.to_string());
            all.push(SecretDifference { name, action, items, reason: None });
        }
        for Refused { file, place, name, reason } in import.refused {
            let at = if place.is_empty() { file } else { format!("{file}, {place}") };
            let (action, items) = (SecretAction::Refuse, BTreeMap::new());
            let reason = Some(format!("{at}: {reason}"));
            all.push(SecretDifference { name, action, items, reason });
        }
        if import.complete {
            let ours = |origin: &SecretOrigin| {
                matches!(origin, SecretOrigin::Sealed { owner: o, repository: r, .. }
                    if o == owner && r == repository)
            };
            let left = |name: &SecretName| !import.named.contains(name);
            for known in known.iter().filter(|known| ours(&known.origin) && left(&known.name)) {
                let name = Some(known.name.to_string());
                let (action, items) = (SecretAction::Remove, BTreeMap::new());
                all.push(SecretDifference { name, action, items, reason: None });
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }
}
