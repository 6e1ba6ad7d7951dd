//! Answering a log query: what is there, and what comes.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::mpsc;
use updraft_engine::{EngineError, LogLine, LogQuery, ReplicaId};

use super::read::{self, At, Times};
use super::{folder, older};
use crate::shared::Shared;

/// How long a follower waits for word of something new before it looks all the same.
const INTERVAL: Duration = Duration::from_secs(1);

/// Pause between two looks of one follower.
const PAUSE: Duration = Duration::from_millis(20);

/// Lines under way to a reader; one that reads slowly slows its own stream only.
const BUFFERED: usize = 256;

/// Most lines of what is there already when the query sets no number.
const LINES_MAX: usize = 100_000;

/// Most bytes taken from one file in one look.
const STEP_BYTES: u64 = 1 << 20;

/// How far each log file was read.
type Positions = HashMap<PathBuf, u64>;

/// The lines that a query asks for.
pub(crate) fn stream(
    shared: &Arc<Shared>,
    query: LogQuery,
) -> BoxStream<'static, Result<LogLine, EngineError>> {
    let (sender, receiver) = mpsc::channel(BUFFERED);
    let shared = Arc::clone(shared);
    let tasks = shared.tasks.clone();
    tasks.spawn(async move { answer(&shared, query, sender).await });
    futures_util::stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    })
    .boxed()
}

async fn answer(
    shared: &Arc<Shared>,
    query: LogQuery,
    sender: mpsc::Sender<Result<LogLine, EngineError>>,
) {
    let place = folder(&shared.options, &query.id);
    let follow = query.follow;
    // Before the first look, so that no word is missed.
    let mut grown = shared.looked.grown();
    let (wanted, here) = (query.clone(), place.clone());
    let looking = Arc::clone(shared);
    let past = tokio::task::spawn_blocking(move || past(&looking, &here, &wanted)).await;
    let (lines, mut positions) = past.unwrap_or_default();
    for line in lines {
        if sender.send(Ok(line)).await.is_err() {
            return;
        }
    }
    if !follow {
        return;
    }
    loop {
        tokio::select! {
            _ = tokio::time::timeout(INTERVAL, grown.changed()) => {}
            () = shared.closing.cancelled() => return,
            () = sender.closed() => return,
        }
        let (here, wanted) = (place.clone(), query.clone());
        let looking = Arc::clone(shared);
        let looked = tokio::task::spawn_blocking(move || {
            let mut lines = Vec::new();
            news(&looking, &here, &wanted, &mut positions, &mut lines);
            (lines, positions)
        });
        let Ok((lines, now)) = looked.await else { return };
        positions = now;
        for line in lines {
            if sender.send(Ok(line)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_wanted(query: &LogQuery, replica: &str) -> bool {
    query.instance.as_ref().is_none_or(|wanted| wanted.as_str() == replica)
}

/// What is there already, in the order of time, and how far the files were read.
fn past(shared: &Shared, folder: &Path, query: &LogQuery) -> (Vec<LogLine>, Positions) {
    let limit = query.tail.unwrap_or(LINES_MAX).min(LINES_MAX);
    let mut positions = Positions::new();
    let mut all = Vec::new();
    for (replica, path) in read::log_files(folder) {
        if !is_wanted(query, &replica) {
            continue;
        }
        // Else a line would get one time now and another once the file was looked at.
        if shared.is_running(&replica) {
            shared.looked.look(&path, shared.options.log_limits(), Timestamp::now());
        }
        let instance = ReplicaId::new(replica);
        let mut last = VecDeque::new();
        for part in read::parts(&path) {
            let Ok((begin, bytes)) = read::from(&part, At::Line(0), u64::MAX) else { continue };
            let times = Times::of(&part);
            let mut position = begin;
            for (end, line) in read::split(&bytes).map(|(end, line)| (begin + end, line)) {
                // A line that is still being written comes with what follows it, if anything.
                if query.follow && part == path && !line.ends_with(b"\n") {
                    break;
                }
                position = end;
                let timestamp = times.at(end);
                if query.since.is_some_and(|since| timestamp < since) {
                    continue;
                }
                if last.len() == limit {
                    last.pop_front();
                }
                if limit > 0 {
                    last.push_back(LogLine {
                        instance: instance.clone(),
                        timestamp,
                        text: read::text(line),
                    });
                }
            }
            if part == path {
                positions.insert(path.clone(), position);
            }
        }
        all.extend(last);
    }
    // Stable: lines of one replica keep their order.
    all.sort_by_key(|line| line.timestamp);
    let surplus = all.len().saturating_sub(limit);
    all.drain(..surplus);
    (all, positions)
}

/// What came since the last look.
fn news(
    shared: &Shared,
    folder: &Path,
    query: &LogQuery,
    positions: &mut Positions,
    lines: &mut Vec<LogLine>,
) {
    for (replica, path) in read::log_files(folder) {
        if !is_wanted(query, &replica) {
            continue;
        }
        let instance = ReplicaId::new(replica);
        let position = positions.entry(path.clone()).or_default();
        let Ok(length) = fs::metadata(&path).map(|metadata| metadata.len()) else { continue };
        if length < *position {
            // Begun anew: the rest of what was there is in the older part now.
            let part = older(&path);
            if let Ok((begin, rest)) = read::from(&part, At::Line(*position), u64::MAX) {
                let times = Times::of(&part);
                push(&instance, begin, &rest, true, lines, |end| times.at(end));
            }
            *position = 0;
        }
        if length > *position
            && let Ok((begin, bytes)) = read::from(&path, At::Line(*position), STEP_BYTES)
        {
            let full = bytes.len() as u64 + (begin - *position) >= STEP_BYTES;
            // Looked for only when it is not known already.
            let mut times = None;
            let time = |end| {
                shared
                    .looked
                    .time_of(&path, end)
                    .unwrap_or_else(|| times.get_or_insert_with(|| Times::of(&path)).at(end))
            };
            *position = push(&instance, begin, &bytes, full, lines, time);
        }
    }
    positions.retain(|path, _| path.exists());
}

/// Adds the lines in `bytes`, which begin at `begin` of their file; an unfinished last one only
/// when asked. Returns where what is left begins.
fn push(
    instance: &ReplicaId,
    begin: u64,
    bytes: &[u8],
    unfinished: bool,
    lines: &mut Vec<LogLine>,
    mut time: impl FnMut(u64) -> Timestamp,
) -> u64 {
    let mut used = 0;
    for (end, line) in read::split(bytes) {
        let is_whole = line.ends_with(b"\n") || line.len() == super::LINE_MAX;
        if !(is_whole || (unfinished && used == 0)) {
            break;
        }
        used = end;
        let (instance, timestamp) = (instance.clone(), time(begin + end));
        lines.push(LogLine { instance, timestamp, text: read::text(line) });
    }
    begin + used
}
