//! Owners: the tenants. They come into being on first use, unless their name could be confused
//! with another's.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use thiserror::Error;
use updraft_model::{OwnerName, owners_collide};

use crate::Store;
use crate::error::StoreError;
use crate::stored::{moment, now, text};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The name, which is also the host label.
    pub name: OwnerName,
    /// When the owner was first seen.
    pub created_at: Timestamp,
}

/// Why an owner cannot exist here.
#[derive(Debug, Error)]
pub enum EnsureOwnerError {
    /// Functions of the two could share a visible name. The caller's fault.
    #[error(
        "owner `{owner}` cannot be told apart from the existing owner `{existing}` (`{existing}` and `{owner}` could have functions of the same visible name), choose another name"
    )]
    Collision {
        /// The owner that was asked for.
        owner: OwnerName,
        /// The one that is here already.
        existing: OwnerName,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes sure that the owner exists; gives the existing owner that it collides with, if any.
///
/// Reserved names never come here: [`OwnerName`] refuses them.
pub(crate) fn ensure(
    connection: &Connection,
    owner: &OwnerName,
) -> rusqlite::Result<Option<OwnerName>> {
    let known = connection
        .prepare_cached("SELECT 1 FROM owners WHERE name = ?1")?
        .exists([owner.as_str()])?;
    if known {
        return Ok(None);
    }
    let mut statement = connection.prepare_cached("SELECT name FROM owners")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let existing: OwnerName = text(row, 0)?;
        if owners_collide(owner, &existing) {
            return Ok(Some(existing));
        }
    }
    connection
        .prepare_cached("INSERT INTO owners (name, created_at) VALUES (?1, ?2)")?
        .execute((owner.as_str(), now()))?;
    Ok(None)
}

impl Store {
    /// Makes sure that the owner exists.
    ///
    /// # Errors
    /// [`EnsureOwnerError::Collision`] when one name is a `-`-prefix of the other; two processes
    /// that race for two such names cannot both win.
    pub async fn ensure_owner(&self, owner: &OwnerName) -> Result<(), EnsureOwnerError> {
        let name = owner.clone();
        let collision = self.database.write("create the owner", move |c| ensure(c, &name)).await?;
        match collision {
            None => Ok(()),
            Some(existing) => Err(EnsureOwnerError::Collision { owner: owner.clone(), existing }),
        }
    }

    /// Whether the owner exists.
    pub async fn owner(&self, owner: &OwnerName) -> Result<Option<Owner>, StoreError> {
        let owner = owner.clone();
        self.database
            .read("read the owner", move |c| {
                c.prepare_cached("SELECT name, created_at FROM owners WHERE name = ?1")?
                    .query_row([owner.as_str()], owner_of)
                    .optional()
            })
            .await
    }

    /// All owners, by name.
    pub async fn owners(&self) -> Result<Vec<Owner>, StoreError> {
        self.database
            .read("list the owners", |c| {
                c.prepare_cached("SELECT name, created_at FROM owners ORDER BY name")?
                    .query_map([], owner_of)?
                    .collect()
            })
            .await
    }
}

fn owner_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Owner> {
    Ok(Owner { name: text(row, 0)?, created_at: moment(row, 1)? })
}
