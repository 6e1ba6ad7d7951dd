//! The values of a template. Texts are wiped when dropped.

use std::collections::BTreeMap;

use serde_json::{Number, Value as Json};
use zeroize::Zeroizing;

/// A value; texts are bytes, because items are.
#[derive(Clone)]
pub(super) enum Value {
    Nothing,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Zeroizing<Vec<u8>>),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Value {
    pub(super) fn text(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Text(Zeroizing::new(bytes.into()))
    }

    /// Whether `if` takes it for yes.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Bool(truth) => *truth,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(list) => !list.is_empty(),
            Self::Map(map) => !map.is_empty(),
        }
    }

    /// As it is written out.
    pub(super) fn written(&self) -> Result<Zeroizing<Vec<u8>>, String> {
        let text = match self {
            Self::Nothing => return Err("a value is not there".to_owned()),
            Self::Bool(truth) => truth.to_string(),
            Self::Int(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Text(text) => return Ok(text.clone()),
            Self::List(_) | Self::Map(_) => {
                return Err("a list or map cannot be written out; use `toJson`, `join` or `range`"
                    .to_owned());
            }
        };
        Ok(Zeroizing::new(text.into_bytes()))
    }

    /// As text for a function that needs one.
    pub(super) fn string(&self) -> Result<Zeroizing<String>, String> {
        let bytes = self.written()?;
        String::from_utf8(bytes.to_vec())
            .map(Zeroizing::new)
            .map_err(|_| "a value is no UTF-8 text".to_owned())
    }

    pub(super) fn to_json(&self) -> Result<Json, String> {
        Ok(match self {
            Self::Nothing => Json::Null,
            Self::Bool(truth) => Json::Bool(*truth),
            Self::Int(number) => Json::from(*number),
            // Go writes a float without a fraction as an integer.
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
            Self::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
                Json::from(*number as i64)
            }
            Self::Float(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
            Self::Text(_) => Json::String(self.string()?.to_string()),
            Self::List(list) => {
                Json::Array(list.iter().map(Self::to_json).collect::<Result<_, _>>()?)
            }
            Self::Map(map) => Json::Object(
                map.iter()
                    .map(|(key, value)| Ok((key.clone(), value.to_json()?)))
                    .collect::<Result<_, String>>()?,
            ),
        })
    }

    pub(super) fn of_json(json: Json) -> Self {
        match json {
            Json::Null => Self::Nothing,
            Json::Bool(truth) => Self::Bool(truth),
            Json::Number(number) => number
                .as_i64()
                .map_or_else(|| Self::Float(number.as_f64().unwrap_or(f64::NAN)), Self::Int),
            Json::String(text) => Self::text(text),
            Json::Array(list) => Self::List(list.into_iter().map(Self::of_json).collect()),
            Json::Object(map) => {
                Self::Map(map.into_iter().map(|(key, value)| (key, Self::of_json(value))).collect())
            }
        }
    }
}
