-- Answers of the Responses API that a later request may go on from. Keep in step with migrations/sqlite.
CREATE TABLE responses (
    id TEXT COLLATE "C" PRIMARY KEY,
    -- As that of files; NULL where nobody said who they were.
    owner TEXT COLLATE "C",
    -- The conversation, the answer included.
    messages JSONB NOT NULL,
    -- As it was returned.
    response JSONB NOT NULL,
    bytes BIGINT NOT NULL,
    created BIGINT NOT NULL
);
CREATE INDEX responses_by_time ON responses (created, bytes);
CREATE INDEX responses_by_owner ON responses (owner);
