-- Uploaded files, batches of requests that are read from them, and their answers. Keep in step with
-- migrations/sqlite.

CREATE TABLE files (
    id TEXT COLLATE "C" PRIMARY KEY,
    -- A key's id, 'configured', or 'person:' and an id.
    owner TEXT COLLATE "C" NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL CHECK (purpose IN ('batch', 'batch_output')),
    bytes BIGINT NOT NULL,
    -- NULL where the text is in batch_results.
    content TEXT,
    created BIGINT NOT NULL
);
CREATE INDEX files_by_owner ON files (owner, id);
CREATE INDEX files_by_time ON files (created);

CREATE TABLE batches (
    id TEXT COLLATE "C" PRIMARY KEY,
    owner TEXT COLLATE "C" NOT NULL,
    input_file TEXT COLLATE "C" NOT NULL,
    endpoint TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN
        ('validating', 'in_progress', 'cancelling', 'cancelled', 'completed', 'failed', 'expired')),
    metadata JSONB NOT NULL,
    faults JSONB NOT NULL,
    total BIGINT NOT NULL,
    completed BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    created BIGINT NOT NULL,
    began BIGINT,
    cancelling BIGINT,
    ended BIGINT,
    expires BIGINT NOT NULL,
    output_file TEXT COLLATE "C",
    error_file TEXT COLLATE "C",
    -- The server that answers it, until when it holds it.
    held_by TEXT,
    held_until BIGINT NOT NULL
);
CREATE INDEX batches_by_owner ON batches (owner, id);
CREATE INDEX batches_open ON batches (id) WHERE state IN ('validating', 'in_progress', 'cancelling');

CREATE TABLE batch_results (
    batch_id TEXT COLLATE "C" NOT NULL REFERENCES batches (id),
    line BIGINT NOT NULL,
    failed BOOLEAN NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (batch_id, line)
);
