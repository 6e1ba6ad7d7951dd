//! Reading a JSON object field by field, so that an error names the field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use thiserror::Error;

/// Why a request body could not be read. The caller's fault; the message points to the place.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Nothing was sent.
    #[error("the body is empty, expected a JSON object")]
    Empty,
    /// It is no JSON; the text tells the member, the line and the column.
    #[error("{0}")]
    Syntax(String),
    /// A value has the wrong type.
    #[error("{field}: expected {expected}, found {found}")]
    Type {
        /// Where, for instance `envVars.mode`; `body` for the whole.
        field: String,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A value has the right type and cannot be used.
    #[error("{field}: {reason}")]
    Value {
        /// Where.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The members of one JSON object. Each is taken once, by its exact name or, failing that, by a
/// name that differs in case only; `null` counts as absent; what is never taken is ignored.
#[derive(Debug)]
pub(super) struct Members {
    path: String,
    map: Map<String, Value>,
}

impl Members {
    /// Reads a whole body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(DecodeError::Empty);
        }
        let mut reader = serde_json::Deserializer::from_slice(body);
        let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            // Between two members there is none to name.
            let path = error.path().to_string();
            let path = path.trim_end_matches(['?', '.']);
            let at = if path.is_empty() { "body" } else { path };
            DecodeError::Syntax(format!("{at}: {}", error.into_inner()))
        })?;
        reader.end().map_err(|error| DecodeError::Syntax(format!("body: {error}")))?;
        match value {
            Value::Object(map) => Ok(Self { path: String::new(), map }),
            other => Err(wrong_type("body".to_owned(), "an object", &other)),
        }
    }

    /// The full name of a member, for messages.
    pub(super) fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let key = if self.map.contains_key(name) {
            name.to_owned()
        } else {
            self.map.keys().find(|key| key.eq_ignore_ascii_case(name))?.clone()
        };
        self.map.remove(&key).filter(|value| !value.is_null())
    }

    /// A text; an empty one counts as absent, as everywhere in this API.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, DecodeError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(other) => Err(wrong_type(self.field(name), "a string", &other)),
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<bool, DecodeError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(wrong_type(self.field(name), "true or false", &other)),
        }
    }

    pub(super) fn whole_number(&mut self, name: &str) -> Result<Option<u64>, DecodeError> {
        const EXPECTED: &str = "a whole number from 0 up";
        match self.take(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(DecodeError::Value {
                    field: self.field(name),
                    reason: format!("expected {EXPECTED}, found {number}"),
                }),
            },
            Some(other) => Err(wrong_type(self.field(name), EXPECTED, &other)),
        }
    }

    /// A map of texts; keys and values stay byte for byte as they came.
    pub(super) fn text_map(&mut self, name: &str) -> Result<BTreeMap<String, String>, DecodeError> {
        let entries = match self.take(name) {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(entries)) => entries,
            Some(other) => return Err(wrong_type(self.field(name), "an object", &other)),
        };
        let text = |(key, value)| match value {
            Value::String(value) => Ok((key, value)),
            // Go reads `null` into a string as nothing.
            Value::Null => Ok((key, String::new())),
            other => {
                let field = format!("{}.{key}", self.field(name));
                Err(wrong_type(field, "a string", &other))
            }
        };
        entries.into_iter().map(text).collect()
    }

    pub(super) fn text_list(&mut self, name: &str) -> Result<Vec<String>, DecodeError> {
        let items = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(wrong_type(self.field(name), "an array", &other)),
        };
        let text = |(index, value)| match value {
            Value::String(value) => Ok(value),
            other => {
                let field = format!("{}[{index}]", self.field(name));
                Err(wrong_type(field, "a string", &other))
            }
        };
        items.into_iter().enumerate().map(text).collect()
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Option<Members>, DecodeError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { path: self.field(name), map })),
            Some(other) => Err(wrong_type(self.field(name), "an object", &other)),
        }
    }
}

fn wrong_type(field: String, expected: &'static str, found: &Value) -> DecodeError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    DecodeError::Type { field, expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(json: &str) -> Members {
        Members::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn keys_match_in_any_case_and_the_exact_one_wins() {
        let mut members = members(r#"{"SERVICE":"a","Image":"b","image":"c"}"#);
        assert_eq!(members.text("service").unwrap().unwrap(), "a");
        assert_eq!(members.text("image").unwrap().unwrap(), "c");
    }

    #[test]
    fn null_and_empty_text_count_as_absent() {
        let mut members = members(r#"{"a":null,"b":"","c":null,"d":null}"#);
        assert_eq!(members.text("a"), Ok(None));
        assert_eq!(members.text("b"), Ok(None));
        assert_eq!(members.text_map("c"), Ok(BTreeMap::new()));
        assert!(members.object("d").unwrap().is_none());
    }

    #[test]
    fn an_error_points_to_the_field() {
        let check = |error: DecodeError, text: &str| assert_eq!(error.to_string(), text);
        let mut members = members(
            r#"{"service":1,"envVars":{"a":true},"secrets":["x",2],"limits":{"memory":5},"replicas":-1,"b":"yes"}"#,
        );
        check(members.text("service").unwrap_err(), "service: expected a string, found a number");
        check(
            members.text_map("envVars").unwrap_err(),
            "envVars.a: expected a string, found a boolean",
        );
        check(
            members.text_list("secrets").unwrap_err(),
            "secrets[1]: expected a string, found a number",
        );
        let mut limits = members.object("limits").unwrap().unwrap();
        check(
            limits.text("memory").unwrap_err(),
            "limits.memory: expected a string, found a number",
        );
        check(
            members.whole_number("replicas").unwrap_err(),
            "replicas: expected a whole number from 0 up, found -1",
        );
        check(members.boolean("b").unwrap_err(), "b: expected true or false, found a string");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert_eq!(Members::parse(b" \n").unwrap_err(), DecodeError::Empty);
        let error = Members::parse(b"[]").unwrap_err().to_string();
        assert_eq!(error, "body: expected an object, found an array");
        let error = Members::parse(b"{\"a\":\n,}").unwrap_err().to_string();
        assert_eq!(error, "a: expected value at line 2 column 1");
        let error = Members::parse(b"{\"limits\":{\"memory\":5Mi}}").unwrap_err().to_string();
        assert!(error.starts_with("limits: ") && error.contains("line 1 column 22"), "{error}");
        let error = Members::parse(br#"{"limits":{"memory":x}}"#).unwrap_err().to_string();
        assert!(error.starts_with("limits.memory: ") && error.contains("column 21"), "{error}");
        let error = Members::parse(b"{\"secrets\":[\"a\",}").unwrap_err().to_string();
        assert!(error.starts_with("secrets[1]: ") && error.contains("line 1"), "{error}");
        let error = Members::parse(b"{} {}").unwrap_err().to_string();
        assert_eq!(error, "body: trailing characters at line 1 column 4");
    }

    proptest! {
        #[test]
        fn no_body_makes_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(mut members) = Members::parse(&body) {
                let _text = members.text("service");
            }
        }
    }
}
