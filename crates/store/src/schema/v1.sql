-- Moments are milliseconds since 1970 (UTC). JSON columns hold {"v":<form>,"data":…}.

CREATE TABLE owners (
    name        TEXT PRIMARY KEY,
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    owner       TEXT NOT NULL REFERENCES owners (name) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    -- SHA-256 of the whole token as it is sent.
    hash        BLOB NOT NULL UNIQUE,
    created_at  INTEGER NOT NULL,
    last_used   INTEGER
) STRICT;
CREATE INDEX tokens_of_owner ON tokens (owner);

CREATE TABLE repositories (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    owner       TEXT NOT NULL REFERENCES owners (name) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    -- The branch whose pushes go live, once that is decided.
    live_branch TEXT,
    created_at  INTEGER NOT NULL,
    UNIQUE (owner, name)
) STRICT;

-- A function outlives its declaration, so that its release numbers go on when it comes back.
CREATE TABLE functions (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    owner       TEXT NOT NULL REFERENCES owners (name) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    -- The repository that declares it now; none while nobody does.
    repository  INTEGER REFERENCES repositories (id) ON DELETE SET NULL,
    -- Release numbers are never given twice, not even after old releases were dropped.
    last_release INTEGER NOT NULL DEFAULT 0,
    created_at  INTEGER NOT NULL,
    UNIQUE (owner, name)
) STRICT;
CREATE INDEX functions_of_repository ON functions (repository);

CREATE TABLE pushes (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    repository  INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    reference   TEXT NOT NULL,
    commit_id   TEXT NOT NULL,
    -- The folder of an upload; none when the commit is in the repository's git folder.
    upload      TEXT,
    state       TEXT NOT NULL,
    -- What the pipeline needs to go on from this state.
    detail      TEXT,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    finished_at INTEGER
) STRICT;
CREATE INDEX pushes_of_repository ON pushes (repository, reference, id);
CREATE INDEX pushes_unfinished ON pushes (id) WHERE finished_at IS NULL;

CREATE TABLE push_events (
    push        INTEGER NOT NULL REFERENCES pushes (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (push, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE builds (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    function    INTEGER NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    push        INTEGER NOT NULL REFERENCES pushes (id) ON DELETE CASCADE,
    -- Digest of everything the build depends on.
    key         TEXT NOT NULL,
    state       TEXT NOT NULL,
    -- Why it failed, when it did.
    reason      TEXT,
    image       TEXT,
    image_id    TEXT,
    log         TEXT,
    started_at  INTEGER NOT NULL,
    finished_at INTEGER
) STRICT;
CREATE INDEX builds_of_function ON builds (function, key, id);
CREATE INDEX builds_of_push ON builds (push);

CREATE TABLE releases (
    function    INTEGER NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    number      INTEGER NOT NULL,
    push        INTEGER NOT NULL REFERENCES pushes (id) ON DELETE CASCADE,
    commit_id   TEXT NOT NULL,
    image       TEXT NOT NULL,
    image_id    TEXT,
    spec        TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (function, number),
    -- A push that runs twice makes its release once.
    UNIQUE (function, push)
) STRICT;

CREATE TABLE environments (
    function    INTEGER NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    release     INTEGER NOT NULL,
    pinned      INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (function, name),
    FOREIGN KEY (function, release) REFERENCES releases (function, number)
) STRICT;
