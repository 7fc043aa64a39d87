-- Answers of the Responses API that a later request may go on from. Keep in step with migrations/postgres.
CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    -- As that of files; NULL where nobody said who they were.
    owner TEXT,
    -- The conversation, the answer included.
    messages TEXT NOT NULL,
    -- As it was returned.
    response TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created INTEGER NOT NULL
) STRICT;
CREATE INDEX responses_by_time ON responses (created, bytes);
CREATE INDEX responses_by_owner ON responses (owner);
