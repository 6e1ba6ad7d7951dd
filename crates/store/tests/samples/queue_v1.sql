-- Moments are milliseconds since 1970 (UTC). JSON columns hold {"v":<form>,"data":…}.

CREATE TABLE calls (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,
    id                 TEXT NOT NULL UNIQUE,
    -- `<name>.<namespace>`
    function           TEXT NOT NULL,
    owner              TEXT,
    queue              TEXT NOT NULL,
    -- 0 queued, 1 running, 2 done, 3 dead, 4 cancelled
    state              INTEGER NOT NULL,
    attempts           INTEGER NOT NULL DEFAULT 0,
    -- Queued: when the next attempt may begin. Running: when the lease lapses.
    due                INTEGER NOT NULL,
    created_at         INTEGER NOT NULL,
    finished_at        INTEGER,
    method             TEXT NOT NULL,
    target             TEXT NOT NULL,
    body_length        INTEGER NOT NULL,
    -- What the last attempt came to.
    status             INTEGER,
    reason             TEXT,
    took_micros        INTEGER,
    callback           TEXT,
    -- 0 nothing to tell (yet), 1 to be told, 2 told, 3 given up
    callback_state     INTEGER NOT NULL DEFAULT 0,
    callback_attempts  INTEGER NOT NULL DEFAULT 0,
    callback_due       INTEGER,
    callback_reason    TEXT
) STRICT;
CREATE INDEX calls_to_make ON calls (function, due, seq) WHERE state <= 1;
CREATE INDEX calls_by_end ON calls (state, seq) WHERE state >= 2;
CREATE INDEX calls_by_age ON calls (finished_at) WHERE state >= 2;
CREATE INDEX callbacks_to_make ON calls (callback_due) WHERE callback_state = 1;

-- Apart from `calls`, whose rows change often: what was asked never changes.
CREATE TABLE requests (
    seq      INTEGER PRIMARY KEY REFERENCES calls (seq) ON DELETE CASCADE,
    head     TEXT NOT NULL,
    -- One of the two, or neither when there is no body.
    body     BLOB,
    blob     TEXT
) STRICT;
CREATE INDEX request_blobs ON requests (blob) WHERE blob IS NOT NULL;

CREATE TABLE results (
    seq      INTEGER PRIMARY KEY REFERENCES calls (seq) ON DELETE CASCADE,
    headers  TEXT NOT NULL,
    body     BLOB NOT NULL,
    -- Of the whole answer; the body may be cut.
    length   INTEGER NOT NULL
) STRICT;

INSERT INTO calls (seq, id, function, owner, queue, state, attempts, due, created_at, finished_at,
    method, target, body_length, status, reason, took_micros, callback, callback_state)
VALUES (1, 'waits', 'alice-f.openfaas-fn', 'alice', 'faas-request', 0, 1, 1763712000000,
        1763711990000, NULL, 'PUT', '/a?b', 4, 500, 'the function answered 500', 1500,
        'https://example.org/', 0),
       (2, 'ran', 'figlet.openfaas-fn', NULL, 'slow', 1, 1, 1763712000000, 1763711990000, NULL,
        'POST', '/', 5000, NULL, NULL, NULL, NULL, 0),
       (3, 'ended', 'figlet.openfaas-fn', NULL, 'slow', 2, 1, 1763712000000, 1763711990000,
        1763712000000, 'POST', '/', 0, 200, NULL, 1500, NULL, 0);
INSERT INTO requests (seq, head, body, blob)
VALUES (1, '{"v":1,"data":{"headers":[["x-one","a"],["x-one","ä"]],"client":{"address":"192.0.2.1","tls":true,"authorized":true}}}', CAST('body' AS BLOB), NULL),
       (2, '{"v":1,"data":{"headers":[],"client":{"address":"::1","tls":false,"authorized":false}}}', NULL, 'bodies/0123');
INSERT INTO results (seq, headers, body, length)
VALUES (3, '{"v":1,"data":[["content-type","text/plain"]]}', CAST('answer' AS BLOB), 7000);
PRAGMA user_version = 1;
