-- Uploaded files, batches of requests that are read from them, and their answers. Keep in step with
-- migrations/postgres.

CREATE TABLE files (
    id TEXT PRIMARY KEY,
    -- A key's id, 'configured', or 'person:' and an id.
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL CHECK (purpose IN ('batch', 'batch_output')),
    bytes INTEGER NOT NULL,
    -- NULL where the text is in batch_results.
    content TEXT,
    created INTEGER NOT NULL
) STRICT;
CREATE INDEX files_by_owner ON files (owner, id);
CREATE INDEX files_by_time ON files (created);

CREATE TABLE batches (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    input_file TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN
        ('validating', 'in_progress', 'cancelling', 'cancelled', 'completed', 'failed', 'expired')),
    metadata TEXT NOT NULL,
    faults TEXT NOT NULL,
    total INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    created INTEGER NOT NULL,
    began INTEGER,
    cancelling INTEGER,
    ended INTEGER,
    expires INTEGER NOT NULL,
    output_file TEXT,
    error_file TEXT,
    -- The server that answers it, until when it holds it.
    held_by TEXT,
    held_until INTEGER NOT NULL
) STRICT;
CREATE INDEX batches_by_owner ON batches (owner, id);
CREATE INDEX batches_open ON batches (id) WHERE state IN ('validating', 'in_progress', 'cancelling');

CREATE TABLE batch_results (
    batch_id TEXT NOT NULL REFERENCES batches (id),
    line INTEGER NOT NULL,
    failed INTEGER NOT NULL CHECK (failed IN (0, 1)),
    text TEXT NOT NULL,
    PRIMARY KEY (batch_id, line)
) STRICT;
