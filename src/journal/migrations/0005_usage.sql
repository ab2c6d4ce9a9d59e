-- What each run used. Money can be computed from it later: agent and time are in the job's row.
CREATE TABLE usage (
    job TEXT PRIMARY KEY REFERENCES job (id),
    turns INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    cached_input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost_usd REAL,
    -- Who counted: the vault, which saw the traffic, or the agent by its own account.
    counted_by TEXT NOT NULL CHECK (counted_by IN ('vault', 'agent'))
) STRICT, WITHOUT ROWID;
CREATE INDEX job_started_by_requester ON job (requester, started_at) WHERE started_at IS NOT NULL;
