use super::*;

const SPLIT: &str = "\
30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
31 25 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";

#[test]
fn a_hybrid_machine_is_used_through_its_split_trees() {
    let Cgroups::Split { memory, pids, .. } = Cgroups::from_mounts(SPLIT, "b") else { panic!() };
    assert_eq!(memory, Path::new("/sys/fs/cgroup/memory"));
    assert_eq!(pids, Path::new("/sys/fs/cgroup/pids"));
}

#[test]
fn a_unified_machine_is_used_through_its_one_tree() {
    let mounts = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    let Cgroups::Unified { tree, .. } = Cgroups::from_mounts(mounts, "b") else { panic!() };
    assert_eq!(tree, Path::new("/sys/fs/cgroup"));
    assert!(matches!(Cgroups::from_mounts("", "b"), Cgroups::Missing));
}

#[test]
fn only_groups_of_builds_whose_process_is_gone_are_abandoned() {
    assert!(abandoned("updraft-build-0a1b2c3d-4294967295-0"));
    assert!(!abandoned(&format!("updraft-build-0a1b2c3d-{}-0", std::process::id())));
    for other in ["updraft-build-0a1b2c3d", "updraft-functions", "system.slice", ""] {
        assert!(!abandoned(other), "{other}");
    }
}

/// Every kernel has the one tree, with or without controllers in it.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", folder.path(), "cgroup2", flags, None).unwrap();
        Self(folder)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn in_the_one_tree_a_process_is_taken_in_with_the_processes_it_started() {
    let tree = Tree::new();
    let folder = tree.0.path().join(format!("updraft-test-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let group = Group { unified: true, folders: vec![folder.clone()] };
    group.enter().unwrap();
    let mut command = std::process::Command::new("unshare");
    let mut child = command.args(["--fork", "--kill-child", "sleep", "1000"]).spawn().unwrap();
    let start = Instant::now();
    while family(child.id()).len() < 2 {
        assert!(start.elapsed() < EMPTY_LIMIT, "the second process does not start");
        thread::yield_now();
    }
    group.adopt(child.id()).unwrap();
    let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
    assert_eq!(inside.lines().count(), 2, "{inside}");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(group);
    assert!(!folder.is_dir());
}

const WEIGHED: &str = "\
30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
31 25 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
33 25 0:29 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio\n";

#[test]
fn split_trees_for_processor_and_disk_are_used_for_weights() {
    let Cgroups::Split { weights, .. } = Cgroups::from_mounts(WEIGHED, "b") else { panic!() };
    let expected = [
        (Weight::Processor, PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")),
        (Weight::Disk, PathBuf::from("/sys/fs/cgroup/blkio")),
    ];
    assert_eq!(weights, expected);
    // A tree that limits and weighs gives each build one group, not two.
    let joined = WEIGHED.replace("rw,pids", "rw,pids,cpu").replace("rw,cpu,cpuacct", "rw,cpuacct");
    let Cgroups::Split { weights, .. } = Cgroups::from_mounts(&joined, "b") else { panic!() };
    assert_eq!(weights, [(Weight::Disk, PathBuf::from("/sys/fs/cgroup/blkio"))]);
}

#[test]
fn every_file_that_a_kernel_has_for_a_weight_gets_a_twentieth() {
    // What functions have: 1024 shares, a weight of 100, or of 500 for old block layers.
    let check = |weight: Weight, file: &str, expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(file), "default").unwrap();
        weight.set(folder.path());
        assert_eq!(fs::read_to_string(folder.path().join(file)).unwrap(), expected, "{file}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no file is made");
    };
    check(Weight::Processor, "cpu.shares", "51");
    check(Weight::Processor, "cpu.weight", "5");
    check(Weight::Disk, "io.weight", "5");
    check(Weight::Disk, "io.bfq.weight", "5");
    check(Weight::Disk, "blkio.bfq.weight", "5");
    check(Weight::Disk, "blkio.weight", "10");
}

/// A program that does nothing but compute, on one processor.
struct Spinner(std::process::Child);

impl Spinner {
    fn start(processor: &str) -> Self {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "taskset", "--cpu-list", processor]);
        Self(command.args(["sh", "-c", "while :; do :; done"]).spawn().unwrap())
    }

    /// Processor time so far, in hundredths of a second.
    fn used(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A group beside those of builds, as functions have one, with the usual weight.
struct Usual(PathBuf);

impl Drop for Usual {
    fn drop(&mut self) {
        let start = Instant::now();
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < EMPTY_LIMIT {
            thread::yield_now();
        }
    }
}

#[test]
fn a_build_gets_its_weight_of_a_processor_that_a_function_wants_too() {
    let cgroups = Cgroups::detect(&format!("updraft-build-test{}", std::process::id()));
    let tree = match &cgroups {
        Cgroups::Unified { tree, .. } => tree.clone(),
        Cgroups::Split { weights, .. } => {
            let processor = weights.iter().find(|(weight, _)| *weight == Weight::Processor);
            processor.expect("this machine can weigh processors").1.clone()
        }
        Cgroups::Missing => panic!("this machine has no control groups"),
    };
    let usual = Usual(tree.join(format!("updraft-test-{}", std::process::id())));
    fs::create_dir(&usual.0).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let processor = allowed.trim().split([',', '-']).next().unwrap();

    let function = Spinner::start(processor);
    fs::write(usual.0.join("cgroup.procs"), function.0.id().to_string()).unwrap();
    let limits = BuildLimits {
        time: Duration::from_mins(1),
        memory_bytes: 64 << 20,
        disk_bytes: 0,
        files: 0,
        processes: 20,
    };
    let group = cgroups.group(&limits).unwrap();
    let folders = group.folders.clone();
    group.enter().unwrap();
    let build = Spinner::start(processor);
    group.leave().unwrap();
    group.adopt(build.0.id()).unwrap();
    let weights = folders
        .iter()
        .flat_map(|folder| ["cpu.shares", "cpu.weight"].map(|file| folder.join(file)));
    let set: Vec<String> = weights.filter_map(|file| fs::read_to_string(file).ok()).collect();
    assert!(
        set.iter().all(|weight| ["51", "5"].contains(&weight.trim())) && !set.is_empty(),
        "{set:?}"
    );

    // Whatever else this machine does, the two share what is left by their weights.
    let (function_before, build_before) = (function.used(), build.used());
    let start = Instant::now();
    while function.used() - function_before < 200 {
        assert!(start.elapsed() < Duration::from_mins(3), "no processor time");
        thread::sleep(Duration::from_millis(50));
    }
    let (wanted, got) = (function.used() - function_before, build.used() - build_before);
    assert!(got * 5 < wanted, "a build took {got} while a function took {wanted}");
    drop(build);
    drop(group);
    drop(function);
}
