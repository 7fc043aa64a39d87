-- What is changed while the server runs: settings by name, and the canary under the name 'canary'.
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    updated INTEGER NOT NULL,
    updated_by TEXT NOT NULL
) STRICT;

-- Use of each version: completions and thumbs since a time.
CREATE INDEX completions_by_version ON completions (model_version_id, created);
CREATE INDEX feedback_by_completion_and_kind ON feedback_events (completion_id, kind, id);
