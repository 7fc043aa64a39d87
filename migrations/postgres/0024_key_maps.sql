-- Keys of the labeling page that people have changed. Keep in step with migrations/sqlite.
CREATE TABLE key_maps (
    labeler_id TEXT COLLATE "C" PRIMARY KEY REFERENCES labelers (id),
    -- JSON: keys by action; keys that are not changed are left out.
    keys JSONB NOT NULL,
    updated BIGINT NOT NULL
);
