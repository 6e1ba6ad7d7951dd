//! The webhook of Prometheus' Alertmanager: what it says, and what follows from it.
//!
//! A firing alert adds a step of the maximum, a resolved one goes back to the minimum. That is
//! coarse, and kept for those who bring their rules along; the scaler's own way needs no alert.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::policy::Policy;

/// Most notices of one alert that are looked at.
const MOST_NOTICES: usize = 1_000;

/// What Alertmanager sends, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// The notices, one a function at most.
    pub notices: Vec<AlertNotice>,
}

/// One alert of one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertNotice {
    /// Whether it holds or is over.
    pub status: AlertStatus,
    /// The function, `name` or `name.namespace`, as the label `function_name` has it.
    pub function: String,
}

/// Whether an alert holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertStatus {
    /// It holds: more replicas are wanted.
    Firing,
    /// It is over, or says something else: the minimum is enough.
    Resolved,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlertOutcome {
    /// Functions whose number of replicas was changed.
    pub scaled: usize,
    /// One line for each function that the engine refused to scale.
    pub errors: Vec<String>,
}

/// The body is no alert. The caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ParseAlertError(String);

impl Alert {
    /// Reads the body leniently, as Go would: keys in any case, unknown ones ignored, `null` as if
    /// it were not there. A notice without a function name is left out.
    ///
    /// # Errors
    /// The body is no JSON object, or a part that is read has another type; the message points to
    /// it.
    pub fn parse(body: &[u8]) -> Result<Self, ParseAlertError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ParseAlertError(format!("the alert is no JSON: {error}")))?;
        let object = object(&value, "")?;
        let mut notices = Vec::new();
        let alerts = match get(object, "alerts") {
            None => &[],
            Some(Value::Array(alerts)) => alerts.as_slice(),
            Some(other) => return Err(wrong("/alerts", "an array", other)),
        };
        for (index, alert) in alerts.iter().take(MOST_NOTICES).enumerate() {
            let place = format!("/alerts/{index}");
            let alert = self::object(alert, &place)?;
            let status = text(alert, "status", &place)?.unwrap_or_default();
            let Some(labels) = get(alert, "labels") else { continue };
            let place = format!("{place}/labels");
            let function = text(self::object(labels, &place)?, "function_name", &place)?;
            let Some(function) = function.filter(|function| !function.is_empty()) else { continue };
            let status =
                if status == "firing" { AlertStatus::Firing } else { AlertStatus::Resolved };
            notices.push(AlertNotice { status, function: function.to_owned() });
        }
        Ok(Self { notices })
    }
}

fn wrong(place: &str, expected: &str, found: &Value) -> ParseAlertError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let place = if place.is_empty() { "the alert" } else { place };
    ParseAlertError(format!("{place} is {found}, expected {expected}"))
}

fn object<'a>(value: &'a Value, place: &str) -> Result<&'a Map<String, Value>, ParseAlertError> {
    value.as_object().ok_or_else(|| wrong(place, "an object", value))
}

/// The member of that name, or else the one whose name differs in case only; `null` is none.
fn get<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let exact = object.get(name);
    let alike = || object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    exact.or_else(|| alike().map(|(_, value)| value)).filter(|value| !value.is_null())
}

fn text<'a>(
    object: &'a Map<String, Value>,
    name: &str,
    place: &str,
) -> Result<Option<&'a str>, ParseAlertError> {
    match get(object, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(&format!("{place}/{name}"), "a text", other)),
    }
}

/// How many replicas an alert leads to. One that sleeps is not woken by the end of an alert.
pub(crate) fn after_alert(status: AlertStatus, current: u32, policy: &Policy) -> u32 {
    let step = u64::from(policy.max) * u64::from(policy.factor);
    let step = u32::try_from(step.div_ceil(100)).unwrap_or(u32::MAX);
    match status {
        AlertStatus::Resolved if current == 0 => 0,
        AlertStatus::Firing if step > 0 => current.saturating_add(step).min(policy.max),
        _ => policy.min,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::ScalerOptions;
    use proptest::prelude::*;

    fn policy(min: u32, max: u32, factor: u32) -> Policy {
        let options = ScalerOptions::default();
        Policy {
            min,
            max,
            factor,
            targets: Vec::new(),
            zero_after: None,
            down_window: options.down_window,
            warm: Vec::new(),
        }
    }

    #[test]
    fn an_alert_adds_a_step_and_its_end_goes_to_the_minimum() {
        use AlertStatus::{Firing, Resolved};
        let check = |status, current, (min, max, factor), expected| {
            let after = after_alert(status, current, &policy(min, max, factor));
            assert_eq!(after, expected, "{status:?} {current} {min} {max} {factor}");
        };
        check(Firing, 1, (1, 5, 10), 2);
        check(Firing, 4, (1, 5, 25), 5);
        check(Firing, 19, (1, 5, 10), 5);
        check(Resolved, 8, (1, 5, 10), 1);
        check(Firing, 3, (1, 5, 0), 1);
        check(Firing, 5, (5, 5, 10), 5);
        check(Resolved, 5, (5, 5, 10), 5);
        // What functions without labels have.
        check(Firing, 1, (1, 20, 20), 5);
        check(Firing, 17, (1, 20, 20), 20);
        check(Resolved, 20, (1, 20, 20), 1);
        check(Firing, 0, (1, 20, 20), 4);
        check(Resolved, 0, (1, 20, 20), 0);
        check(Firing, u32::MAX, (1, u32::MAX, 100), u32::MAX);
    }

    #[test]
    fn an_alert_of_alertmanager_is_read() {
        let body = br#"{
            "receiver": "scale-up", "status": "firing", "groupKey": "x", "version": "4",
            "alerts": [
                {"status": "firing", "labels": {"alertname": "APIHighInvocationRate",
                 "code": "200", "function_name": "nodeinfo.openfaas-fn", "severity": "major"},
                 "annotations": {}, "startsAt": "2026-01-01T00:00:00Z"},
                {"Status": "resolved", "LABELS": {"Function_Name": "env"}},
                {"status": "firing", "labels": {"alertname": "other"}},
                {"status": "firing", "labels": null}
            ]
        }"#;
        let notice = |status, function: &str| AlertNotice { status, function: function.to_owned() };
        let expected = Alert {
            notices: vec![
                notice(AlertStatus::Firing, "nodeinfo.openfaas-fn"),
                notice(AlertStatus::Resolved, "env"),
            ],
        };
        assert_eq!(Alert::parse(body).unwrap(), expected);
        assert_eq!(Alert::parse(b"{}").unwrap().notices, []);
        assert_eq!(Alert::parse(br#"{"alerts": null}"#).unwrap().notices, []);
    }

    #[test]
    fn what_is_no_alert_is_refused_with_the_place() {
        let check = |body: &str, part: &str| {
            let error = Alert::parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{body}: {error}");
        };
        check("", "no JSON");
        check("nonsense", "no JSON");
        check("[]", "the alert is an array, expected an object");
        check(r#"{"alerts": {}}"#, "/alerts is an object, expected an array");
        check(r#"{"alerts": [3]}"#, "/alerts/0 is a number");
        check(r#"{"alerts": [{"status": 1}]}"#, "/alerts/0/status is a number");
        check(
            r#"{"alerts": [{}, {"labels": {"function_name": []}}]}"#,
            "/alerts/1/labels/function_name is an array",
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Alert::parse(&body));
        }

        #[test]
        fn an_alert_stays_within_the_bounds(
            current in 1..100_u32, min in 1..10_u32, more in 0..50_u32, factor in 0..=100_u32,
        ) {
            let policy = policy(min, min + more, factor);
            for status in [AlertStatus::Firing, AlertStatus::Resolved] {
                prop_assert!(after_alert(status, current, &policy) <= policy.max);
                prop_assert!(after_alert(status, current, &policy) >= 1);
            }
        }
    }
}
