-- The whole loop: prompts, completions, rankings, people, models, jobs.
-- Ids are ULID text, times are microseconds UTC, states are text with a CHECK.
-- COLLATE "C": ids sort by bytes whatever the cluster's locale.
-- Keep in step with migrations/sqlite; tests/it/store runs one suite over both.

CREATE TABLE labelers (
    id TEXT COLLATE "C" PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('labeler', 'reviewer', 'admin')),
    active BOOLEAN NOT NULL,
    created BIGINT NOT NULL
);

-- The two authors that exist without an invitation: the holder of the admin key, and imported files.
INSERT INTO labelers (id, name, role, active, created) VALUES
    ('admin', 'admin', 'admin', TRUE, 0),
    ('import', 'import', 'labeler', TRUE, 0);

CREATE TABLE prompts (
    id TEXT COLLATE "C" PRIMARY KEY,
    messages JSONB NOT NULL,
    lang TEXT,
    source TEXT NOT NULL,
    content_hash TEXT NOT NULL UNIQUE,
    split TEXT NOT NULL CHECK (split IN ('train', 'heldout')),
    tags JSONB NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE model_versions (
    id TEXT COLLATE "C" PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('policy', 'reward', 'encoder')),
    name TEXT NOT NULL UNIQUE,
    stage TEXT NOT NULL,
    parent_id TEXT COLLATE "C" REFERENCES model_versions (id),
    job_id TEXT COLLATE "C",
    artifact_uri TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    metrics JSONB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('candidate', 'active', 'retired')),
    created BIGINT NOT NULL,
    activated BIGINT
);
CREATE UNIQUE INDEX model_versions_one_active ON model_versions (kind) WHERE state = 'active';

CREATE TABLE completions (
    id TEXT COLLATE "C" PRIMARY KEY,
    prompt_id TEXT COLLATE "C" NOT NULL REFERENCES prompts (id),
    model_version_id TEXT COLLATE "C" REFERENCES model_versions (id),
    origin TEXT NOT NULL CHECK (origin IN ('model', 'human', 'edit', 'import')),
    parent_completion_id TEXT COLLATE "C" REFERENCES completions (id),
    text TEXT NOT NULL,
    token_ids BYTEA NOT NULL,
    logprobs BYTEA NOT NULL,
    sampling JSONB NOT NULL,
    seed BIGINT,
    finish_reason TEXT,
    request_id TEXT COLLATE "C",
    reward DOUBLE PRECISION,
    created BIGINT NOT NULL
);
CREATE INDEX completions_by_prompt ON completions (prompt_id, id);

CREATE TABLE comparison_sets (
    id TEXT COLLATE "C" PRIMARY KEY,
    prompt_id TEXT COLLATE "C" NOT NULL REFERENCES prompts (id),
    kind TEXT NOT NULL CHECK (kind IN ('normal', 'gold', 'calibration')),
    target_overlap BIGINT NOT NULL CHECK (target_overlap >= 1),
    selection_policy TEXT NOT NULL,
    selection_score DOUBLE PRECISION,
    status TEXT NOT NULL CHECK (status IN ('open', 'done', 'retired')),
    created BIGINT NOT NULL
);
CREATE INDEX comparison_sets_by_status ON comparison_sets (status, id);
CREATE INDEX comparison_sets_by_prompt ON comparison_sets (prompt_id);

CREATE TABLE set_items (
    set_id TEXT COLLATE "C" NOT NULL REFERENCES comparison_sets (id),
    completion_id TEXT COLLATE "C" NOT NULL REFERENCES completions (id),
    position BIGINT NOT NULL,
    PRIMARY KEY (set_id, completion_id)
);

CREATE TABLE gold_items (
    set_id TEXT COLLATE "C" NOT NULL,
    completion_id TEXT COLLATE "C" NOT NULL,
    expected_tier BIGINT NOT NULL,
    PRIMARY KEY (set_id, completion_id),
    FOREIGN KEY (set_id, completion_id) REFERENCES set_items (set_id, completion_id)
);

CREATE TABLE assignments (
    id TEXT COLLATE "C" PRIMARY KEY,
    set_id TEXT COLLATE "C" NOT NULL REFERENCES comparison_sets (id),
    labeler_id TEXT COLLATE "C" NOT NULL REFERENCES labelers (id),
    state TEXT NOT NULL CHECK (state IN ('leased', 'submitted', 'expired', 'released')),
    lease_token TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    order_seed BIGINT NOT NULL,
    UNIQUE (set_id, labeler_id)
);
CREATE INDEX assignments_by_state ON assignments (state, expires_at);

CREATE TABLE judgments (
    id TEXT COLLATE "C" PRIMARY KEY,
    assignment_id TEXT COLLATE "C" REFERENCES assignments (id),
    set_id TEXT COLLATE "C" NOT NULL REFERENCES comparison_sets (id),
    labeler_id TEXT COLLATE "C" NOT NULL REFERENCES labelers (id),
    revision BIGINT NOT NULL CHECK (revision >= 1),
    supersedes_id TEXT COLLATE "C" UNIQUE REFERENCES judgments (id),
    outcome TEXT NOT NULL CHECK (outcome IN ('ranked', 'all_bad', 'unrankable', 'skip')),
    strength TEXT CHECK (strength IN ('significantly', 'clearly', 'slightly', 'barely')),
    rationale TEXT,
    active_ms BIGINT NOT NULL,
    wall_ms BIGINT NOT NULL,
    guideline_version TEXT,
    idempotency_key TEXT NOT NULL UNIQUE,
    created BIGINT NOT NULL,
    UNIQUE (set_id, labeler_id, revision)
);
CREATE INDEX judgments_by_labeler ON judgments (labeler_id, id);

CREATE TABLE judgment_items (
    judgment_id TEXT COLLATE "C" NOT NULL REFERENCES judgments (id),
    completion_id TEXT COLLATE "C" NOT NULL REFERENCES completions (id),
    tier BIGINT NOT NULL CHECK (tier >= 0),
    shown_position BIGINT NOT NULL,
    rating BIGINT,
    PRIMARY KEY (judgment_id, completion_id)
);

CREATE TABLE judgment_flags (
    judgment_id TEXT COLLATE "C" NOT NULL REFERENCES judgments (id),
    position BIGINT NOT NULL,
    completion_id TEXT COLLATE "C" REFERENCES completions (id),
    code TEXT NOT NULL,
    note TEXT,
    PRIMARY KEY (judgment_id, position)
);

CREATE TABLE demonstrations (
    prompt_id TEXT COLLATE "C" NOT NULL REFERENCES prompts (id),
    completion_id TEXT COLLATE "C" NOT NULL REFERENCES completions (id),
    labeler_id TEXT COLLATE "C" REFERENCES labelers (id),
    created BIGINT NOT NULL,
    PRIMARY KEY (prompt_id, completion_id)
);

CREATE TABLE feedback_events (
    id TEXT COLLATE "C" PRIMARY KEY,
    completion_id TEXT COLLATE "C" NOT NULL REFERENCES completions (id),
    kind TEXT NOT NULL,
    value JSONB NOT NULL,
    actor_hash TEXT,
    idempotency_key TEXT NOT NULL UNIQUE,
    created BIGINT NOT NULL
);

CREATE TABLE sessions (
    token_hash TEXT PRIMARY KEY,
    labeler_id TEXT COLLATE "C" NOT NULL REFERENCES labelers (id),
    role TEXT NOT NULL CHECK (role IN ('labeler', 'reviewer', 'admin')),
    expires BIGINT NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE invites (
    id TEXT COLLATE "C" PRIMARY KEY,
    token_hash TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('labeler', 'reviewer', 'admin')),
    note TEXT,
    expires BIGINT NOT NULL,
    used_by TEXT REFERENCES labelers (id),
    created BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id TEXT COLLATE "C" PRIMARY KEY,
    name TEXT NOT NULL,
    key_hash TEXT NOT NULL UNIQUE,
    scopes JSONB NOT NULL,
    labeler_id TEXT COLLATE "C" REFERENCES labelers (id),
    revoked BOOLEAN NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE audit_log (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    detail JSONB NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE dataset_versions (
    id TEXT COLLATE "C" PRIMARY KEY,
    filter JSONB NOT NULL,
    as_of BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    n_sets BIGINT NOT NULL,
    n_pairs BIGINT NOT NULL
);

CREATE TABLE jobs (
    id TEXT COLLATE "C" PRIMARY KEY,
    kind TEXT NOT NULL,
    args JSONB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    unique_key TEXT,
    priority BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    max_attempts BIGINT NOT NULL,
    crash_count BIGINT NOT NULL,
    lease_owner TEXT,
    lease_expires BIGINT,
    cancel_requested BOOLEAN NOT NULL,
    checkpoint_uri TEXT,
    external_ref TEXT,
    progress JSONB,
    result JSONB,
    error TEXT,
    created BIGINT NOT NULL,
    started BIGINT,
    finished BIGINT
);
CREATE UNIQUE INDEX jobs_unique_key ON jobs (unique_key) WHERE state IN ('queued', 'running');
CREATE INDEX jobs_by_state ON jobs (state, priority, id);

CREATE TABLE job_events (
    job_id TEXT COLLATE "C" NOT NULL REFERENCES jobs (id),
    seq BIGINT NOT NULL,
    kind TEXT NOT NULL,
    data JSONB NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (job_id, seq)
);

CREATE TABLE metrics (
    job_id TEXT COLLATE "C" NOT NULL REFERENCES jobs (id),
    name TEXT NOT NULL,
    step BIGINT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (job_id, name, step)
);
