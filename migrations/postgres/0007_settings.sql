-- What is changed while the server runs: settings by name, and the canary under the name 'canary'.
CREATE TABLE settings (
    name TEXT COLLATE "C" PRIMARY KEY,
    value JSONB NOT NULL,
    updated BIGINT NOT NULL,
    updated_by TEXT NOT NULL
);

-- Use of each version: completions and thumbs since a time.
CREATE INDEX completions_by_version ON completions (model_version_id, created);
CREATE INDEX feedback_by_completion_and_kind ON feedback_events (completion_id, kind, id);
