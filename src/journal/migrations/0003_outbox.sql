-- By when a job must have ended; none for jobs of before.
ALTER TABLE job ADD COLUMN deadline TEXT;

-- What is to be seen in a chat. `replaceable` rows are progress texts, which a newer text of the same key replaces.
CREATE TABLE outgoing (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    job TEXT NOT NULL,
    conversation TEXT NOT NULL,
    effect TEXT NOT NULL CHECK (json_valid(effect)),
    replaceable INTEGER NOT NULL CHECK (replaceable IN (0, 1)),
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'sent', 'given_up')),
    tried INTEGER NOT NULL,
    message TEXT,
    why TEXT,
    put_at TEXT NOT NULL,
    done_at TEXT,
    CHECK ((state = 'given_up') = (why IS NOT NULL))
) STRICT;
CREATE INDEX outgoing_open ON outgoing (conversation, seq) WHERE state = 'open' AND NOT replaceable;
CREATE INDEX outgoing_job ON outgoing (job);

-- Contents of files that are to be sent. They come before the row that names them and go when that is done.
CREATE TABLE outgoing_file (
    key TEXT PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;
CREATE TRIGGER outgoing_done AFTER UPDATE OF state ON outgoing WHEN NEW.state <> 'open' BEGIN
    DELETE FROM outgoing_file WHERE key = NEW.key;
END;

-- The door to the table: a JSON array of effects is put in as a whole or not at all. Empty after every statement.
CREATE TABLE outgoing_put (
    effects TEXT NOT NULL,
    at TEXT NOT NULL
) STRICT;
CREATE TRIGGER outgoing_put_in AFTER INSERT ON outgoing_put BEGIN
    INSERT INTO outgoing (key, job, conversation, effect, replaceable, tried, put_at)
    SELECT value ->> 'key', value ->> 'job', value ->> 'conversation', value -> 'effect',
           value ->> '$.effect.kind' = 'progress' AND NOT value ->> '$.effect.closing',
           value ->> '$.effect.kind' = 'progress' AND NOT value ->> '$.effect.closing',
           NEW.at
    FROM json_each(NEW.effects) WHERE true
    ON CONFLICT (key) DO UPDATE SET effect = excluded.effect, replaceable = excluded.replaceable, state = 'open',
        why = NULL, done_at = NULL, tried = tried + excluded.tried
    WHERE replaceable;
    DELETE FROM outgoing_put;
END;

-- Effects that belong to a job's acceptance or end come with it, in the same statement.
ALTER TABLE job ADD COLUMN effects TEXT;
CREATE TRIGGER job_accepted_effects AFTER INSERT ON job WHEN NEW.effects IS NOT NULL BEGIN
    INSERT INTO outgoing_put (effects, at) VALUES (NEW.effects, coalesce(NEW.ended_at, NEW.accepted_at));
    UPDATE job SET effects = NULL WHERE seq = NEW.seq;
END;
CREATE TRIGGER job_ended_effects AFTER UPDATE OF effects ON job WHEN NEW.effects IS NOT NULL BEGIN
    INSERT INTO outgoing_put (effects, at) VALUES (NEW.effects, NEW.ended_at);
    UPDATE job SET effects = NULL WHERE seq = NEW.seq;
END;
