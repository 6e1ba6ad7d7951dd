//! What follows from what a function was seen doing: rest, warmth, numbers set by hand.

use super::*;
use updraft_model::{FunctionId, annotations, labels};

struct Watched {
    entry: Entry,
    load: FunctionLoad,
    options: ScalerOptions,
    now: Instant,
    wall: Timestamp,
    current: u32,
    can_freeze: bool,
}

impl Watched {
    fn new(pairs: &[(&str, &str)]) -> Self {
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut spec = FunctionSpec::new(id, "localhost/f:1".parse().unwrap());
        for (key, value) in pairs {
            let warm = [annotations::WARM, annotations::TIMEZONE].contains(key);
            let map = if warm { &mut spec.annotations } else { &mut spec.labels };
            map.insert((*key).to_owned(), (*value).to_owned());
        }
        let load = FunctionLoad {
            spec: Arc::new(spec),
            availability: Availability::Ready,
            ready: 1,
            in_flight: 0,
            started: 0,
        };
        let (options, now) = (ScalerOptions::default(), Instant::now());
        let wall = "2026-03-06T07:00:00Z".parse().unwrap();
        let entry = Entry::new(&load, &options, now);
        Self { entry, load, options, now, wall, current: 1, can_freeze: true }
    }

    fn pass(&mut self, duration: Duration) {
        self.now += duration;
        self.wall = self.wall.checked_add(duration).unwrap();
    }

    fn look(&mut self) -> Option<Action> {
        let Self { entry, load, options, now, wall, current, can_freeze } = self;
        entry.observe(load, 0, options, *now);
        if entry.wants_status(*now) {
            entry.desired(*current, options, *now);
        }
        entry.next(options, *can_freeze, *now, *wall).map(|step| step.action)
    }

    /// The first action within a time, looked for once a second, and when.
    fn within(&mut self, limit: Duration) -> Option<(u64, Action)> {
        for second in 1..=limit.as_secs() {
            self.pass(Duration::from_secs(1));
            if let Some(action) = self.look() {
                return Some((second, action));
            }
        }
        None
    }
}

#[test]
fn an_idle_function_freezes_and_then_stops_where_its_label_says_so() {
    let mut function =
        Watched::new(&[(labels::SCALE_ZERO, "true"), (labels::SCALE_ZERO_DURATION, "2m")]);
    assert_eq!(function.within(Duration::from_mins(1)), Some((10, Action::Freeze)));
    function.load.availability = Availability::Frozen;
    assert_eq!(function.within(Duration::from_mins(3)), Some((110, Action::Stop)));
    function.load.availability = Availability::Asleep;
    assert_eq!(function.within(Duration::from_hours(1)), None);
}

#[test]
fn without_the_label_it_never_stops_and_without_the_engines_help_it_never_freezes() {
    let mut function = Watched::new(&[]);
    function.can_freeze = false;
    assert_eq!(function.within(Duration::from_hours(1)), None);
}

#[test]
fn a_call_or_a_long_one_keeps_a_function_awake() {
    let mut function =
        Watched::new(&[(labels::SCALE_ZERO, "true"), (labels::SCALE_ZERO_DURATION, "30")]);
    function.can_freeze = false;
    function.load.in_flight = 1;
    assert_eq!(function.within(Duration::from_mins(5)), None);
    function.load.in_flight = 0;
    assert_eq!(function.within(Duration::from_secs(29)), None);
    function.load.started += 1;
    assert_eq!(function.within(Duration::from_secs(40)), Some((31, Action::Stop)));
}

#[test]
fn backlog_keeps_a_function_awake() {
    let mut function =
        Watched::new(&[(labels::SCALE_ZERO, "true"), (labels::SCALE_ZERO_DURATION, "5")]);
    for _ in 0..60 {
        function.pass(Duration::from_secs(1));
        let Watched { entry, load, options, now, wall, .. } = &mut function;
        entry.observe(load, 1, options, *now);
        entry.desired(1, options, *now);
        assert_eq!(entry.next(options, true, *now, *wall), None);
    }
}

#[test]
fn a_refused_freeze_is_asked_for_again_after_a_while() {
    let mut function = Watched::new(&[]);
    assert_eq!(function.within(Duration::from_mins(1)), Some((10, Action::Freeze)));
    function.entry.refused(function.now);
    assert_eq!(function.within(Duration::from_mins(1)), Some((10, Action::Freeze)));
}

#[test]
fn a_warm_window_wakes_and_keeps_awake() {
    let mut function = Watched::new(&[
        (labels::SCALE_ZERO, "true"),
        (labels::SCALE_ZERO_DURATION, "1m"),
        (annotations::WARM, "0 8 * * * for 1h = 3"),
    ]);
    function.load.availability = Availability::Asleep;
    assert_eq!(function.within(Duration::from_hours(1)), Some((3600, Action::Scale(3))));
    (function.load.availability, function.current) = (Availability::Ready, 3);
    function.entry.scaled(3);
    assert_eq!(function.within(Duration::from_secs(3500)), None);
    let (after, action) = function.within(Duration::from_mins(5)).unwrap();
    assert!((100..200).contains(&after), "{after}");
    assert!(matches!(action, Action::Scale(1) | Action::Stop), "{action:?}");
}

#[test]
fn a_number_set_by_hand_stands_for_a_while() {
    let mut function = Watched::new(&[]);
    function.can_freeze = false;
    assert_eq!(function.within(Duration::from_mins(1)), None);
    function.current = 5;
    assert_eq!(function.within(Duration::from_secs(299)), None);
    let (_, action) = function.within(Duration::from_mins(1)).unwrap();
    assert_eq!(action, Action::Scale(1));
}

#[test]
fn a_failing_function_gets_no_more_replicas() {
    let mut function = Watched::new(&[]);
    function.load.availability = Availability::Failing("it crashes".to_owned());
    for _ in 0..60 {
        function.load.started += 100;
        function.load.in_flight = 50;
        function.pass(Duration::from_secs(1));
        assert_eq!(function.look(), None);
    }
}

#[test]
fn processor_time_never_falls_when_a_replica_goes() {
    let mut function = Watched::new(&[]);
    let mut check = |cpu_seconds, replicas, total, used| {
        let usage = Usage { cpu_seconds, memory_bytes: 1, replicas };
        function.entry.used = None;
        function.entry.used(Some(usage), function.now);
        let whole = |seconds: f64| format!("{seconds:.1}");
        let entry = &function.entry;
        assert_eq!((whole(entry.cpu_seconds), entry.used.map(whole)), (whole(total), used));
    };
    check(10.0, 2, 0.0, None);
    check(12.0, 2, 2.0, Some("2.0".to_owned()));
    check(3.0, 1, 2.0, None);
    check(4.5, 2, 3.5, None);
}
