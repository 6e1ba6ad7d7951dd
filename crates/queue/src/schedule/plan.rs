//! The schedules of one function, as its annotations say them.

use std::sync::Arc;

use http::uri::PathAndQuery;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};
use updraft_model::{FunctionId, FunctionSpec, OwnerName, annotations};

use super::rhythm::Rhythm;

/// The topic of functions that are called by schedule.
pub(super) const TOPIC: &str = "cron-function";

/// Most schedules of one function.
const SCHEDULES_MAX: usize = 32;

/// A run that is no later than this is not missed: the clock was set, the machine was busy, or
/// Updraft was started anew.
const TOLERANCE_SECONDS: i64 = 30;

/// One schedule of one function.
#[derive(Debug)]
pub(super) struct Plan {
    /// Names the schedule in ids and on record: the same for the same function, text and zone.
    pub(super) key: String,
    pub(super) spec: Arc<FunctionSpec>,
    pub(super) owner: Option<OwnerName>,
    pub(super) text: String,
    pub(super) zone: String,
    /// When it is due, or what is wrong with what was written.
    pub(super) rhythm: Result<Rhythm, String>,
    /// A run may begin while the one before is under way.
    pub(super) may_overlap: bool,
    /// After times that were missed, the last of them is made up for.
    pub(super) makes_up: bool,
    pub(super) target: String,
    pub(super) body: String,
}

/// A time that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Timestamp,
    /// It is not to be left out for being late.
    pub(super) runs: bool,
}

impl Plan {
    /// The newest time that has come since `since`; earlier ones are gone with it.
    pub(super) fn due(&self, since: Timestamp, now: Timestamp) -> Option<Due> {
        let rhythm = self.rhythm.as_ref().ok()?;
        let at = rhythm.latest(now).filter(|at| *at > since)?;
        let late = now.as_second() - at.as_second();
        Some(Due { at, runs: late <= TOLERANCE_SECONDS || self.makes_up })
    }

    pub(super) fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.rhythm.as_ref().ok()?.next(now)
    }

    pub(super) fn function(&self) -> &FunctionId {
        &self.spec.id
    }
}

/// The schedules of a function; none when it is not called by schedule.
pub(super) fn plans(spec: &Arc<FunctionSpec>) -> Vec<Arc<Plan>> {
    let annotation = |key: &str| spec.annotations.get(key).map(|text| text.trim());
    let topics = annotation(annotations::TOPIC).unwrap_or_default();
    if !topics.split(',').any(|topic| topic.trim() == TOPIC) {
        return Vec::new();
    }
    let zone_name = annotation(annotations::TIMEZONE).filter(|name| !name.is_empty());
    let zone_name = zone_name.unwrap_or("UTC").to_owned();
    let zone = TimeZone::get(&zone_name).map_err(|_| {
        format!(
            "annotation `{}` names no time zone, write one such as `Europe/Berlin`",
            annotations::TIMEZONE
        )
    });
    let may_overlap = switch(spec, annotations::SCHEDULE_OVERLAP, ["skip", "allow"]);
    let makes_up = switch(spec, annotations::SCHEDULE_MISSED, ["skip", "once"]);
    let target = match annotation(annotations::SCHEDULE_PATH).unwrap_or("/") {
        path if path.starts_with('/') && path.parse::<PathAndQuery>().is_ok() => Ok(path),
        _ => Err(format!(
            "annotation `{}` is no path, write one such as `/daily?full=1`",
            annotations::SCHEDULE_PATH
        )),
    };
    let texts = annotation(annotations::SCHEDULE).unwrap_or_default();
    let mut texts: Vec<_> = texts.split(';').map(str::trim).filter(|t| !t.is_empty()).collect();
    if texts.is_empty() {
        texts.push("");
    }
    let plan = |(number, text): (usize, &str)| {
        let rhythm = (|| {
            if number >= SCHEDULES_MAX {
                return Err(format!("a function can have {SCHEDULES_MAX} schedules, no more"));
            }
            if text.is_empty() {
                let key = annotations::SCHEDULE;
                return Err(format!("annotation `{key}` is missing, write one such as `@hourly`"));
            }
            may_overlap.as_ref().map_err(Clone::clone)?;
            makes_up.as_ref().map_err(Clone::clone)?;
            target.as_ref().map_err(Clone::clone)?;
            Rhythm::parse(text, zone.as_ref().map_err(Clone::clone)?)
        })();
        Arc::new(Plan {
            key: key(&spec.id, text, &zone_name),
            spec: Arc::clone(spec),
            owner: spec.owner(),
            text: text.to_owned(),
            zone: zone_name.clone(),
            rhythm,
            may_overlap: may_overlap.as_ref().is_ok_and(|on| *on),
            makes_up: makes_up.as_ref().is_ok_and(|on| *on),
            target: target.as_ref().map_or("/", |path| *path).to_owned(),
            body: spec.annotations.get(annotations::SCHEDULE_BODY).cloned().unwrap_or_default(),
        })
    };
    // What is above the limit is told once.
    texts.into_iter().take(SCHEDULES_MAX + 1).enumerate().map(plan).collect()
}

/// Reads one of two words, the first being the usual one.
fn switch(spec: &FunctionSpec, key: &str, [usual, other]: [&str; 2]) -> Result<bool, String> {
    match spec.annotations.get(key).map(|word| word.trim()) {
        None | Some("") => Ok(false),
        Some(word) if word == usual => Ok(false),
        Some(word) if word == other => Ok(true),
        Some(_) => Err(format!("annotation `{key}` is `{usual}` or `{other}`")),
    }
}

fn key(id: &FunctionId, text: &str, zone: &str) -> String {
    let mut hash = Sha256::new();
    for part in [id.to_string().as_str(), text, zone] {
        hash.update(part);
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(annotations: &[(&str, &str)]) -> Arc<FunctionSpec> {
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut spec = FunctionSpec::new(id, "i".parse().unwrap());
        let pairs = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        spec.annotations = pairs.collect();
        Arc::new(spec)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn only_functions_of_the_topic_have_schedules() {
        assert!(plans(&spec(&[("schedule", "@hourly")])).is_empty());
        assert!(plans(&spec(&[("topic", "payments"), ("schedule", "@hourly")])).is_empty());
        let both = spec(&[("topic", "payments, cron-function"), ("schedule", "@hourly")]);
        assert_eq!(plans(&both).len(), 1);
    }

    #[test]
    fn a_wrong_schedule_does_not_stop_the_others_of_its_function() {
        let mixed = spec(&[("topic", "cron-function"), ("schedule", "@hourly; often ;0 9 * * *;")]);
        let plans = plans(&mixed);
        let works: Vec<_> = plans.iter().map(|plan| plan.rhythm.is_ok()).collect();
        assert_eq!(works, [true, false, true]);
        let keys: std::collections::BTreeSet<_> = plans.iter().map(|plan| &plan.key).collect();
        assert_eq!(keys.len(), 3);
    }

    #[test]
    fn every_wrong_annotation_is_told_by_its_name() {
        for (key, value) in [
            ("timezone", "Europe/Nowhere"),
            ("updraft.schedule.overlap", "perhaps"),
            ("updraft.schedule.missed", "all"),
            ("updraft.schedule.path", "no slash"),
            ("schedule", " ; "),
        ] {
            let mut wrong = vec![("topic", "cron-function"), ("schedule", "@hourly")];
            wrong.retain(|(known, _)| *known != key);
            wrong.push((key, value));
            let problem = plans(&spec(&wrong))[0].rhythm.clone().unwrap_err();
            assert!(problem.contains(&format!("`{key}`")), "{problem}");
        }
        let many = "@hourly;".repeat(SCHEDULES_MAX + 5);
        let many = plans(&spec(&[("topic", "cron-function"), ("schedule", &many)]));
        assert_eq!(many.len(), SCHEDULES_MAX + 1);
        assert!(many[SCHEDULES_MAX].rhythm.is_err());
    }

    #[test]
    fn a_time_is_missed_when_it_is_long_gone_and_made_up_for_when_that_is_wanted() {
        let plan = |missed: &str| {
            let base = [("topic", "cron-function"), ("schedule", "0 * * * *")];
            let all = [&base[..], &[("updraft.schedule.missed", missed)]].concat();
            Arc::clone(&plans(&spec(&all))[0])
        };
        let (skip, once) = (plan("skip"), plan("once"));
        let since = at("2026-01-01T10:00:00Z");
        for one in [&skip, &once] {
            assert_eq!(one.due(since, since), None, "it was handled");
            assert_eq!(one.due(since, at("2026-01-01T10:59:59Z")), None);
            let due = Due { at: at("2026-01-01T11:00:00Z"), runs: true };
            assert_eq!(one.due(since, at("2026-01-01T11:00:00Z")), Some(due));
            assert_eq!(one.due(since, at("2026-01-01T11:00:29Z")), Some(due));
            // The clock was set back: what was done is not done again.
            assert_eq!(one.due(since, at("2026-01-01T08:30:00Z")), None);
        }
        // Four hours later there is one run at most, not four.
        let now = at("2026-01-01T14:10:00Z");
        let last = at("2026-01-01T14:00:00Z");
        assert_eq!(skip.due(since, now), Some(Due { at: last, runs: false }));
        assert_eq!(once.due(since, now), Some(Due { at: last, runs: true }));
    }
}
