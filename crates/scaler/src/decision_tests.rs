//! What is decided under steady, noisy and changing load.

use super::*;
use crate::options::ScalerOptions;
use crate::samples::Interval;
use proptest::prelude::*;
use updraft_model::{FunctionId, FunctionSpec, labels};

const SECOND: Duration = Duration::from_secs(1);

/// A function under a load that a test makes up, looked at once a second.
struct Simulated {
    policy: Policy,
    samples: Samples,
    history: History,
    now: Instant,
    begin: Instant,
    replicas: u32,
    warm: Option<u32>,
    /// Every change: the second, and the number after it.
    changes: Vec<(u64, u32)>,
    last: Option<Decision>,
}

impl Simulated {
    fn new(pairs: &[(&str, &str)]) -> Self {
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut spec = FunctionSpec::new(id, "localhost/f:1".parse().unwrap());
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        spec.labels.extend(pairs.iter().map(own));
        let (policy, warnings) = Policy::of(&spec, &ScalerOptions::default());
        assert_eq!(warnings, Vec::<String>::new());
        let begin = Instant::now();
        Self {
            replicas: policy.min,
            policy,
            samples: Samples::default(),
            history: History::default(),
            now: begin,
            begin,
            warm: None,
            changes: Vec::new(),
            last: None,
        }
    }

    /// One second with so many calls begun and under way.
    fn second(&mut self, calls: u64, in_flight: u64) -> u32 {
        self.interval(calls, in_flight, None)
    }

    fn interval(&mut self, calls: u64, in_flight: u64, cpu_seconds: Option<f64>) -> u32 {
        self.now += SECOND;
        let (end, backlog) = (self.now, in_flight);
        self.samples.push(Interval { end, took: SECOND, calls, in_flight, cpu_seconds, backlog });
        let Self { policy, warm, replicas, samples, now, history, .. } = self;
        let decision = decide(policy, *warm, *replicas, samples, *now, history);
        if decision.replicas != self.replicas {
            self.replicas = decision.replicas;
            self.changes.push((self.now.duration_since(self.begin).as_secs(), self.replicas));
            self.last = Some(decision);
        }
        self.replicas
    }

    fn run(&mut self, seconds: u64, calls: u64) {
        for _ in 0..seconds {
            self.second(calls, 0);
        }
    }

    /// How often growing turned into shrinking or the other way round.
    fn turns(&self) -> usize {
        let mut numbers = vec![self.policy.min];
        numbers.extend(self.changes.iter().map(|(_, replicas)| *replicas));
        let up: Vec<bool> = numbers.windows(2).map(|pair| pair[1] > pair[0]).collect();
        up.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}

/// Numbers from a seed, the same each time.
struct Noise(u64);

impl Noise {
    fn unit(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// How many calls come by chance in a second when `mean` come on average.
    fn poisson(&mut self, mean: f64) -> u64 {
        let limit = (-mean).exp();
        let (mut count, mut product) = (0, self.unit());
        while product > limit {
            count += 1;
            product *= self.unit();
        }
        count
    }
}

#[test]
fn ten_calls_a_second_get_two_replicas_and_none_give_one_back_each_within_a_minute() {
    let mut function = Simulated::new(&[(labels::SCALE_MAX, "2")]);
    function.run(40, 0);
    function.run(60, 10);
    assert_eq!(function.changes.len(), 1, "{:?}", function.changes);
    assert!(function.changes[0].0 <= 50, "{:?}", function.changes);
    function.run(60, 0);
    assert_eq!(function.replicas, 1);
    assert!(function.changes[1].0 <= 100 + 50, "{:?}", function.changes);
}

#[test]
fn the_formula_is_that_of_openfaas() {
    let mut function = Simulated::new(&[
        (labels::SCALE_TYPE, "rps"),
        (labels::SCALE_TARGET, "10"),
        (labels::SCALE_MAX, "50"),
    ]);
    function.run(90, 27);
    assert_eq!(function.replicas, 3);
    assert_eq!(function.last.unwrap().reason.to_string(), "rps 27.0, target 10 x 0.9");
    function.run(60, 270);
    assert_eq!(function.replicas, 30);
    function.run(60, 10_000);
    assert_eq!(function.replicas, 50);
}

#[test]
fn calls_under_way_processor_time_and_backlog_scale_too() {
    let check = |kind: &str, target: &str, drive: fn(&mut Simulated) -> u32| {
        let mut function =
            Simulated::new(&[(labels::SCALE_TYPE, kind), (labels::SCALE_TARGET, target)]);
        for _ in 0..60 {
            drive(&mut function);
        }
        assert_eq!(function.replicas, 4, "{kind}");
    };
    check("capacity", "10", |function| function.second(0, 36));
    check("cpu", "500", |function| function.interval(1, 1, Some(1.8)));
    check("queue", "100", |function| function.second(0, 360));
}

#[test]
fn without_a_target_a_function_grows_by_the_calls_under_way() {
    let mut function = Simulated::new(&[]);
    for _ in 0..60 {
        function.second(2, 5);
    }
    assert_eq!(function.replicas, 1);
    // Many quick calls are worth a second replica, not twenty.
    function.run(60, 3_000);
    assert_eq!(function.replicas, 2);
    let reason = function.last.unwrap().reason.to_string();
    assert!(reason.starts_with("rps ") && reason.ends_with(", above 5 it has 2"), "{reason}");
    for _ in 0..60 {
        function.second(100, 80);
    }
    assert_eq!(function.replicas, 9);
}

#[test]
fn one_size_is_never_touched() {
    let mut function = Simulated::new(&[(labels::SCALE_MIN, "2"), (labels::SCALE_MAX, "2")]);
    function.run(120, 10_000);
    function.run(120, 0);
    assert_eq!(function.changes, []);
}

#[test]
fn a_volley_to_a_sleeping_function_starts_no_second_replica() {
    let mut function = Simulated::new(&[]);
    function.second(1_500, 1_400);
    function.second(500, 300);
    function.run(120, 0);
    assert_eq!(function.changes, []);
}

#[test]
fn a_sudden_rise_is_answered_within_seconds() {
    let mut function = Simulated::new(&[(labels::SCALE_TARGET, "10")]);
    function.run(60, 5);
    function.run(6, 150);
    assert!(function.replicas >= 10, "{:?}", function.changes);
}

#[test]
fn nothing_is_taken_away_before_the_load_was_watched_for_a_while() {
    let mut function = Simulated::new(&[]);
    function.replicas = 8;
    function.run(29, 0);
    assert_eq!(function.replicas, 8);
    function.run(30, 0);
    assert_eq!(function.replicas, 1);
}

#[test]
fn the_down_window_label_holds_the_highest_number_within_it() {
    let mut function =
        Simulated::new(&[(labels::SCALE_TARGET, "10"), (labels::SCALE_DOWN_WINDOW, "3m")]);
    function.run(60, 45);
    assert_eq!(function.replicas, 5);
    function.run(180, 0);
    assert_eq!(function.replicas, 5);
    function.run(60, 0);
    assert_eq!(function.replicas, 1);
}

#[test]
fn a_warm_window_raises_the_minimum_and_what_is_set_by_hand_stays_a_while() {
    let mut function = Simulated::new(&[(labels::SCALE_MAX, "4")]);
    function.warm = Some(3);
    function.run(2, 0);
    assert_eq!((function.replicas, function.last.unwrap().reason), (3, Reason::Warm));
    function.run(120, 0);
    assert_eq!(function.replicas, 3);
    // Never above the maximum.
    function.warm = Some(9);
    function.run(2, 0);
    assert_eq!(function.replicas, 4);
    function.warm = None;
    function.history.held = Some((function.now + SECOND * 100, 3));
    function.run(90, 0);
    assert_eq!(function.replicas, 3);
    function.run(60, 0);
    assert_eq!(function.replicas, 1);
}

#[test]
fn numbers_outside_the_labels_are_brought_inside_at_once() {
    let mut function = Simulated::new(&[(labels::SCALE_MIN, "2"), (labels::SCALE_MAX, "4")]);
    function.replicas = 1;
    function.run(1, 0);
    assert_eq!((function.replicas, function.last.unwrap().reason), (2, Reason::Bounds));
    function.replicas = 9;
    function.run(1, 0);
    assert_eq!((function.replicas, function.last.unwrap().reason), (4, Reason::Bounds));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_load_that_only_wavers_by_chance_makes_nothing_flap(
        mean in 0.2..60.0_f64,
        target in 1..20_u32,
        seed in 1..u64::MAX,
    ) {
        let mut function = Simulated::new(&[
            (labels::SCALE_TARGET, &target.to_string()),
            (labels::SCALE_MAX, "200"),
        ]);
        let mut noise = Noise(seed);
        for _ in 0..1_800 {
            let calls = noise.poisson(mean);
            function.second(calls, 0);
        }
        // Half an hour.
        prop_assert!(function.turns() <= 6, "{:?}", function.changes);
        let enough = (mean * 0.8 / (f64::from(target) * 0.9)).floor();
        prop_assert!(f64::from(function.replicas) >= enough.clamp(1.0, 200.0));
    }

    #[test]
    fn calls_that_stay_a_while_make_nothing_flap_either(
        mean in 0.5..40.0_f64,
        target in 1..20_u32,
        stay in 1..8_usize,
        seed in 1..u64::MAX,
    ) {
        let mut function = Simulated::new(&[
            (labels::SCALE_TYPE, "capacity"),
            (labels::SCALE_TARGET, &target.to_string()),
            (labels::SCALE_MAX, "200"),
        ]);
        let mut noise = Noise(seed);
        let mut recent = vec![0; stay];
        for second in 0..1_800 {
            let calls = noise.poisson(mean / stay as f64);
            recent[second % stay] = calls;
            function.second(calls, recent.iter().sum());
        }
        prop_assert!(function.turns() <= 8, "{:?}", function.changes);
    }

    #[test]
    fn whatever_comes_the_bounds_hold(
        loads in proptest::collection::vec((0..100_000_u64, 0..100_000_u64), 1..200),
        min in 1..5_u32,
        more in 1..30_u32,
        begin in 1..60_u32,
        warm in proptest::option::of(0..100_u32),
    ) {
        let max = min + more;
        let mut function = Simulated::new(&[
            (labels::SCALE_MIN, &min.to_string()),
            (labels::SCALE_MAX, &max.to_string()),
        ]);
        function.replicas = begin;
        function.warm = warm;
        for (calls, in_flight) in loads {
            let replicas = function.second(calls, in_flight);
            prop_assert!((min..=max).contains(&replicas));
        }
    }
}
