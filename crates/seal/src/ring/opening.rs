//! Opening with the keys of the ring, the likeliest first.
//!
//! A value does not say which key it is for, and each try costs an RSA operation. So the ring
//! remembers which key opened a secret, and tries that one before the others; of a secret that it
//! has not seen, the one that opened another last, because what is pushed together was sealed
//! together.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{KeyRing, ResealError, guard};
use crate::document::Item;
use crate::seal::SealError;
use crate::unseal::{Hints, OpeningKey};
use crate::{Draft, OpenedSecret, SealedSecret, Template, UnsealError, seal, unseal};

/// Secrets of which it is remembered which key opened them.
const REMEMBERED_MAX: usize = 10_000;

/// Which keys opened what, by fingerprint.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// By name and namespace.
    places: HashMap<Vec<u8>, String>,
    /// What opened a secret last.
    last: Option<String>,
}

impl Remembered {
    fn of(&self, place: &[u8]) -> Option<&String> {
        self.places.get(place).or(self.last.as_ref())
    }

    fn keep(&mut self, place: Vec<u8>, fingerprint: &str) {
        if self.places.len() >= REMEMBERED_MAX {
            self.places.clear();
        }
        self.places.insert(place, fingerprint.to_owned());
        self.last = Some(fingerprint.to_owned());
    }
}

impl KeyRing {
    /// Opens a secret.
    ///
    /// # Errors
    /// Every item that does not open, with the reason.
    pub fn unseal(&self, secret: &SealedSecret) -> Result<OpenedSecret, UnsealError> {
        self.unseal_with(secret, &Hints::default())
    }

    /// Opens a secret; where that fails, `hints` are other places that it may be for.
    ///
    /// # Errors
    /// Every item that does not open, with the reason.
    pub fn unseal_with(
        &self,
        secret: &SealedSecret,
        hints: &Hints,
    ) -> Result<OpenedSecret, UnsealError> {
        let opened = self.with_keys(secret, |keys| {
            unseal::unseal_with_keys(keys, secret, hints, self.options.limits)
        });
        self.metrics.count(secret.namespace.as_deref().unwrap_or_default(), opened.is_ok());
        opened
    }

    /// Seals a secret again with the newest key, in the same scope and place, and hands out no
    /// value: what the template says about the scope is made to agree with the object.
    ///
    /// # Errors
    /// It does not open, or cannot be sealed.
    pub fn reseal(&self, secret: &SealedSecret) -> Result<SealedSecret, ResealError> {
        let opened = self.with_keys(secret, |keys| {
            unseal::open_items(keys, secret, &Hints::default(), self.options.limits)
        })?;
        let certificate = self.certificate().map_err(|_| SealError::NoCertificate)?;
        let template = match secret.legacy {
            Some(_) => opened.template(),
            None => secret.template.clone(),
        };
        let draft = Draft {
            name: secret.name.clone(),
            namespace: secret.namespace.clone(),
            scope: secret.scope,
            template,
            items: opened.items,
        };
        let sealed = seal(&certificate, &draft, Timestamp::now())?;
        Ok(SealedSecret {
            place: secret.place,
            annotations: secret.annotations.clone(),
            labels: secret.labels.clone(),
            ..sealed
        })
    }

    /// Which keys open the items of a secret, by fingerprint; items that do not open are left out.
    pub fn opened_by(&self, secret: &SealedSecret) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for (key, item) in &secret.items {
            let one = SealedSecret {
                items: [(key.clone(), item.clone())].into(),
                template: Template::default(),
                ..secret.clone()
            };
            let opened = self.with_keys(&one, |keys| {
                unseal::open_items(keys, &one, &Hints::default(), self.options.limits)
            });
            if let Ok(opened) = opened
                && matches!(item, Item::Sealed(_))
            {
                found.extend(opened.opened_by);
            }
        }
        found.sort();
        found.dedup();
        found
    }

    pub(super) fn with_keys(
        &self,
        secret: &SealedSecret,
        open: impl FnOnce(&[OpeningKey<'_>]) -> Result<OpenedSecret, UnsealError>,
    ) -> Result<OpenedSecret, UnsealError> {
        self.refresh();
        let keys = self.keys.load_full();
        let mut opening = keys.opening();
        let namespace = secret.namespace.as_deref().unwrap_or_default();
        let place = [secret.name.as_bytes(), &[0], namespace.as_bytes()].concat();
        if let Some(likely) = guard(&self.remembered).of(&place) {
            opening.sort_by_key(|opening| opening.key.fingerprint() != likely);
        }
        let opened = open(&opening);
        if let Ok(opened) = &opened
            && let Some(fingerprint) = opened.opened_by.first()
        {
            guard(&self.remembered).keep(place, fingerprint);
        }
        opened
    }
}
