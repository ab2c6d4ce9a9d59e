-- Files that came with the message, as a JSON array; none for most.
ALTER TABLE job ADD COLUMN files TEXT CHECK (json_valid(files));

-- Small values that an adapter of a chat needs again after a restart, as the session that it can resume.
CREATE TABLE kept (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
