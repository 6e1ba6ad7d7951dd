//! Which users of the machine each tenant has: a range of its own, so that whoever leaves a
//! container is nobody outside and nobody in another tenant's containers.
//!
//! The ranges are kept on disk: a replica that outlives Updraft keeps its users. One is given to
//! another tenant only when an engine was opened that found nothing of the first any more. Where
//! files of an image belong to is shifted by the mount (`updraft_idmap`), so no file on disk ever
//! belongs to such a user.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};
use updraft_idmap::IdMap;
use updraft_model::Tenant;

use crate::options::{LocalEngineOptions, OpenError};
use crate::record::{beside_others, folder_entries, write_atomically};

/// Users and groups of one tenant: as many as images know of.
pub(crate) const USERS: u32 = 65_536;

const VERSION: u32 = 1;

/// Where the machine says whom it gave users to: ranges, and single ones.
const RANGE_FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
const ID_FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// The users of one tenant, by the first of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct IdRange {
    pub(crate) first: u32,
}

impl IdRange {
    /// What the machine calls user or group `number` of a container; nothing when a container
    /// has no such user.
    pub(crate) fn outside(self, number: u32) -> Option<u32> {
        (number < USERS).then(|| self.first + number)
    }
}

/// What is kept on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    version: u32,
    ranges: BTreeMap<Tenant, IdRange>,
}

/// The tenants of one instance and their users.
#[derive(Debug)]
pub(crate) struct Tenants {
    path: PathBuf,
    /// First users of all ranges that may be given out.
    candidates: Vec<IdRange>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ranges: BTreeMap<Tenant, IdRange>,
    /// Made when a tenant's first replica starts.
    maps: BTreeMap<IdRange, Arc<IdMap>>,
    /// Where the search for the next range begins, so that one that was given back rests.
    next: usize,
}

impl Tenants {
    /// Reads the record, forgets tenants of which nothing is left, and moves those whose range
    /// somebody else has got meanwhile, unless a replica of theirs runs.
    pub(crate) fn open(
        options: &LocalEngineOptions,
        known: &BTreeSet<Tenant>,
        running: &BTreeSet<Tenant>,
    ) -> Result<Self, OpenError> {
        let path = options.state.join("tenants.json");
        let mut ranges = match read(&path) {
            Ok(stored) => stored.ranges,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                return Err(OpenError::Record { path, reason: error.to_string() });
            }
        };
        let taken = taken_by_others(options);
        let first = options.users.first;
        let candidates: Vec<IdRange> = (1..options.users.ranges())
            .map(|number| IdRange { first: first + number * USERS })
            .filter(|range| !taken.iter().any(|(low, high)| overlaps(*range, *low, *high)))
            .collect();
        ranges.retain(|tenant, range| {
            running.contains(tenant) || known.contains(tenant) && candidates.contains(range)
        });
        let start = u32::from_str_radix(&options.instance, 16).unwrap_or(0) as usize;
        let last = ranges.values().max().and_then(|last| {
            candidates.iter().position(|range| range == last).map(|position| position + 1)
        });
        let next = last.unwrap_or(start) % candidates.len().max(1);
        let state = State { ranges, maps: BTreeMap::new(), next };
        Ok(Self { path, candidates, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The users of a tenant: those it has, else a range that nobody has.
    ///
    /// # Errors
    /// A sentence for people.
    pub(crate) fn range(&self, tenant: &Tenant) -> Result<IdRange, String> {
        let mut state = self.lock();
        if let Some(range) = state.ranges.get(tenant) {
            return Ok(*range);
        }
        let count = self.candidates.len();
        let used: BTreeSet<IdRange> = state.ranges.values().copied().collect();
        let free = (0..count).map(|step| (state.next + step) % count);
        let free = free.map(|number| (number, self.candidates[number]));
        let Some((number, range)) = { free }.find(|(_, range)| !used.contains(range)) else {
            return Err(format!(
                "all {count} ranges of users are given to tenants, raise `isolation.users`"
            ));
        };
        state.next = (number + 1) % count;
        state.ranges.insert(tenant.clone(), range);
        let stored = Stored { version: VERSION, ranges: state.ranges.clone() };
        let saved = serde_json::to_vec_pretty(&stored)
            .map_err(io::Error::from)
            .and_then(|bytes| beside_others(|| write_atomically(&self.path, &bytes, true)));
        if let Err(error) = saved {
            state.ranges.remove(tenant);
            return Err(format!("cannot note the users of tenant `{tenant}`: {error}"));
        }
        Ok(range)
    }

    /// The map that shows an image's files as those of a range.
    ///
    /// # Errors
    /// The machine's fault.
    pub(crate) fn map(&self, range: IdRange) -> io::Result<Arc<IdMap>> {
        if let Some(map) = self.lock().maps.get(&range) {
            return Ok(Arc::clone(map));
        }
        // Two at once make two, and both are good.
        let map = Arc::new(beside_others(|| IdMap::new(range.first, USERS))?);
        self.lock().maps.insert(range, Arc::clone(&map));
        Ok(map)
    }
}

/// The users of containers that only show that a runtime works: a range no tenant is given.
pub(crate) fn trial(options: &LocalEngineOptions) -> IdRange {
    IdRange { first: options.users.first }
}

/// Lays an overlay over a folder beside the images, as replicas will have it.
///
/// # Errors
/// A sentence for people: which part the machine lacks.
pub(crate) fn try_shifting(options: &LocalEngineOptions) -> Result<(), String> {
    let folder = options.state.join(format!("try-{}", std::process::id()));
    let tried = (|| {
        let [layer, shown, work] = ["layer", "shown", "work"].map(|name| folder.join(name));
        for folder in [&layer, &shown, &work] {
            fs::create_dir_all(folder)?;
        }
        let tree = IdMap::new(trial(options).first, USERS)?.shifted(&layer)?;
        updraft_idmap::attach(&tree, &shown)?;
        // Two, because a single layer needs no overlay.
        let stacked = CString::new(format!("lowerdir={0}:{1}", shown.display(), work.display()))?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
        let mounted = rustix::mount::mount("overlay", &shown, "overlay", flags, stacked.as_c_str());
        if mounted.is_ok() {
            rustix::mount::unmount(&shown, UnmountFlags::DETACH)?;
        }
        rustix::mount::unmount(&shown, UnmountFlags::DETACH)?;
        Ok::<_, io::Error>(mounted?)
    })();
    // Empty folders; whatever stays of them is in nobody's way.
    drop(fs::remove_dir_all(&folder));
    tried.map_err(|error| {
        format!("the kernel does not show them under shifted owners ({error}); Linux 5.19 and later do, on most file systems")
    })
}

fn read(path: &Path) -> io::Result<Stored> {
    let stored: Stored = serde_json::from_slice(&fs::read(path)?)?;
    if stored.version == VERSION {
        return Ok(stored);
    }
    let found = stored.version;
    Err(io::Error::other(format!(
        "its version is {found}, this Updraft knows {VERSION}; is it an older one?"
    )))
}

fn overlaps(range: IdRange, low: u32, high: u32) -> bool {
    range.first < high && low < range.first.saturating_add(USERS)
}

/// Users that are somebody's, as half-open intervals: the machine's own, those that its
/// administrator gave to others, and those of tenants of other instances.
fn taken_by_others(options: &LocalEngineOptions) -> Vec<(u32, u32)> {
    let mut taken = Vec::new();
    for path in RANGE_FILES {
        taken.extend(
            fs::read_to_string(path).iter().flat_map(|text| text.lines()).filter_map(range_of_line),
        );
    }
    for path in ID_FILES {
        let text = fs::read_to_string(path).unwrap_or_default();
        taken.extend(text.lines().filter_map(|line| {
            let number = line.split(':').nth(2)?.parse::<u32>().ok()?;
            Some((number, number.saturating_add(1)))
        }));
    }
    let instance = options.run.parent();
    for folder in instance
        .and_then(Path::parent)
        .into_iter()
        .flat_map(|run| folder_entries(run).unwrap_or_default())
    {
        if Some(folder.as_path()) == instance {
            continue;
        }
        let Ok(state) = fs::read(folder.join("engine/state")) else { continue };
        let record = Path::new(std::ffi::OsStr::from_bytes(&state)).join("tenants.json");
        let ranges = read(&record).map(|stored| stored.ranges).unwrap_or_default();
        taken.extend(ranges.values().map(|range| (range.first, range.first.saturating_add(USERS))));
    }
    taken
}

/// A line of `/etc/subuid`: who, the first user, how many.
fn range_of_line(line: &str) -> Option<(u32, u32)> {
    let mut fields = line.split(':').skip(1);
    let first: u32 = fields.next()?.trim().parse().ok()?;
    let count: u32 = fields.next()?.trim().parse().ok()?;
    Some((first, first.saturating_add(count)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::UserRange;

    fn tenant(name: &str) -> Tenant {
        format!("owner/{name}").parse().unwrap()
    }

    fn options(data: &Path, run: &Path, instance: &str) -> LocalEngineOptions {
        let users = UserRange { first: 1_000_000, count: 5 * USERS };
        let run = run.join(format!("updraft-{instance}"));
        let options = LocalEngineOptions { users, ..LocalEngineOptions::new(instance, data, &run) };
        fs::create_dir_all(&options.state).unwrap();
        fs::create_dir_all(&options.run).unwrap();
        fs::write(options.run.join("state"), options.state.as_os_str().as_bytes()).unwrap();
        options
    }

    fn open(options: &LocalEngineOptions, known: &[&str]) -> Tenants {
        let known = known.iter().map(|name| tenant(name)).collect();
        Tenants::open(options, &known, &BTreeSet::new()).unwrap()
    }

    #[test]
    fn tenants_have_disjoint_users_and_keep_them() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = options(data.path(), run.path(), "00000002");
        let tenants = open(&options, &[]);
        let ranges: BTreeSet<_> =
            ["a", "b", "c", "d"].iter().map(|name| tenants.range(&tenant(name)).unwrap()).collect();
        assert_eq!(ranges.len(), 4);
        assert!(!ranges.contains(&trial(&options)));
        let full = tenants.range(&tenant("e")).unwrap_err();
        assert!(full.contains("all 4 ranges"), "{full}");
        let b = tenants.range(&tenant("b")).unwrap();
        assert_eq!(open(&options, &["a", "b", "c", "d"]).range(&tenant("b")).unwrap(), b);
    }

    #[test]
    fn users_of_a_tenant_that_is_gone_go_to_another_last() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = options(data.path(), run.path(), "00000000");
        let tenants = open(&options, &[]);
        let a = tenants.range(&tenant("a")).unwrap();
        let b = tenants.range(&tenant("b")).unwrap();
        let tenants = open(&options, &["b"]);
        for name in ["c", "d"] {
            let range = tenants.range(&tenant(name)).unwrap();
            assert!(range != a && range != b, "{name}");
        }
        assert_eq!(tenants.range(&tenant("e")).unwrap(), a);
        // One that runs keeps them, whatever else is known of it.
        let running = BTreeSet::from([tenant("e")]);
        let tenants = Tenants::open(&options, &BTreeSet::new(), &running).unwrap();
        assert_eq!(tenants.range(&tenant("e")).unwrap(), a);
    }

    #[test]
    fn two_instances_on_one_machine_share_no_users() {
        let run = tempfile::tempdir().unwrap();
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = options(one.path(), run.path(), "00000001");
        let a = open(&first, &[]).range(&tenant("a")).unwrap();
        let second = open(&options(other.path(), run.path(), "00000001"), &[]);
        // The same folder name would be the same instance.
        fs::rename(run.path().join("updraft-00000001"), run.path().join("updraft-00000009"))
            .unwrap();
        drop(second);
        let run_of_first = run.path().join("updraft-00000003/engine");
        fs::create_dir_all(&run_of_first).unwrap();
        let first = LocalEngineOptions { run: run_of_first, ..first };
        crate::stock::note_state_folder(&first).unwrap();
        let second = open(&options(other.path(), run.path(), "00000001"), &[]);
        for name in ["b", "c", "d"] {
            assert_ne!(second.range(&tenant(name)).unwrap(), a);
        }
        assert!(second.range(&tenant("e")).is_err());
    }

    #[test]
    fn lines_of_ranges_that_others_have_are_read() {
        assert_eq!(range_of_line("alice:100000:65536"), Some((100_000, 165_536)));
        assert_eq!(range_of_line("alice:4294967295:2"), Some((u32::MAX, u32::MAX)));
        assert_eq!(range_of_line("# nothing"), None);
        let range = IdRange { first: 131_072 };
        assert!(overlaps(range, 100_000, 165_536) && !overlaps(range, 100_000, 131_072));
        assert_eq!((range.outside(100), range.outside(USERS)), (Some(131_172), None));
    }

    /// As written by the first version; kept for ever.
    const V1: &str = r#"{ "version": 1, "ranges": { "owner/alice": 1065536, "namespace/openfaas-fn": 1131072 } }"#;

    #[test]
    fn the_record_of_the_first_version_is_read_and_one_of_a_later_version_is_not() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = options(data.path(), run.path(), "00000000");
        let path = options.state.join("tenants.json");
        fs::write(&path, V1).unwrap();
        let tenants = open(&options, &["alice"]);
        assert_eq!(tenants.range(&tenant("alice")).unwrap(), IdRange { first: 1_065_536 });
        fs::write(&path, V1.replace(": 1,", ": 2,")).unwrap();
        let error = Tenants::open(&options, &BTreeSet::new(), &BTreeSet::new()).unwrap_err();
        assert!(error.to_string().contains("version is 2"), "{error}");
    }
}
