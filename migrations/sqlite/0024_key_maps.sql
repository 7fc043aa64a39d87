-- Keys of the labeling page that people have changed. Keep in step with migrations/postgres.
CREATE TABLE key_maps (
    labeler_id TEXT PRIMARY KEY REFERENCES labelers (id),
    -- JSON: keys by action; keys that are not changed are left out.
    keys TEXT NOT NULL,
    updated INTEGER NOT NULL
) STRICT;
