-- Times are RFC 3339 text, so that the file can be read by people; order comes from the row numbers.
CREATE TABLE deployment (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL
) STRICT;
INSERT INTO deployment (one, id) VALUES (1, lower(hex(randomblob(8))));

CREATE TABLE job (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    message_key TEXT NOT NULL,
    requester TEXT NOT NULL,
    channel TEXT NOT NULL,
    conversation TEXT NOT NULL,
    agent TEXT NOT NULL,
    prompt TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('accepted', 'running', 'ended')),
    runner TEXT,
    accepted_at TEXT NOT NULL,
    started_at TEXT,
    ended_at TEXT,
    outcome TEXT CHECK (json_valid(outcome)),
    timings TEXT CHECK (json_valid(timings)),
    receipt TEXT CHECK (json_valid(receipt)),
    CHECK (state <> 'running' OR (runner IS NOT NULL AND started_at IS NOT NULL)),
    CHECK ((state = 'ended') = (outcome IS NOT NULL AND ended_at IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX job_message_key ON job (message_key);
CREATE INDEX job_open ON job (state) WHERE state <> 'ended';

-- A forgotten runner keeps its row, because its fence must go on growing.
CREATE TABLE runner (
    name TEXT PRIMARY KEY,
    forgotten INTEGER NOT NULL DEFAULT 0 CHECK (forgotten IN (0, 1)),
    sprite_id TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    dirty INTEGER NOT NULL CHECK (dirty IN (0, 1)),
    last_job TEXT,
    canary TEXT,
    boot TEXT NOT NULL,
    fence INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Every lease that was given. Inserting one is the whole transaction: the trigger marks job and runner or refuses, so
-- that no connection can be left in mid-transaction by a caller who went away.
CREATE TABLE lease (
    runner TEXT NOT NULL REFERENCES runner (name),
    fence INTEGER NOT NULL,
    job TEXT NOT NULL REFERENCES job (id),
    canary TEXT NOT NULL,
    leased_at TEXT NOT NULL,
    PRIMARY KEY (runner, fence)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER lease_marks_job_and_runner BEFORE INSERT ON lease BEGIN
    SELECT RAISE(ABORT, 'no such job') WHERE NOT EXISTS (SELECT 1 FROM job WHERE id = NEW.job);
    SELECT RAISE(ABORT, 'the job has ended') FROM job WHERE id = NEW.job AND state = 'ended';
    SELECT RAISE(ABORT, 'the job has a lease already') FROM job WHERE id = NEW.job AND state = 'running';
    SELECT RAISE(ABORT, 'no such runner')
        WHERE NOT EXISTS (SELECT 1 FROM runner WHERE name = NEW.runner AND NOT forgotten);
    SELECT RAISE(ABORT, 'the fence is not larger than the last one') FROM runner
        WHERE name = NEW.runner AND fence >= NEW.fence;
    UPDATE job SET state = 'running', runner = NEW.runner, started_at = NEW.leased_at WHERE id = NEW.job;
    UPDATE runner SET dirty = 1, last_job = NEW.job, canary = NEW.canary, fence = NEW.fence WHERE name = NEW.runner;
END;

CREATE TABLE quarantine (
    seq INTEGER PRIMARY KEY,
    runner TEXT NOT NULL,
    evidence TEXT NOT NULL,
    at TEXT NOT NULL
) STRICT;
