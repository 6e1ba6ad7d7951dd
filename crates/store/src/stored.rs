//! How values lie in columns: names as text, moments as milliseconds, structures as JSON that
//! says which version of its form it has.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Error, Row};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A structure in a JSON column: `{"v":1,"data":…}`.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    data: T,
}

/// What a JSON column of a newer or broken form leads to.
#[derive(Debug)]
struct WrongForm {
    expected: u32,
    found: u32,
}

impl fmt::Display for WrongForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stored form {} is not the known form {}", self.found, self.expected)
    }
}

impl std::error::Error for WrongForm {}

/// Writes `data` with the version of its form.
pub(crate) fn to_json<T: Serialize>(version: u32, data: &T) -> rusqlite::Result<String> {
    serde_json::to_string(&Envelope { v: version, data })
        .map_err(|error| Error::ToSqlConversionFailure(Box::new(error)))
}

/// Reads what [`to_json`] wrote.
pub(crate) fn from_json<T: DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
    version: u32,
) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    // The version first: another form need not even have the same fields.
    let head: Envelope<serde::de::IgnoredAny> = serde_json::from_str(text)
        .map_err(|error| Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))?;
    if head.v != version {
        let wrong = WrongForm { expected: version, found: head.v };
        return Err(Error::FromSqlConversionFailure(column, Type::Text, Box::new(wrong)));
    }
    serde_json::from_str::<Envelope<T>>(text)
        .map(|envelope| envelope.data)
        .map_err(|error| Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// Reads a name, digest or reference.
pub(crate) fn text<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get_ref(column)?
        .as_str()?
        .parse()
        .map_err(|error| Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// Reads a name, digest or reference that may be absent.
pub(crate) fn optional_text<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => text(row, column).map(Some),
    }
}

/// Reads a moment.
pub(crate) fn moment(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    let milliseconds: i64 = row.get(column)?;
    Timestamp::from_millisecond(milliseconds)
        .map_err(|error| Error::FromSqlConversionFailure(column, Type::Integer, Box::new(error)))
}

/// Reads a moment that may be absent.
pub(crate) fn optional_moment(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    match row.get::<_, Option<i64>>(column)? {
        None => Ok(None),
        Some(_) => moment(row, column).map(Some),
    }
}

/// Now, as moments are stored.
pub(crate) fn now() -> i64 {
    Timestamp::now().as_millisecond()
}
