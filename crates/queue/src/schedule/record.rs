//! What has become of each schedule, in one file that is replaced as a whole.
//!
//! It is written after calls are in the queue, never before: a crash in between makes a time come
//! once more, and the call's id, which is made of the schedule and the time, tells that the call is
//! there already.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use updraft_model::FunctionId;

/// The form this code writes.
const VERSION: u32 = 1;

/// How many runs of a schedule are remembered.
const RUNS_MAX: usize = 10;

/// A schedule that is gone is remembered this long: its function may be deployed again.
const KEPT: SignedDuration = SignedDuration::from_hours(24 * 7);

/// A time on record that is later than this was written by a wrong clock.
const AHEAD_MAX: SignedDuration = SignedDuration::from_hours(24);

/// What is known of one schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Past {
    /// Times up to this one are dealt with.
    pub(super) since: Timestamp,
    /// Whose schedule it is, for whoever reads the file.
    pub(super) function: FunctionId,
    /// Newest last.
    #[serde(default)]
    pub(super) runs: VecDeque<Run>,
}

/// What came of one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) due: Timestamp,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// A call was put into the queue: its id.
    Called(String),
    /// None was, for this reason.
    Skipped(String),
}

impl Past {
    pub(super) fn new(function: FunctionId, since: Timestamp) -> Self {
        Self { since, function, runs: VecDeque::new() }
    }

    pub(super) fn add(&mut self, run: Run) {
        self.since = run.due;
        self.runs.push_back(run);
        while self.runs.len() > RUNS_MAX {
            self.runs.pop_front();
        }
    }

    /// The last call that was made.
    pub(super) fn last_call(&self) -> Option<&str> {
        self.runs.iter().rev().find_map(|run| match &run.outcome {
            Outcome::Called(id) => Some(id.as_str()),
            Outcome::Skipped(_) => None,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Form {
    version: u32,
    schedules: BTreeMap<String, Past>,
}

/// The file.
#[derive(Debug, Clone)]
pub(super) struct RecordFile(pub(super) PathBuf);

impl RecordFile {
    /// What is on record. A file that cannot be understood is put aside: what it knew is when
    /// things ran last, and nothing is worth not starting for that.
    pub(super) fn load(&self, now: Timestamp) -> io::Result<BTreeMap<String, Past>> {
        let bytes = match fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let form: Result<Form, _> = serde_json::from_slice(&bytes);
        let reason = match form {
            Ok(form) if form.version == VERSION => {
                let mut schedules = form.schedules;
                for past in schedules.values_mut() {
                    if past.since > now.saturating_add(AHEAD_MAX).unwrap_or(Timestamp::MAX) {
                        past.since = now;
                    }
                }
                return Ok(schedules);
            }
            Ok(form) => format!("its version is {}", form.version),
            Err(error) => error.to_string(),
        };
        let aside = self.0.with_extension("unreadable");
        tracing::warn!(file = %self.0.display(), reason, aside = %aside.display(), "the record of schedules cannot be read and was put aside");
        fs::rename(&self.0, aside)?;
        Ok(BTreeMap::new())
    }

    /// Replaces the file, durably.
    pub(super) fn save(&self, bytes: &[u8]) -> io::Result<()> {
        replace(&self.0, bytes)
    }
}

/// The content of the file; what is over is forgotten.
pub(super) fn written(
    schedules: &mut BTreeMap<String, Past>,
    is_there: impl Fn(&str) -> bool,
    now: Timestamp,
) -> Vec<u8> {
    schedules.retain(|key, past| is_there(key) || now.duration_since(past.since) < KEPT);
    let form = Form { version: VERSION, schedules: std::mem::take(schedules) };
    let bytes = serde_json::to_vec(&form).expect("names, times and texts are JSON");
    *schedules = form.schedules;
    bytes
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(next, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of version 1, kept as it was first written.
    const SAMPLE: &str = r#"{"version":1,"schedules":{"00ff":{"since":"2026-01-01T10:00:00Z","function":{"namespace":"openfaas-fn","name":"f"},"runs":[{"due":"2026-01-01T09:00:00Z","outcome":{"skipped":"late"}},{"due":"2026-01-01T10:00:00Z","outcome":{"called":"cron-00ff-1"}}]}}}"#;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_form_is_read_for_ever_and_written_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = RecordFile(folder.path().join("schedules.json"));
        let now = at("2026-01-02T00:00:00Z");
        assert!(file.load(now).unwrap().is_empty());
        fs::write(&file.0, SAMPLE).unwrap();
        let mut schedules = file.load(now).unwrap();
        assert_eq!(schedules["00ff"].last_call(), Some("cron-00ff-1"));
        file.save(&written(&mut schedules, |_| false, now)).unwrap();
        assert_eq!(fs::read_to_string(&file.0).unwrap(), SAMPLE);
        // A week after its last time nobody asks for it any more, unless it is still there.
        let later = at("2026-01-08T10:00:00Z");
        file.save(&written(&mut schedules, |_| true, later)).unwrap();
        assert_eq!(schedules.len(), 1);
        file.save(&written(&mut schedules, |_| false, later)).unwrap();
        assert!(schedules.is_empty() && file.load(later).unwrap().is_empty());
    }

    #[test]
    fn a_record_from_the_future_does_not_stop_a_schedule() {
        let folder = tempfile::tempdir().unwrap();
        let file = RecordFile(folder.path().join("schedules.json"));
        fs::write(&file.0, SAMPLE).unwrap();
        let now = at("2025-06-01T00:00:00Z");
        assert_eq!(file.load(now).unwrap()["00ff"].since, now);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let file = RecordFile(folder.path().join("schedules.json"));
        for text in ["{", r#"{"version":2,"schedules":{}}"#] {
            fs::write(&file.0, text).unwrap();
            assert!(file.load(Timestamp::UNIX_EPOCH).unwrap().is_empty());
            let aside = folder.path().join("schedules.unreadable");
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
        }
    }

    #[test]
    fn only_the_newest_runs_are_remembered() {
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut past = Past::new(id, Timestamp::UNIX_EPOCH);
        for second in 1..=30 {
            let due = Timestamp::from_second(second).unwrap();
            let outcome = Outcome::Called(second.to_string());
            past.add(Run { due, outcome });
        }
        past.add(Run {
            due: Timestamp::from_second(31).unwrap(),
            outcome: Outcome::Skipped("late".into()),
        });
        assert_eq!(past.runs.len(), RUNS_MAX);
        assert_eq!(past.since.as_second(), 31);
        assert_eq!(past.last_call(), Some("30"));
    }
}
