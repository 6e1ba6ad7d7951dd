//! Claims about the output of replicas.

use std::sync::Arc;

use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::time::timeout;
use updraft_model::FunctionId;

use super::{Harness, Judge, PATIENCE, with_environment};
use crate::{EngineError, LogLine, LogQuery};

fn query(id: &FunctionId) -> LogQuery {
    LogQuery { id: id.clone(), instance: None, since: None, tail: None, follow: false }
}

/// All lines of a stream that ends by itself.
async fn lines<H: Harness>(judge: &Judge<H>, query: LogQuery) -> Vec<LogLine> {
    let stream = judge.engine().logs(query).await.unwrap();
    let lines = timeout(PATIENCE, stream.collect::<Vec<_>>()).await.expect("the stream ends");
    lines.into_iter().map(|line| line.unwrap()).collect()
}

async fn texts<H: Harness>(judge: &Judge<H>, query: LogQuery) -> Vec<String> {
    lines(judge, query).await.into_iter().map(|line| line.text).collect()
}

/// Waits until a printed line can be read.
async fn until_printed<H: Harness>(judge: &Judge<H>, id: &FunctionId, text: &str) {
    judge
        .until("the line is in the logs", || async {
            texts(judge, query(id)).await.iter().any(|line| line == text)
        })
        .await;
}

/// What a replica wrote outlives it, standard error included.
pub async fn logs_are_there_after_the_replica_is_gone<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = judge.spec("talker");
    let unknown = engine.logs(query(&spec.id)).await.err().unwrap();
    assert!(matches!(unknown, EngineError::UnknownFunction(_)), "{unknown}");
    judge.deploy(&spec).await;
    let replica = engine.endpoints().borrow()[&spec.id].ready[0].replica.clone();
    judge.body(&spec.id, "/print/farewell").await;
    until_printed(&judge, &spec.id, "farewell").await;
    engine.scale(&spec.id, 0).await.unwrap();
    judge.until_ready(&spec.id, 0).await;
    let all = lines(&judge, query(&spec.id)).await;
    let farewell = all.iter().find(|line| line.text == "farewell").expect("it is still there");
    assert_eq!(farewell.instance, replica);
    let age = Timestamp::now().as_second() - farewell.timestamp.as_second();
    assert!((0..60).contains(&age), "the line is {age} seconds old");
    let failing = with_environment(judge.spec("failing"), &[("exit_at_start", "1")]);
    engine.apply(failing.clone(), crate::Wake::Keep).await.unwrap();
    until_printed(&judge, &failing.id, "conformance app was asked to fail").await;
}

/// A tail counts from the end, over all replicas, and an instance is picked by name.
pub async fn a_tail_is_the_end_of_what_is_there<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("tailed");
    judge.deploy(&spec).await;
    for number in 1..=5 {
        judge.body(&spec.id, &format!("/print/line-{number}")).await;
    }
    until_printed(&judge, &spec.id, "line-5").await;
    let last = |count| LogQuery { tail: Some(count), ..query(&spec.id) };
    assert_eq!(texts(&judge, last(2)).await, ["line-4", "line-5"]);
    assert_eq!(texts(&judge, last(0)).await, Vec::<String>::new());
    let all = texts(&judge, last(1000)).await;
    assert_eq!(all.first().map(String::as_str), Some("conformance app starts"));
    let replica = judge.engine().endpoints().borrow()[&spec.id].ready[0].replica.clone();
    let own = LogQuery { instance: Some(replica), ..query(&spec.id) };
    assert_eq!(texts(&judge, own).await, all);
    let others = LogQuery { instance: Some(crate::ReplicaId::new("other")), ..query(&spec.id) };
    assert!(texts(&judge, others).await.is_empty());
}

/// Lines from before a moment are left out.
pub async fn since_leaves_earlier_lines_out<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("recent");
    judge.deploy(&spec).await;
    judge.body(&spec.id, "/print/before").await;
    until_printed(&judge, &spec.id, "before").await;
    let before = lines(&judge, query(&spec.id)).await;
    let before = before.iter().find(|line| line.text == "before").unwrap().timestamp;
    // Engines may look at output in steps: the next line comes once the clock of the lines has
    // passed the first one.
    judge
        .until("a later line has a later time", || async {
            judge.body(&spec.id, "/print/after").await;
            lines(&judge, query(&spec.id)).await.iter().any(|line| line.timestamp > before)
        })
        .await;
    let all = lines(&judge, query(&spec.id)).await;
    let since = all.iter().map(|line| line.timestamp).find(|at| *at > before).unwrap();
    let late = LogQuery { since: Some(since), ..query(&spec.id) };
    judge
        .until("only later lines are given", || async {
            let late = texts(&judge, late.clone()).await;
            !late.is_empty() && late.iter().all(|line| line == "after")
        })
        .await;
}

/// A follower gets what is there, then what comes, from replicas that came later too.
pub async fn a_follower_sees_lines_of_new_replicas<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = judge.spec("followed");
    judge.deploy(&spec).await;
    judge.body(&spec.id, "/print/early").await;
    until_printed(&judge, &spec.id, "early").await;
    let mut stream = engine.logs(LogQuery { follow: true, ..query(&spec.id) }).await.unwrap();
    let mut next = async |wanted: &str| {
        loop {
            let line = timeout(PATIENCE, stream.next()).await;
            let line = line.unwrap_or_else(|_| panic!("`{wanted}` never came"));
            let line = line.expect("the stream goes on").unwrap();
            if line.text == wanted {
                return line.instance;
            }
        }
    };
    let first = next("early").await;
    judge.body(&spec.id, "/print/middle").await;
    assert_eq!(next("middle").await, first);
    judge.deploy(&with_environment(spec.clone(), &[("answer", "new")])).await;
    judge.body(&spec.id, "/print/late").await;
    assert_ne!(next("late").await, first);
}
