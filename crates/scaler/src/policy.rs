//! What a function's labels ask of its scaling, read leniently: a value that makes no sense is
//! left out with a warning, never a reason not to run.

use std::fmt;
use std::time::Duration;

use updraft_model::{FunctionSpec, annotations, format_duration, labels, parse_duration};

use crate::options::ScalerOptions;
use crate::warm::WarmWindow;

/// Share of the target at which to scale, where no label says so.
const PROPORTION: f64 = 0.9;

/// Step of an alert in percent of the maximum, where no label says so.
const FACTOR: u32 = 20;

/// Longest `com.openfaas.scale.down.window`.
const DOWN_WINDOW_LIMIT: Duration = Duration::from_mins(5);

/// What load is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Calls that begin in a second.
    Calls,
    /// Calls under way.
    InFlight,
    /// Thousandths of a processor.
    Cpu,
    /// Asynchronous calls that wait or run.
    Backlog,
}

impl Measure {
    /// The value of the type label, and of the label `scaling_type` of metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Calls => "rps",
            Self::InFlight => "capacity",
            Self::Cpu => "cpu",
            Self::Backlog => "queue",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Calls, Self::InFlight, Self::Cpu, Self::Backlog]
            .into_iter()
            .find(|measure| measure.name() == text)
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A load that one replica should carry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Target {
    pub(crate) measure: Measure,
    pub(crate) load: f64,
    /// Share of the load at which to scale.
    pub(crate) proportion: f64,
    /// Most replicas that this target alone asks for.
    pub(crate) most: u32,
}

impl Target {
    /// What one replica carries before another is wanted.
    pub(crate) fn capacity(&self) -> f64 {
        self.load * self.proportion
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.most < u32::MAX {
            return write!(f, "above {} it has {}", self.load, self.most);
        }
        write!(f, "target {} x {}", self.load, self.proportion)
    }
}

/// How one function is scaled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Policy {
    /// Fewest replicas while awake.
    pub(crate) min: u32,
    /// Most replicas; never below `min`.
    pub(crate) max: u32,
    /// Step of an alert, in percent of `max`; with 0, no alert adds a replica.
    pub(crate) factor: u32,
    /// Each asks for a number of replicas, and the highest counts.
    pub(crate) targets: Vec<Target>,
    /// Time without a call after which it stops; nothing for never.
    pub(crate) zero_after: Option<Duration>,
    /// How long a lower need must last before replicas go.
    pub(crate) down_window: Duration,
    /// When it is kept warm.
    pub(crate) warm: Vec<WarmWindow>,
}

impl Policy {
    /// Whether the function has one size, whatever its load.
    pub(crate) fn is_fixed(&self) -> bool {
        self.min == self.max
    }

    pub(crate) fn measures(&self, measure: Measure) -> bool {
        self.targets.iter().any(|target| target.measure == measure)
    }

    /// Reads the labels; the second half says which of them make no sense, and what holds instead.
    pub(crate) fn of(spec: &FunctionSpec, options: &ScalerOptions) -> (Self, Vec<String>) {
        let mut reader = Reader { spec, warnings: Vec::new() };
        let min = reader.number(labels::SCALE_MIN, 1, 0..=u32::MAX).max(1);
        let mut max = reader.number(labels::SCALE_MAX, options.max.max(min), 1..=u32::MAX);
        if max < min {
            reader.warn(labels::SCALE_MAX, &max.to_string(), &format!("it is the minimum, {min}"));
            max = min;
        }
        let factor = reader.number(labels::SCALE_FACTOR, FACTOR, 0..=100);
        let zero = reader.switch(labels::SCALE_ZERO).unwrap_or(options.scale_to_zero && min != max);
        let zero_after = reader.duration(labels::SCALE_ZERO_DURATION, options.zero_after);
        let window = reader.duration(labels::SCALE_DOWN_WINDOW, options.down_window);
        let down_window = window.min(DOWN_WINDOW_LIMIT);
        if down_window < window {
            let limit = format_duration(DOWN_WINDOW_LIMIT);
            let given = format_duration(window);
            reader.warn(labels::SCALE_DOWN_WINDOW, &given, &format!("it is the longest, {limit}"));
        }
        let targets = if options.follow_load { reader.targets(options) } else { Vec::new() };
        let warm = reader.warm();
        let zero_after = zero.then_some(zero_after);
        let policy = Self { min, max, factor, targets, zero_after, down_window, warm };
        (policy, reader.warnings)
    }
}

/// What makes no sense among the labels and annotations that scaling reads, and what holds instead;
/// for whoever deploys the function.
pub fn mistakes(spec: &FunctionSpec, options: &ScalerOptions) -> Vec<String> {
    Policy::of(spec, options).1
}

/// Reads labels and remembers what was wrong with them.
struct Reader<'a> {
    spec: &'a FunctionSpec,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    /// The label's text; an empty label is no label.
    fn text(&self, key: &str) -> Option<&'a str> {
        self.spec.labels.get(key).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    fn warn(&mut self, key: &str, text: &str, instead: &str) {
        let text: String = text.chars().take(64).collect();
        self.warnings.push(format!("`{key}` cannot be `{text}`; {instead}"));
    }

    fn number(&mut self, key: &str, usual: u32, range: std::ops::RangeInclusive<u32>) -> u32 {
        let Some(text) = self.text(key) else { return usual };
        match text.parse::<u32>() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                self.warn(key, text, &format!("it is {usual}"));
                usual
            }
        }
    }

    fn decimal(&mut self, key: &str, usual: f64, most: f64) -> f64 {
        let Some(text) = self.text(key) else { return usual };
        match text.parse::<f64>() {
            Ok(number) if number > 0.0 && number <= most => number,
            _ => {
                self.warn(key, text, &format!("it is {usual}"));
                usual
            }
        }
    }

    fn duration(&mut self, key: &str, usual: Duration) -> Duration {
        let Some(text) = self.text(key) else { return usual };
        parse_duration(text).unwrap_or_else(|_| {
            self.warn(key, text, &format!("it is {}", format_duration(usual)));
            usual
        })
    }

    fn switch(&mut self, key: &str) -> Option<bool> {
        let text = self.text(key)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => {
                self.warn(key, text, "write `true` or `false`");
                None
            }
        }
    }

    fn targets(&mut self, options: &ScalerOptions) -> Vec<Target> {
        let kind = self.text(labels::SCALE_TYPE);
        let measure = kind.map(|text| (text, Measure::parse(text)));
        if let Some((text, None)) = measure {
            self.warn(
                labels::SCALE_TYPE,
                text,
                "write `rps`, `capacity`, `cpu` or `queue`; it scales as if it had no type",
            );
        }
        let named = measure.and_then(|(_, measure)| measure);
        if named.is_none() && self.text(labels::SCALE_TARGET).is_none() {
            let usual =
                |measure, load, proportion, most| Target { measure, load, proportion, most };
            return vec![
                usual(Measure::Calls, options.calls, 1.0, 2),
                usual(Measure::InFlight, options.in_flight, PROPORTION, u32::MAX),
            ];
        }
        vec![Target {
            measure: named.unwrap_or(Measure::Calls),
            load: self.decimal(labels::SCALE_TARGET, options.target, f64::MAX),
            proportion: self.decimal(labels::SCALE_TARGET_PROPORTION, PROPORTION, 1.0),
            most: u32::MAX,
        }]
    }

    fn warm(&mut self) -> Vec<WarmWindow> {
        let Some(text) = self.spec.annotations.get(annotations::WARM) else { return Vec::new() };
        let zone = self.spec.annotations.get(annotations::TIMEZONE).map(String::as_str);
        let (windows, warnings) = WarmWindow::parse_all(text, zone);
        self.warnings.extend(warnings);
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use updraft_model::FunctionId;

    fn spec(pairs: &[(&str, &str)]) -> FunctionSpec {
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut spec = FunctionSpec::new(id, "localhost/f:1".parse().unwrap());
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        spec.labels.extend(pairs.iter().map(own));
        spec
    }

    fn policy(pairs: &[(&str, &str)]) -> (Policy, Vec<String>) {
        Policy::of(&spec(pairs), &ScalerOptions::default())
    }

    #[test]
    fn a_function_without_labels_has_the_usual_policy() {
        let (policy, warnings) = policy(&[]);
        assert_eq!((policy.min, policy.max, policy.factor), (1, 20, 20));
        assert_eq!(policy.zero_after, None);
        assert_eq!(policy.targets.len(), 2);
        assert!(warnings.is_empty() && !policy.is_fixed());
    }

    #[test]
    fn every_label_of_openfaas_is_read() {
        let (policy, warnings) = policy(&[
            (labels::SCALE_MIN, "2"),
            (labels::SCALE_MAX, "10"),
            (labels::SCALE_FACTOR, "50"),
            (labels::SCALE_ZERO, "true"),
            (labels::SCALE_ZERO_DURATION, "5m"),
            (labels::SCALE_TYPE, "cpu"),
            (labels::SCALE_TARGET, "500"),
            (labels::SCALE_TARGET_PROPORTION, "0.7"),
            (labels::SCALE_DOWN_WINDOW, "1m30s"),
        ]);
        assert_eq!(warnings, Vec::<String>::new());
        let target = Target { measure: Measure::Cpu, load: 500.0, proportion: 0.7, most: u32::MAX };
        let expected = Policy {
            min: 2,
            max: 10,
            factor: 50,
            targets: vec![target],
            zero_after: Some(Duration::from_mins(5)),
            down_window: Duration::from_secs(90),
            warm: Vec::new(),
        };
        assert_eq!(policy, expected);
    }

    #[test]
    fn what_makes_no_sense_falls_back_with_a_warning() {
        let check = |key: &str, value: &str| {
            let (read, warnings) = policy(&[(key, value)]);
            assert_eq!(warnings.len(), 1, "{key}={value}: {warnings:?}");
            assert!(warnings[0].contains(key), "{warnings:?}");
            (read, warnings)
        };
        for value in ["many", "-1", "1.5", "99999999999"] {
            assert_eq!(check(labels::SCALE_MIN, value).0.min, 1);
            assert_eq!(check(labels::SCALE_MAX, value).0.max, 20);
            assert_eq!(check(labels::SCALE_FACTOR, value).0.factor, 20);
        }
        assert_eq!(check(labels::SCALE_MAX, "0").0.max, 20);
        assert_eq!(check(labels::SCALE_FACTOR, "101").0.factor, 20);
        assert_eq!(check(labels::SCALE_ZERO, "maybe").0.zero_after, None);
        assert_eq!(check(labels::SCALE_TYPE, "happiness").0.targets.len(), 2);
        for value in ["0", "-3", "NaN", "inf", "ten"] {
            let (read, _) = check(labels::SCALE_TARGET, value);
            assert_eq!((read.targets.len(), read.targets[0].load), (1, 50.0));
        }
        let window = check(labels::SCALE_DOWN_WINDOW, "1h").0.down_window;
        assert_eq!(window, Duration::from_mins(5));
    }

    #[test]
    fn a_maximum_below_the_minimum_is_the_minimum() {
        let (policy, warnings) = policy(&[(labels::SCALE_MIN, "3"), (labels::SCALE_MAX, "2")]);
        assert_eq!((policy.min, policy.max, warnings.len()), (3, 3, 1));
        assert!(policy.is_fixed());
        // A large minimum alone is no mistake.
        let (policy, warnings) = super::tests::policy(&[(labels::SCALE_MIN, "30")]);
        assert_eq!((policy.min, policy.max, warnings.len()), (30, 30, 0));
    }

    #[test]
    fn a_type_without_a_target_has_the_target_of_openfaas() {
        let (read, _) = policy(&[(labels::SCALE_TYPE, "capacity")]);
        assert_eq!((read.targets[0].measure, read.targets[0].load), (Measure::InFlight, 50.0));
        let (read, _) = policy(&[(labels::SCALE_TARGET, "10")]);
        assert_eq!((read.targets[0].measure, read.targets[0].load), (Measure::Calls, 10.0));
    }

    #[test]
    fn stopping_by_default_leaves_functions_of_one_size_alone() {
        let options = ScalerOptions { scale_to_zero: true, ..ScalerOptions::default() };
        let zero = |pairs: &[(&str, &str)]| Policy::of(&spec(pairs), &options).0.zero_after;
        assert!(zero(&[]).is_some());
        assert!(zero(&[(labels::SCALE_ZERO, "false")]).is_none());
        let one_size = [(labels::SCALE_MIN, "2"), (labels::SCALE_MAX, "2")];
        assert!(zero(&one_size).is_none());
        let asked = [(labels::SCALE_MAX, "1"), (labels::SCALE_ZERO, "true")];
        assert!(zero(&asked).is_some());
    }

    proptest! {
        #[test]
        fn no_label_makes_a_policy_that_cannot_be_kept(
            values in proptest::collection::vec(".{0,12}", 9),
            numbers in proptest::collection::vec(0..2_000_u32, 3),
        ) {
            let keys = [
                labels::SCALE_MIN, labels::SCALE_MAX, labels::SCALE_FACTOR, labels::SCALE_ZERO,
                labels::SCALE_ZERO_DURATION, labels::SCALE_TYPE, labels::SCALE_TARGET,
                labels::SCALE_TARGET_PROPORTION, labels::SCALE_DOWN_WINDOW,
            ];
            let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            let mut pairs: Vec<_> =
                keys.iter().copied().zip(values.iter().map(String::as_str)).collect();
            pairs.extend(keys.iter().copied().zip(numbers.iter().map(String::as_str)));
            let (policy, _) = super::tests::policy(&pairs);
            prop_assert!(policy.min >= 1 && policy.min <= policy.max && policy.factor <= 100);
            prop_assert!(policy.targets.iter().all(|target| target.capacity() > 0.0));
            prop_assert!(policy.down_window <= DOWN_WINDOW_LIMIT);
        }
    }
}
