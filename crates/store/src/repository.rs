//! Repositories, and which of them declares which function.
//!
//! A function's name belongs to one repository of its owner: the first that declares it, until
//! it no longer does. Two repositories never fight over one function.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use updraft_model::{FunctionName, OwnerName, RepositoryName};

use crate::Store;
use crate::error::StoreError;
use crate::owner::{self, EnsureOwnerError};
use crate::stored::{moment, now, optional_text, text};

/// A repository of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Whose it is.
    pub owner: OwnerName,
    /// Its name.
    pub name: RepositoryName,
    /// The branch whose pushes go live, once that is decided; without `refs/heads/`.
    pub live_branch: Option<String>,
    /// When it was first pushed to.
    pub created_at: Timestamp,
}

/// A function that a repository declares, or once declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredFunction {
    /// Whose it is.
    pub owner: OwnerName,
    /// What its owner calls it.
    pub name: FunctionName,
    /// The repository that declares it now; none when nobody does any more.
    pub repository: Option<RepositoryName>,
}

/// The row number of a function.
pub(crate) fn function_id(
    connection: &Connection,
    owner: &OwnerName,
    function: &FunctionName,
) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM functions WHERE owner = ?1 AND name = ?2")?
        .query_row((owner.as_str(), function.as_str()), |row| row.get(0))
        .optional()
}

fn repository_id(
    connection: &Connection,
    owner: &OwnerName,
    repository: &RepositoryName,
) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM repositories WHERE owner = ?1 AND name = ?2")?
        .query_row((owner.as_str(), repository.as_str()), |row| row.get(0))
        .optional()
}

/// The row number of a repository whose owner exists, made when missing.
pub(crate) fn ensure_repository_id(
    connection: &Connection,
    owner: &OwnerName,
    repository: &RepositoryName,
) -> rusqlite::Result<i64> {
    if let Some(id) = repository_id(connection, owner, repository)? {
        return Ok(id);
    }
    connection
        .prepare_cached("INSERT INTO repositories (owner, name, created_at) VALUES (?1, ?2, ?3)")?
        .execute((owner.as_str(), repository.as_str(), now()))?;
    Ok(connection.last_insert_rowid())
}

const COLUMNS: &str = "owner, name, live_branch, created_at";

fn repository_of(row: &Row<'_>) -> rusqlite::Result<Repository> {
    Ok(Repository {
        owner: text(row, 0)?,
        name: text(row, 1)?,
        live_branch: row.get(2)?,
        created_at: moment(row, 3)?,
    })
}

impl Store {
    /// Makes sure that the repository and its owner exist.
    ///
    /// # Errors
    /// See [`Store::ensure_owner`].
    pub async fn ensure_repository(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
    ) -> Result<Repository, EnsureOwnerError> {
        let (for_owner, repository) = (owner.clone(), repository.clone());
        let made = self
            .database
            .write("create the repository", move |c| {
                if let Some(existing) = owner::ensure(c, &for_owner)? {
                    return Ok(Err(existing));
                }
                let id = ensure_repository_id(c, &for_owner, &repository)?;
                c.prepare_cached(&format!("SELECT {COLUMNS} FROM repositories WHERE id = ?1"))?
                    .query_row([id], repository_of)
                    .map(Ok)
            })
            .await?;
        made.map_err(|existing| EnsureOwnerError::Collision { owner: owner.clone(), existing })
    }

    /// One repository, or nothing when it was never pushed to.
    pub async fn repository(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
    ) -> Result<Option<Repository>, StoreError> {
        let (owner, repository) = (owner.clone(), repository.clone());
        self.database
            .read("read the repository", move |c| {
                c.prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM repositories WHERE owner = ?1 AND name = ?2"
                ))?
                .query_row((owner.as_str(), repository.as_str()), repository_of)
                .optional()
            })
            .await
    }

    /// The repositories of an owner, by name.
    pub async fn repositories(&self, owner: &OwnerName) -> Result<Vec<Repository>, StoreError> {
        let owner = owner.clone();
        self.database
            .read("list the repositories", move |c| {
                c.prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM repositories WHERE owner = ?1 ORDER BY name"
                ))?
                .query_map([owner.as_str()], repository_of)?
                .collect()
            })
            .await
    }

    /// Decides which branch's pushes go live, unless that is decided already; gives the branch
    /// that holds now.
    pub async fn decide_live_branch(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
        branch: &str,
    ) -> Result<String, StoreError> {
        let (owner, repository, branch) = (owner.clone(), repository.clone(), branch.to_owned());
        self.database
            .write("decide the live branch", move |c| {
                c.prepare_cached(
                    "UPDATE repositories SET live_branch = coalesce(live_branch, ?3)
                     WHERE owner = ?1 AND name = ?2 RETURNING live_branch",
                )?
                .query_row((owner.as_str(), repository.as_str(), branch), |row| row.get(0))
            })
            .await
    }

    /// Claims functions for a repository that exists. Gives those that another repository of the
    /// same owner declares, with its name; all the others are this repository's now.
    pub async fn claim_functions(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
        functions: Vec<FunctionName>,
    ) -> Result<BTreeMap<FunctionName, RepositoryName>, StoreError> {
        let (owner, repository) = (owner.clone(), repository.clone());
        self.database
            .write("claim the functions", move |c| {
                let id = ensure_repository_id(c, &owner, &repository)?;
                let mut taken = BTreeMap::new();
                for function in functions {
                    c.prepare_cached(
                        "INSERT INTO functions (owner, name, repository, created_at)
                         VALUES (?1, ?2, ?3, ?4)
                         ON CONFLICT (owner, name)
                         DO UPDATE SET repository = coalesce(repository, excluded.repository)",
                    )?
                    .execute((
                        owner.as_str(),
                        function.as_str(),
                        id,
                        now(),
                    ))?;
                    let holder: (i64, RepositoryName) = c
                        .prepare_cached(
                            "SELECT r.id, r.name FROM functions f
                             JOIN repositories r ON r.id = f.repository
                             WHERE f.owner = ?1 AND f.name = ?2",
                        )?
                        .query_row((owner.as_str(), function.as_str()), |row| {
                            Ok((row.get(0)?, text(row, 1)?))
                        })?;
                    if holder.0 != id {
                        taken.insert(function, holder.1);
                    }
                }
                Ok(taken)
            })
            .await
    }

    /// Gives a function up that `repository` declares: it is live no more and free to be
    /// declared anew. Its releases stay. False when that repository does not declare it.
    pub async fn give_up_function(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
        function: &FunctionName,
    ) -> Result<bool, StoreError> {
        let (owner, repository, function) = (owner.clone(), repository.clone(), function.clone());
        self.database
            .write("give the function up", move |c| {
                let changed = c
                    .prepare_cached(
                        "UPDATE functions SET repository = NULL
                         WHERE owner = ?1 AND name = ?3 AND repository =
                             (SELECT id FROM repositories WHERE owner = ?1 AND name = ?2)",
                    )?
                    .execute((owner.as_str(), repository.as_str(), function.as_str()))?;
                if changed == 0 {
                    return Ok(false);
                }
                c.prepare_cached(
                    "DELETE FROM environments WHERE function =
                         (SELECT id FROM functions WHERE owner = ?1 AND name = ?2)",
                )?
                .execute((owner.as_str(), function.as_str()))?;
                Ok(true)
            })
            .await
    }

    /// The functions of an owner that some repository declares, by name; with a repository, only
    /// those that it declares.
    pub async fn declared_functions(
        &self,
        owner: &OwnerName,
        repository: Option<&RepositoryName>,
    ) -> Result<Vec<DeclaredFunction>, StoreError> {
        let (owner, repository) = (owner.clone(), repository.cloned());
        self.database
            .read("list the functions", move |c| {
                c.prepare_cached(
                    "SELECT f.owner, f.name, r.name FROM functions f
                     JOIN repositories r ON r.id = f.repository
                     WHERE f.owner = ?1 AND (?2 IS NULL OR r.name = ?2) ORDER BY f.name",
                )?
                .query_map(
                    (owner.as_str(), repository.as_ref().map(RepositoryName::as_str)),
                    declared,
                )?
                .collect()
            })
            .await
    }

    /// One function, whether declared now or once.
    pub async fn function(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
    ) -> Result<Option<DeclaredFunction>, StoreError> {
        let (owner, function) = (owner.clone(), function.clone());
        self.database
            .read("read the function", move |c| {
                c.prepare_cached(
                    "SELECT f.owner, f.name, r.name FROM functions f
                     LEFT JOIN repositories r ON r.id = f.repository
                     WHERE f.owner = ?1 AND f.name = ?2",
                )?
                .query_row((owner.as_str(), function.as_str()), declared)
                .optional()
            })
            .await
    }
}

fn declared(row: &Row<'_>) -> rusqlite::Result<DeclaredFunction> {
    Ok(DeclaredFunction {
        owner: text(row, 0)?,
        name: text(row, 1)?,
        repository: optional_text(row, 2)?,
    })
}
