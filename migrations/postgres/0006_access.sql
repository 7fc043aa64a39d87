-- Sessions end when they are idle and with the key that opened them; keys may have a daily number of tokens.
ALTER TABLE sessions ADD COLUMN used BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN credential TEXT NOT NULL DEFAULT '';
ALTER TABLE api_keys ADD COLUMN daily_tokens BIGINT CHECK (daily_tokens > 0);
CREATE TABLE key_usage (
    key_id TEXT COLLATE "C" NOT NULL REFERENCES api_keys (id),
    -- Days since 1970-01-01 UTC.
    day BIGINT NOT NULL,
    tokens BIGINT NOT NULL,
    PRIMARY KEY (key_id, day)
);
