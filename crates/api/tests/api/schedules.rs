//! Schedules: who sees which.

use std::time::Duration;

use updraft_engine::{Engine, Wake};
use updraft_model::{FunctionId, FunctionSpec, annotations, labels};

use crate::harness::{Host, name, owner, refused};

async fn scheduled(host: &Host, function: &str, of: Option<&str>, schedule: &str) {
    let id = FunctionId::in_default(name(function));
    let mut spec = FunctionSpec::new(id, "localhost/x:1".parse().unwrap());
    for (key, value) in [(annotations::TOPIC, "cron-function"), (annotations::SCHEDULE, schedule)] {
        spec.annotations.insert(key.to_owned(), value.to_owned());
    }
    if let Some(of) = of {
        spec.labels.insert(labels::GIT_OWNER.to_owned(), of.to_owned());
    }
    host.engine.apply(spec, Wake::Keep).await.unwrap();
}

#[tokio::test]
async fn owners_see_their_own_schedules_alone_and_what_is_wrong_with_them() {
    let host = Host::start().await;
    scheduled(&host, "alice-report", Some("alice"), "@daily; now and then").await;
    scheduled(&host, "bob-report", Some("bob"), "@hourly").await;
    scheduled(&host, "figlet", None, "@hourly").await;
    let begin = std::time::Instant::now();
    let all = loop {
        let all = host.admin().schedules(None).await.unwrap();
        if all.len() == 4 {
            break all;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{all:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(all.iter().all(|schedule| schedule.runs.is_empty() && schedule.timezone == "UTC"));

    let seen = host.alice().schedules(None).await.unwrap();
    let texts: Vec<_> = seen.iter().map(|schedule| schedule.schedule.as_str()).collect();
    assert_eq!(texts, ["@daily", "now and then"]);
    assert!(seen[0].next.is_some() && seen[0].problem.is_none());
    assert!(seen[1].next.is_none() && seen[1].problem.is_some());
    assert_eq!(seen[0].function, "alice-report.openfaas-fn");
    refused(host.alice().schedules(Some(&owner("bob"))).await, 403, "may not act");
    let bobs = host.admin().schedules(Some(&owner("bob"))).await.unwrap();
    assert_eq!(bobs.len(), 1);
}
