//! Resource quantities in Kubernetes notation: memory `128Mi`, CPU `500m`.
//!
//! The text is kept as it was written, because clients compare what they read with what they sent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Suffixes and the power they stand for: (suffix, base, exponent).
const MEMORY_SUFFIXES: &[(&str, u64, u32)] = &[
    ("Ki", 1024, 1),
    ("Mi", 1024, 2),
    ("Gi", 1024, 3),
    ("Ti", 1024, 4),
    ("Pi", 1024, 5),
    ("Ei", 1024, 6),
    ("k", 1000, 1),
    // Docker Swarm stacks of old wrote `128m` for megabytes; nobody means milli-bytes.
    ("m", 1000, 2),
    ("M", 1000, 2),
    ("G", 1000, 3),
    ("T", 1000, 4),
    ("P", 1000, 5),
    ("E", 1000, 6),
];

/// The text is not a quantity of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} quantity `{text}` is invalid, expected for instance `{example}`")]
pub struct ParseQuantityError {
    what: &'static str,
    text: String,
    example: &'static str,
}

/// An amount of memory: the text as written and the bytes it means.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemoryQuantity {
    text: String,
    bytes: u64,
}

/// A share of processors: the text as written and the thousandths of a core it means.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuQuantity {
    text: String,
    millicores: u64,
}

impl MemoryQuantity {
    /// The amount in bytes; 0 means no limit.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl CpuQuantity {
    /// The share in thousandths of a core; 0 means no limit.
    pub const fn millicores(&self) -> u64 {
        self.millicores
    }
}

impl FromStr for MemoryQuantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let wrong =
            || ParseQuantityError { what: "memory", text: text.to_owned(), example: "128Mi" };
        let (number, multiplier) = MEMORY_SUFFIXES
            .iter()
            .find_map(|(suffix, base, exponent)| {
                Some((text.strip_suffix(suffix)?, base.checked_pow(*exponent)?))
            })
            .or_else(|| with_exponent(text))
            .unwrap_or((text, 1));
        let bytes = decimal_times(number, multiplier).ok_or_else(wrong)?;
        Ok(Self { text: text.to_owned(), bytes })
    }
}

impl FromStr for CpuQuantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let wrong = || ParseQuantityError { what: "CPU", text: text.to_owned(), example: "500m" };
        let (number, multiplier) = match text.strip_suffix('m') {
            Some(number) => (number, 1),
            None => match with_exponent(text) {
                Some((number, power)) => (number, power.saturating_mul(1000)),
                None => (text, 1000),
            },
        };
        let millicores = decimal_times(number, multiplier).ok_or_else(wrong)?;
        Ok(Self { text: text.to_owned(), millicores })
    }
}

/// The number and the power of ten of a text such as `129e6`.
fn with_exponent(text: &str) -> Option<(&str, u64)> {
    let (number, exponent) = text.split_once(['e', 'E'])?;
    let is_plain = exponent.bytes().all(|byte| byte.is_ascii_digit());
    let power = 10_u64.checked_pow(exponent.parse().ok().filter(|_| is_plain)?)?;
    Some((number, power))
}

/// A non-negative decimal number times `multiplier`, rounded up to a whole.
fn decimal_times(number: &str, multiplier: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let total = u128::from(whole) * u128::from(multiplier)
        + (fraction * u128::from(multiplier)).div_ceil(scale);
    u64::try_from(total).ok()
}

/// The conversions that both quantities have.
macro_rules! quantity_text {
    ($name:ident) => {
        impl $name {
            /// The quantity as it was written.
            pub fn as_str(&self) -> &str {
                &self.text
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseQuantityError;

            fn try_from(text: String) -> Result<Self, ParseQuantityError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(quantity: $name) -> String {
                quantity.text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.text, f)
            }
        }
    };
}

quantity_text!(MemoryQuantity);
quantity_text!(CpuQuantity);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_is_read_in_binary_and_decimal_units() {
        let check = |text: &str, bytes: u64| {
            let quantity: MemoryQuantity = text.parse().unwrap();
            assert_eq!((quantity.bytes(), quantity.as_str()), (bytes, text));
        };
        check("5Mi", 5 << 20);
        check("128Mi", 128 << 20);
        check("1Gi", 1 << 30);
        check("1.5Gi", 3 << 29);
        check("40M", 40_000_000);
        check("128m", 128_000_000);
        check("1024", 1024);
        check("129e6", 129_000_000);
        check("1.5E3", 1_500);
        check("1E", 1_000_000_000_000_000_000);
        check("0", 0);
    }

    #[test]
    fn cpu_is_read_in_cores_and_thousandths() {
        let check = |text: &str, millicores: u64| {
            let quantity: CpuQuantity = text.parse().unwrap();
            assert_eq!((quantity.millicores(), quantity.as_str()), (millicores, text));
        };
        check("100m", 100);
        check("1", 1000);
        check("0.5", 500);
        check("0.0001", 1);
        check("2e0", 2000);
    }

    #[test]
    fn words_signs_and_unknown_suffixes_are_refused() {
        for bad in [
            "",
            "Mi",
            "-1",
            "1e",
            "e3",
            "1e-3",
            "1e+3",
            "1e99",
            "9e18e1",
            "12Xi",
            "1 Gi",
            "99999999999999Ei",
            "1.0000000000001",
        ] {
            assert!(bad.parse::<MemoryQuantity>().is_err(), "{bad}");
        }
        for bad in ["", "m", "-1", "100mi", "one"] {
            assert!(bad.parse::<CpuQuantity>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            drop(text.parse::<MemoryQuantity>());
            drop(text.parse::<CpuQuantity>());
        }
    }
}
