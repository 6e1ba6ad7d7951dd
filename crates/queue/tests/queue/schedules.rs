//! Functions that are called by the clock, on a real clock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use tokio::sync::Semaphore;
use updraft_model::annotations;
use updraft_queue::{CallState, ScheduleParts, ScheduleView, Schedules};

use crate::house::{House, Server, bounded, find, id, spec};

const EVERY_SECOND: &[(&str, &str)] =
    &[(annotations::TOPIC, "cron-function"), (annotations::SCHEDULE, "@every 1s")];

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [EVERY_SECOND, more].concat()
}

fn start(house: &House) -> Arc<Schedules> {
    Schedules::start(ScheduleParts {
        queue: Arc::clone(&house.queue),
        invoker: Arc::clone(&house.invoker),
        record: house.path("schedules.json"),
    })
    .unwrap()
}

/// The schedules, once what is looked for is there.
async fn shown(
    schedules: &Schedules,
    what: &str,
    right: impl Fn(&[ScheduleView]) -> bool,
) -> Vec<ScheduleView> {
    find(what, async || {
        let list = schedules.list(None).await.unwrap();
        right(&list).then_some(list)
    })
    .await
}

#[tokio::test]
async fn a_function_is_called_when_it_says_with_what_it_says() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    let spec = spec(
        "f",
        &with(&[
            (annotations::SCHEDULE_PATH, "/daily%2Freport?full=1"),
            (annotations::SCHEDULE_BODY, r#"{"kind":"report"}"#),
            (annotations::TIMEZONE, "Europe/Berlin"),
        ]),
    );
    house.put(spec, server.endpoint()).await;
    let schedules = start(&house);
    let asked = server.is_asked(3).await;
    let first = &asked[0];
    assert_eq!((first.method.as_str(), first.target.as_str()), ("POST", "/daily%2Freport?full=1"));
    assert_eq!(&first.body[..], br#"{"kind":"report"}"#);
    assert_eq!(first.header("content-type"), "application/json");
    assert_eq!(first.header("x-topic"), "cron-function");
    assert_eq!(first.header("x-connector"), "cron-connector");
    assert_eq!(first.header("x-schedule"), "@every 1s");
    let due = |asked: &crate::house::Asked| -> jiff::Timestamp {
        asked.header("x-schedule-due").parse().unwrap()
    };
    let seconds: Vec<_> = asked.iter().map(|asked| due(asked).as_second()).collect();
    assert!(seconds.windows(2).all(|pair| pair[0] < pair[1]), "{seconds:?}");
    let ids: BTreeSet<_> = asked.iter().map(|asked| asked.header("x-call-id")).collect();
    assert_eq!(ids.len(), asked.len());

    let list = shown(&schedules, "three runs that are done", |list| {
        let done = |run: &&updraft_queue::ScheduledRun| run.state == Some(CallState::Done);
        list.len() == 1 && list[0].runs.iter().filter(done).count() >= 3
    })
    .await;
    let view = &list[0];
    assert_eq!((view.schedule.as_str(), view.timezone.as_str()), ("@every 1s", "Europe/Berlin"));
    assert!(view.next.unwrap() > view.runs[0].due && view.problem.is_none());
    let done = view.runs.iter().find(|run| run.state == Some(CallState::Done)).unwrap();
    assert_eq!((done.status, &done.skipped), (Some(200), &None));
    bounded("the end", schedules.shutdown()).await;
}

#[tokio::test]
async fn a_wrong_schedule_is_told_and_stops_no_other() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    let mixed = [
        (annotations::TOPIC, "orders, cron-function"),
        (annotations::SCHEDULE, "@every 1s; whenever"),
    ];
    house.put(spec("f", &mixed), server.endpoint()).await;
    house.put(spec("g", &with(&[(annotations::TIMEZONE, "Mars/Crater")])), vec![]).await;
    house.put(spec("h", &[(annotations::TOPIC, "orders")]), vec![]).await;
    let schedules = start(&house);
    server.is_asked(1).await;
    let list = schedules.list(None).await.unwrap();
    let problems: Vec<_> =
        list.iter().map(|view| (view.schedule.as_str(), view.problem.is_some())).collect();
    assert_eq!(problems, [("@every 1s", false), ("whenever", true), ("@every 1s", true)]);
    assert!(list[2].next.is_none());
}

#[tokio::test]
async fn a_run_waits_for_nobody_and_is_skipped_while_the_one_before_goes_on() {
    let house = House::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let server = Server::start({
        let gate = Arc::clone(&gate);
        move |_, _| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Response::new(Full::from("late"))
            }
        }
    })
    .await;
    house.put(spec("f", EVERY_SECOND), server.endpoint()).await;
    let free = Server::statuses(&[200]).await;
    let overlapping = with(&[(annotations::SCHEDULE_OVERLAP, "allow")]);
    house.put(spec("g", &overlapping), server.endpoint()).await;
    house.put(spec("h", EVERY_SECOND), free.endpoint()).await;
    let schedules = start(&house);
    let list = shown(&schedules, "a skipped run and two at once", |list| {
        let skipped = list.iter().any(|view| view.runs.iter().any(|run| run.skipped.is_some()));
        let running = |run: &&updraft_queue::ScheduledRun| run.state == Some(CallState::Running);
        let at_once = list.iter().any(|view| view.runs.iter().filter(running).count() >= 2);
        skipped && at_once
    })
    .await;
    for view in &list {
        let skipped = view.runs.iter().filter(|run| run.skipped.is_some()).count();
        assert_eq!(skipped > 0, view.function == id("f"), "{view:?}");
    }
    let skipped = list[0].runs.iter().find_map(|run| run.skipped.clone()).unwrap();
    assert!(skipped.contains("running"), "{skipped}");
    // Once the run has ended, the next one begins.
    let before = house.count(CallState::Done).await;
    gate.add_permits(1000);
    find("more runs", async || (house.count(CallState::Done).await > before + 3).then_some(()))
        .await;
}

#[tokio::test]
async fn a_time_makes_one_call_although_its_record_is_lost_in_a_crash() {
    let mut house = House::new().await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", EVERY_SECOND), server.endpoint()).await;
    let record = house.path("schedules.json");
    let mut old = None;
    for round in 0..4 {
        let schedules = start(&house);
        server.is_asked((round + 1) * 2).await;
        schedules.shutdown().await;
        house.restart().await;
        // As if the process had ended after the calls were kept, before that was noted.
        if let Some(old) = old.replace(std::fs::read(&record).unwrap()) {
            std::fs::write(&record, old).unwrap();
        }
    }
    let asked = server.asked();
    let ids: BTreeSet<_> = asked.iter().map(|asked| asked.header("x-call-id")).collect();
    let dues: BTreeSet<_> = asked.iter().map(|asked| asked.header("x-schedule-due")).collect();
    assert_eq!((ids.len(), dues.len()), (asked.len(), asked.len()));
}

#[tokio::test]
async fn what_was_missed_is_made_up_for_once_where_that_is_wanted() {
    let house = House::new().await;
    let (skips, makes_up) = (Server::statuses(&[200]).await, Server::statuses(&[200]).await);
    // Due on the last day of February at noon: long ago, whenever this runs.
    let yearly = |missed| {
        [
            (annotations::TOPIC, "cron-function"),
            (annotations::SCHEDULE, "0 12 L 2 *"),
            (annotations::SCHEDULE_MISSED, missed),
        ]
    };
    house.put(spec("f", &yearly("skip")), skips.endpoint()).await;
    house.put(spec("g", &yearly("once")), makes_up.endpoint()).await;
    // A run some years ago is on record, as an Updraft that was away since then left it.
    let first = start(&house);
    let list = shown(&first, "both schedules", |list| list.len() == 2).await;
    assert!(list.iter().all(|view| view.runs.is_empty()), "new ones missed nothing");
    first.shutdown().await;
    house.put(spec("h", EVERY_SECOND), Server::statuses(&[200]).await.endpoint()).await;
    let second = start(&house);
    let path = house.path("schedules.json");
    find("a record", async || path.exists().then_some(())).await;
    second.shutdown().await;
    let mut record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for past in record["schedules"].as_object_mut().unwrap().values_mut() {
        past["since"] = "2020-01-01T00:00:00Z".into();
    }
    std::fs::write(&path, record.to_string()).unwrap();

    let schedules = start(&house);
    makes_up.is_asked(1).await;
    let list = shown(&schedules, "both to be dealt with", |list| {
        list.iter().all(|view| !view.runs.is_empty())
    })
    .await;
    let run = |function: &str| list.iter().find(|view| view.function == id(function)).unwrap();
    assert!(run("f").runs[0].skipped.as_ref().unwrap().contains("missed"));
    assert!(run("g").runs[0].call.is_some());
    assert_eq!((run("g").runs.len(), run("f").runs.len()), (1, 1));
    assert_eq!((makes_up.asked().len(), skips.asked().len()), (1, 0));
}

#[tokio::test]
async fn a_function_that_is_changed_or_removed_is_called_as_it_says_now() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", EVERY_SECOND), server.endpoint()).await;
    let schedules = start(&house);
    server.is_asked(1).await;
    let daily = [(annotations::TOPIC, "cron-function"), (annotations::SCHEDULE, "@yearly")];
    house.put(spec("f", &daily), server.endpoint()).await;
    let list = shown(&schedules, "the new schedule alone", |list| {
        list.len() == 1 && list[0].schedule == "@yearly"
    })
    .await;
    assert!(list[0].runs.is_empty());
    let asked = server.asked().len();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(server.asked().len() <= asked + 1, "it is not called by its old schedule");
    house.take_away(&id("f")).await;
    shown(&schedules, "nothing", <[ScheduleView]>::is_empty).await;
}
