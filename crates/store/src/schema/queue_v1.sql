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
