-- A conversation that was idle, or whose process has gone, reads its newest jobs again.
CREATE INDEX job_conversation ON job (conversation, seq);
