//! How the parts of a call lie in columns.

use http::{HeaderMap, HeaderName, HeaderValue};
use rusqlite::types::Type;
use rusqlite::{Error, Row};
use serde::{Deserialize, Serialize};
use updraft_model::{FunctionId, FunctionName, Namespace};

use super::Client;
use crate::stored::{from_json, to_json};

const FORM: u32 = 1;

/// What is kept of a request's head beside its method and target.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    headers: Vec<(String, String)>,
    client: Client,
}

impl Head {
    pub(super) fn to_column(headers: &HeaderMap, client: Client) -> rusqlite::Result<String> {
        to_json(FORM, &Self { headers: pairs(headers), client })
    }

    pub(super) fn from_column(
        row: &Row<'_>,
        column: usize,
    ) -> rusqlite::Result<(HeaderMap, Client)> {
        let head: Self = from_json(row, column, FORM)?;
        Ok((map(head.headers), head.client))
    }
}

pub(super) fn headers_to_column(headers: &HeaderMap) -> rusqlite::Result<String> {
    to_json(FORM, &pairs(headers))
}

pub(super) fn headers_from_column(row: &Row<'_>, column: usize) -> rusqlite::Result<HeaderMap> {
    from_json(row, column, FORM).map(map)
}

/// Values may be any bytes; each becomes the character of its number, so that nothing is lost and
/// ordinary ones stay readable.
fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let text =
        |value: &HeaderValue| value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

fn map(pairs: Vec<(String, String)>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(pairs.len());
    for (name, value) in pairs {
        let bytes: Option<Vec<u8>> = value.chars().map(|c| u8::try_from(c).ok()).collect();
        let value = bytes.and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
        if let (Ok(name), Some(value)) = (HeaderName::from_bytes(name.as_bytes()), value) {
            headers.append(name, value);
        }
    }
    headers
}

/// Reads `<name>.<namespace>`.
pub(super) fn function(row: &Row<'_>, column: usize) -> rusqlite::Result<FunctionId> {
    let text = row.get_ref(column)?.as_str()?;
    let (name, namespace) = text.rsplit_once('.').unwrap_or((text, ""));
    let wrong = |error: updraft_model::NameError| {
        Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    };
    Ok(FunctionId {
        name: FunctionName::new(name).map_err(wrong)?,
        namespace: Namespace::new(namespace).map_err(wrong)?,
    })
}

/// A count as SQLite keeps it.
pub(super) fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_any_bytes_survive_and_keep_their_order() {
        let mut headers = HeaderMap::new();
        headers.append("x-one", HeaderValue::from_bytes(b"\xc3\xa4\xff").unwrap());
        headers.append("x-two", HeaderValue::from_static("a"));
        headers.append("x-two", HeaderValue::from_static("b"));
        assert_eq!(map(pairs(&headers)), headers);
    }
}
