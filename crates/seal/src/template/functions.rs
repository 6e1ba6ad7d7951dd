//! The functions of templates, with the meaning that Go and Sprig give them.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::value::Value;

/// Every function there is.
const NAMES: &[&str] = &[
    "and",
    "b64dec",
    "b64enc",
    "bcrypt",
    "default",
    "dict",
    "eq",
    "fromJson",
    "ge",
    "gt",
    "htpasswd",
    "indent",
    "index",
    "join",
    "le",
    "len",
    "list",
    "lower",
    "lt",
    "ne",
    "nindent",
    "not",
    "or",
    "print",
    "printf",
    "quote",
    "replace",
    "sha256sum",
    "split",
    "splitList",
    "squote",
    "toJson",
    "toString",
    "trim",
    "upper",
];

/// Largest text that a function makes, in bytes.
const TEXT_MAX: usize = 1 << 20;

/// Cost of a password hash, the usual one.
const BCRYPT_COST: u32 = 10;

/// Longest password that the hash looks at.
const BCRYPT_MAX: usize = 72;

/// What a template may still do of what is costly on purpose.
pub(super) struct Budget {
    hashes: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { hashes: 8 }
    }
}

pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

pub(super) fn call(name: &str, values: Vec<Value>, budget: &mut Budget) -> Result<Value, String> {
    match (name, values.as_slice()) {
        ("and" | "or", [.., last]) => Ok(last.clone()),
        ("not", [value]) => Ok(Value::Bool(!value.is_true())),
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            let mut equal = false;
            for other in others {
                equal |= compare(first, other)?.is_eq();
            }
            Ok(Value::Bool(equal))
        }
        ("ne", [left, right]) => Ok(Value::Bool(compare(left, right)?.is_ne())),
        ("lt", [left, right]) => Ok(Value::Bool(compare(left, right)?.is_lt())),
        ("le", [left, right]) => Ok(Value::Bool(compare(left, right)?.is_le())),
        ("gt", [left, right]) => Ok(Value::Bool(compare(left, right)?.is_gt())),
        ("ge", [left, right]) => Ok(Value::Bool(compare(left, right)?.is_ge())),
        ("len", [value]) => {
            let length = match value {
                Value::Text(text) => text.len(),
                Value::List(list) => list.len(),
                Value::Map(map) => map.len(),
                _ => return Err("only texts, lists and maps have a length".to_owned()),
            };
            Ok(Value::Int(i64::try_from(length).unwrap_or(i64::MAX)))
        }
        ("index", [value, keys @ ..]) => index(value, keys),
        ("list", _) => Ok(Value::List(values)),
        ("dict", pairs) => dict(pairs),
        ("join", [separator, Value::List(list)]) => {
            let parts: Vec<_> = list.iter().map(Value::string).collect::<Result<_, _>>()?;
            let parts: Vec<&str> = parts.iter().map(|part| part.as_str()).collect();
            made(parts.join(&separator.string()?))
        }
        ("join", [_, value]) | ("toString", [value]) => Ok(Value::Text(value.written()?)),
        ("split", [separator, value]) => {
            let (separator, value) = (separator.string()?, value.string()?);
            let parts = value.split(separator.as_str()).enumerate();
            Ok(Value::Map(parts.map(|(at, part)| (format!("_{at}"), Value::text(part))).collect()))
        }
        ("splitList", [separator, value]) => {
            let (separator, value) = (separator.string()?, value.string()?);
            Ok(Value::List(value.split(separator.as_str()).map(Value::text).collect()))
        }
        ("default", [fallback, value]) => {
            Ok(if value.is_true() { value.clone() } else { fallback.clone() })
        }
        ("default", [fallback]) => Ok(fallback.clone()),
        ("b64enc", [value]) => made(STANDARD.encode(value.written()?)),
        ("b64dec", [value]) => {
            let decoded = STANDARD.decode(value.written()?.as_slice());
            decoded.map(Value::text).map_err(|_| "the value is not valid base64".to_owned())
        }
        ("sha256sum", [value]) => made(hex::encode(Sha256::digest(value.written()?))),
        ("toJson", [value]) => {
            // Go's encoder writes these so that they are safe inside HTML.
            let json = value.to_json()?.to_string();
            let json = json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
            made(json.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"))
        }
        ("fromJson", [value]) => serde_json::from_slice(&value.written()?)
            .map(Value::of_json)
            .map_err(|_| "the value is not valid JSON".to_owned()),
        ("trim", [value]) => made(value.string()?.trim()),
        ("upper", [value]) => made(value.string()?.to_uppercase()),
        ("lower", [value]) => made(value.string()?.to_lowercase()),
        ("replace", [old, new, value]) => {
            let (old, new, value) = (old.string()?, new.string()?, value.string()?);
            let found =
                if old.is_empty() { value.len() + 1 } else { value.matches(old.as_str()).count() };
            if value.len() + found.saturating_mul(new.len()) > TEXT_MAX {
                return Err("the text becomes too large".to_owned());
            }
            made(value.replace(old.as_str(), &new))
        }
        ("indent", [Value::Int(spaces), value]) => indent(*spaces, value, ""),
        ("nindent", [Value::Int(spaces), value]) => indent(*spaces, value, "\n"),
        ("quote" | "squote", values) => {
            let mut quoted = Vec::new();
            for value in values.iter().filter(|value| !matches!(value, Value::Nothing)) {
                let text = value.string()?;
                quoted.push(if name == "quote" { go_quote(&text) } else { format!("'{}'", *text) });
            }
            made(quoted.join(" "))
        }
        ("print", values) => {
            let mut text = Vec::new();
            for (at, value) in values.iter().enumerate() {
                // Go puts a space between two values of which neither is a text.
                let is_text = |value: Option<&Value>| matches!(value, Some(Value::Text(_)));
                if at > 0 && !is_text(Some(value)) && !is_text(values.get(at - 1)) {
                    text.push(b' ');
                }
                text.extend(value.written()?.iter());
            }
            made(text)
        }
        ("printf", [format, arguments @ ..]) => printf(&format.string()?, arguments),
        ("bcrypt", [password]) => made(bcrypt(password, budget)?),
        ("htpasswd", [user, password]) => {
            let user = user.string()?;
            if user.contains(':') {
                return Err("a user name cannot hold `:`".to_owned());
            }
            made(format!("{}:{}", *user, bcrypt(password, budget)?))
        }
        _ if is_known(name) => Err("wrong number or kind of arguments".to_owned()),
        _ => Err("is not supported".to_owned()),
    }
}

fn made(text: impl Into<Vec<u8>>) -> Result<Value, String> {
    let text = text.into();
    if text.len() > TEXT_MAX {
        Err("the text becomes too large".to_owned())
    } else {
        Ok(Value::text(text))
    }
}

fn compare(left: &Value, right: &Value) -> Result<std::cmp::Ordering, String> {
    match (left, right) {
        (Value::Text(left), Value::Text(right)) => Ok(left.cmp(right)),
        (Value::Int(left), Value::Int(right)) => Ok(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Ok(left.cmp(right)),
        (Value::Float(left), Value::Float(right)) => {
            left.partial_cmp(right).ok_or_else(|| "the values cannot be compared".to_owned())
        }
        (Value::Nothing, Value::Nothing) => Ok(std::cmp::Ordering::Equal),
        (Value::Nothing, _) => Ok(std::cmp::Ordering::Less),
        (_, Value::Nothing) => Ok(std::cmp::Ordering::Greater),
        _ => Err("values of different kinds cannot be compared".to_owned()),
    }
}

fn index(value: &Value, keys: &[Value]) -> Result<Value, String> {
    let mut value = value;
    for key in keys {
        value = match (value, key) {
            (Value::Map(map), Value::Text(_)) => match map.get(key.string()?.as_str()) {
                Some(inner) => inner,
                None => return Ok(Value::Nothing),
            },
            (Value::List(list), Value::Int(at)) => usize::try_from(*at)
                .ok()
                .and_then(|at| list.get(at))
                .ok_or_else(|| format!("the list has no entry {at}"))?,
            _ => return Err("only maps and lists have entries".to_owned()),
        };
    }
    Ok(value.clone())
}

fn dict(pairs: &[Value]) -> Result<Value, String> {
    let mut map = BTreeMap::new();
    for pair in pairs.chunks(2) {
        let [key, value] = pair else { return Err("a key has no value".to_owned()) };
        map.insert(key.string()?.to_string(), value.clone());
    }
    Ok(Value::Map(map))
}

fn indent(spaces: i64, value: &Value, before: &str) -> Result<Value, String> {
    let text = value.string()?;
    let spaces = usize::try_from(spaces).ok().filter(|spaces| *spaces <= 200);
    let spaces = " ".repeat(spaces.ok_or("the number of spaces must be 0 to 200")?);
    if text.len() + (text.matches('\n').count() + 1) * spaces.len() > TEXT_MAX {
        return Err("the text becomes too large".to_owned());
    }
    made(format!("{before}{spaces}{}", text.replace('\n', &format!("\n{spaces}"))))
}

/// A text in double quotes, as Go writes it.
fn go_quote(text: &str) -> String {
    use std::fmt::Write as _;
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        match char {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            char if u32::from(char) < 0x20 || char == '\u{7f}' => {
                // Writing to a string cannot fail.
                let _written = write!(quoted, "\\x{:02x}", u32::from(char));
            }
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

fn printf(format: &str, arguments: &[Value]) -> Result<Value, String> {
    let mut text = Vec::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            let mut buffer = [0; 4];
            text.extend(char.encode_utf8(&mut buffer).bytes());
            continue;
        }
        let verb = chars.next().ok_or("the format ends in `%`")?;
        if verb == '%' {
            text.push(b'%');
            continue;
        }
        if !matches!(verb, 's' | 'v' | 'd' | 'q' | 't' | 'x') {
            return Err(format!("the verb `%{verb}` is not supported"));
        }
        let value = arguments.next().ok_or("there are fewer values than verbs")?;
        match (verb, value) {
            ('s' | 'v', value) => text.extend(value.written()?.iter()),
            ('d', Value::Int(number)) => text.extend(number.to_string().bytes()),
            ('t', Value::Bool(truth)) => text.extend(truth.to_string().bytes()),
            ('q', Value::Text(_)) => text.extend(go_quote(&value.string()?).bytes()),
            ('x', Value::Text(bytes)) => text.extend(hex::encode(bytes.as_slice()).bytes()),
            ('x', Value::Int(number)) => text.extend(format!("{number:x}").bytes()),
            _ => return Err(format!("`%{verb}` does not fit the value")),
        }
    }
    if arguments.next().is_some() {
        return Err("there are more values than verbs".to_owned());
    }
    made(text)
}

fn bcrypt(password: &Value, budget: &mut Budget) -> Result<String, String> {
    budget.hashes = budget.hashes.checked_sub(1).ok_or("there are too many password hashes")?;
    let password = password.written()?;
    if password.len() > BCRYPT_MAX {
        return Err(format!("a password of more than {BCRYPT_MAX} bytes cannot be hashed"));
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|_| "there are no random numbers")?;
    let hash = bcrypt::hash_with_salt(password.as_slice(), BCRYPT_COST, salt);
    let hash = hash.map_err(|_| "the password cannot be hashed")?;
    Ok(hash.format_for_version(bcrypt::Version::TwoA))
}
