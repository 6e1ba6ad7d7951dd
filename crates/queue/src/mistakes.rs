//! What a function's annotations about asynchronous calls and schedules get wrong, for whoever
//! deploys it. Nothing is refused for that: the defaults hold, and a wrong schedule is never due.

use std::sync::Arc;

use updraft_model::FunctionSpec;

use crate::policy::RetryPolicy;
use crate::schedule;

/// What makes no sense among the annotations of retries and schedules, each once.
pub fn mistakes(spec: &FunctionSpec) -> Vec<String> {
    let mut found = RetryPolicy::default().of(spec).1;
    for problem in schedule::problems(&Arc::new(spec.clone())) {
        if !found.contains(&problem) {
            found.push(problem);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use updraft_model::{FunctionId, annotations};

    fn of(pairs: &[(&str, &str)]) -> Vec<String> {
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut spec = FunctionSpec::new(id, "localhost/f:1".parse().unwrap());
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        spec.annotations.extend(pairs.iter().map(own));
        mistakes(&spec)
    }

    #[test]
    fn each_mistake_is_named_once_with_its_annotation() {
        let cron = (annotations::TOPIC, "cron-function");
        assert_eq!(of(&[]), Vec::<String>::new());
        assert_eq!(of(&[cron, (annotations::SCHEDULE, "*/5 * * * *")]), Vec::<String>::new());
        for (pairs, part) in [
            (&[cron][..], "`schedule` is missing"),
            (&[cron, (annotations::SCHEDULE, "every now and then")], "every now and then"),
            (&[cron, (annotations::SCHEDULE, "61 * * * *")], "61 * * * *"),
            (
                &[
                    cron,
                    (annotations::SCHEDULE, "@hourly; @daily"),
                    (annotations::TIMEZONE, "Mars/X"),
                ],
                "`timezone` names no time zone",
            ),
            (&[(annotations::RETRY_ATTEMPTS, "many")], "`com.openfaas.retry.attempts`"),
        ] {
            let found = of(pairs);
            assert!(found.len() == 1 && found[0].contains(part), "{pairs:?}: {found:?}");
        }
        // Without the topic nobody reads the schedule.
        assert_eq!(of(&[(annotations::SCHEDULE, "nonsense")]), Vec::<String>::new());
    }
}
