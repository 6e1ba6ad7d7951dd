-- What is known of calls that another keeper holds; this file is made anew at every start.
-- The columns of `calls` in the queue's own database mean the same here.

CREATE TABLE calls (
    seq                INTEGER PRIMARY KEY,
    id                 TEXT NOT NULL,
    function           TEXT NOT NULL,
    owner              TEXT,
    queue              TEXT NOT NULL,
    state              INTEGER NOT NULL,
    attempts           INTEGER NOT NULL,
    due                INTEGER NOT NULL,
    created_at         INTEGER NOT NULL,
    finished_at        INTEGER,
    method             TEXT NOT NULL,
    target             TEXT NOT NULL,
    body_length        INTEGER NOT NULL,
    status             INTEGER,
    reason             TEXT,
    took_micros        INTEGER,
    callback           TEXT,
    callback_state     INTEGER NOT NULL,
    callback_attempts  INTEGER NOT NULL,
    callback_due       INTEGER,
    callback_reason    TEXT,
    -- Which version of the record this is, as the keeper counts; 0 before there is one.
    revision           INTEGER NOT NULL,
    -- Where the keeper has the request; 0 when nowhere yet, or no longer.
    request            INTEGER NOT NULL,
    -- The long body, if it has one.
    body               TEXT,
    -- The instance that accepted the call.
    origin             TEXT NOT NULL,
    -- The instance that holds the call or its callback, and what the keeper knows its hold by.
    holder             TEXT,
    hold               TEXT
) STRICT;
CREATE INDEX calls_by_id ON calls (id);
CREATE INDEX calls_to_make ON calls (function, due, seq) WHERE state <= 1;
CREATE INDEX calls_by_end ON calls (state, seq) WHERE state >= 2;
CREATE INDEX calls_by_age ON calls (finished_at) WHERE state >= 2;
CREATE INDEX callbacks_by_owner ON calls (owner, callback_due) WHERE callback_state = 1;
