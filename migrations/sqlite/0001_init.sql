-- The whole loop: prompts, completions, rankings, people, models, jobs.
-- Ids are ULID text, times are microseconds UTC, states are text with a CHECK.
-- Keep in step with migrations/postgres; tests/it/store runs one suite over both.

CREATE TABLE labelers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('labeler', 'reviewer', 'admin')),
    active INTEGER NOT NULL CHECK (active IN (0, 1)),
    created INTEGER NOT NULL
) STRICT;

-- The two authors that exist without an invitation: the holder of the admin key, and imported files.
INSERT INTO labelers (id, name, role, active, created) VALUES
    ('admin', 'admin', 'admin', 1, 0),
    ('import', 'import', 'labeler', 1, 0);

CREATE TABLE prompts (
    id TEXT PRIMARY KEY,
    messages TEXT NOT NULL,
    lang TEXT,
    source TEXT NOT NULL,
    content_hash TEXT NOT NULL UNIQUE,
    split TEXT NOT NULL CHECK (split IN ('train', 'heldout')),
    tags TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE model_versions (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('policy', 'reward', 'encoder')),
    name TEXT NOT NULL UNIQUE,
    stage TEXT NOT NULL,
    parent_id TEXT REFERENCES model_versions (id),
    job_id TEXT,
    artifact_uri TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    metrics TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('candidate', 'active', 'retired')),
    created INTEGER NOT NULL,
    activated INTEGER
) STRICT;
CREATE UNIQUE INDEX model_versions_one_active ON model_versions (kind) WHERE state = 'active';

CREATE TABLE completions (
    id TEXT PRIMARY KEY,
    prompt_id TEXT NOT NULL REFERENCES prompts (id),
    model_version_id TEXT REFERENCES model_versions (id),
    origin TEXT NOT NULL CHECK (origin IN ('model', 'human', 'edit', 'import')),
    parent_completion_id TEXT REFERENCES completions (id),
    text TEXT NOT NULL,
    token_ids BLOB NOT NULL,
    logprobs BLOB NOT NULL,
    sampling TEXT NOT NULL,
    seed INTEGER,
    finish_reason TEXT,
    request_id TEXT,
    reward REAL,
    created INTEGER NOT NULL
) STRICT;
CREATE INDEX completions_by_prompt ON completions (prompt_id, id);

CREATE TABLE comparison_sets (
    id TEXT PRIMARY KEY,
    prompt_id TEXT NOT NULL REFERENCES prompts (id),
    kind TEXT NOT NULL CHECK (kind IN ('normal', 'gold', 'calibration')),
    target_overlap INTEGER NOT NULL CHECK (target_overlap >= 1),
    selection_policy TEXT NOT NULL,
    selection_score REAL,
    status TEXT NOT NULL CHECK (status IN ('open', 'done', 'retired')),
    created INTEGER NOT NULL
) STRICT;
CREATE INDEX comparison_sets_by_status ON comparison_sets (status, id);
CREATE INDEX comparison_sets_by_prompt ON comparison_sets (prompt_id);

CREATE TABLE set_items (
    set_id TEXT NOT NULL REFERENCES comparison_sets (id),
    completion_id TEXT NOT NULL REFERENCES completions (id),
    position INTEGER NOT NULL,
    PRIMARY KEY (set_id, completion_id)
) STRICT;

CREATE TABLE gold_items (
    set_id TEXT NOT NULL,
    completion_id TEXT NOT NULL,
    expected_tier INTEGER NOT NULL,
    PRIMARY KEY (set_id, completion_id),
    FOREIGN KEY (set_id, completion_id) REFERENCES set_items (set_id, completion_id)
) STRICT;

CREATE TABLE assignments (
    id TEXT PRIMARY KEY,
    set_id TEXT NOT NULL REFERENCES comparison_sets (id),
    labeler_id TEXT NOT NULL REFERENCES labelers (id),
    state TEXT NOT NULL CHECK (state IN ('leased', 'submitted', 'expired', 'released')),
    lease_token TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    order_seed INTEGER NOT NULL,
    UNIQUE (set_id, labeler_id)
) STRICT;
CREATE INDEX assignments_by_state ON assignments (state, expires_at);

CREATE TABLE judgments (
    id TEXT PRIMARY KEY,
    assignment_id TEXT REFERENCES assignments (id),
    set_id TEXT NOT NULL REFERENCES comparison_sets (id),
    labeler_id TEXT NOT NULL REFERENCES labelers (id),
    revision INTEGER NOT NULL CHECK (revision >= 1),
    supersedes_id TEXT UNIQUE REFERENCES judgments (id),
    outcome TEXT NOT NULL CHECK (outcome IN ('ranked', 'all_bad', 'unrankable', 'skip')),
    strength TEXT CHECK (strength IN ('significantly', 'clearly', 'slightly', 'barely')),
    rationale TEXT,
    active_ms INTEGER NOT NULL,
    wall_ms INTEGER NOT NULL,
    guideline_version TEXT,
    idempotency_key TEXT NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    UNIQUE (set_id, labeler_id, revision)
) STRICT;
CREATE INDEX judgments_by_labeler ON judgments (labeler_id, id);

CREATE TABLE judgment_items (
    judgment_id TEXT NOT NULL REFERENCES judgments (id),
    completion_id TEXT NOT NULL REFERENCES completions (id),
    tier INTEGER NOT NULL CHECK (tier >= 0),
    shown_position INTEGER NOT NULL,
    rating INTEGER,
    PRIMARY KEY (judgment_id, completion_id)
) STRICT;

CREATE TABLE judgment_flags (
    judgment_id TEXT NOT NULL REFERENCES judgments (id),
    position INTEGER NOT NULL,
    completion_id TEXT REFERENCES completions (id),
    code TEXT NOT NULL,
    note TEXT,
    PRIMARY KEY (judgment_id, position)
) STRICT;

CREATE TABLE demonstrations (
    prompt_id TEXT NOT NULL REFERENCES prompts (id),
    completion_id TEXT NOT NULL REFERENCES completions (id),
    labeler_id TEXT REFERENCES labelers (id),
    created INTEGER NOT NULL,
    PRIMARY KEY (prompt_id, completion_id)
) STRICT;

CREATE TABLE feedback_events (
    id TEXT PRIMARY KEY,
    completion_id TEXT NOT NULL REFERENCES completions (id),
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    actor_hash TEXT,
    idempotency_key TEXT NOT NULL UNIQUE,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
    token_hash TEXT PRIMARY KEY,
    labeler_id TEXT NOT NULL REFERENCES labelers (id),
    role TEXT NOT NULL CHECK (role IN ('labeler', 'reviewer', 'admin')),
    expires INTEGER NOT NULL,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE invites (
    id TEXT PRIMARY KEY,
    token_hash TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('labeler', 'reviewer', 'admin')),
    note TEXT,
    expires INTEGER NOT NULL,
    used_by TEXT REFERENCES labelers (id),
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    key_hash TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    labeler_id TEXT REFERENCES labelers (id),
    revoked INTEGER NOT NULL CHECK (revoked IN (0, 1)),
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    detail TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE dataset_versions (
    id TEXT PRIMARY KEY,
    filter TEXT NOT NULL,
    as_of INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    n_sets INTEGER NOT NULL,
    n_pairs INTEGER NOT NULL
) STRICT;

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    args TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    unique_key TEXT,
    priority INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    crash_count INTEGER NOT NULL,
    lease_owner TEXT,
    lease_expires INTEGER,
    cancel_requested INTEGER NOT NULL CHECK (cancel_requested IN (0, 1)),
    checkpoint_uri TEXT,
    external_ref TEXT,
    progress TEXT,
    result TEXT,
    error TEXT,
    created INTEGER NOT NULL,
    started INTEGER,
    finished INTEGER
) STRICT;
CREATE UNIQUE INDEX jobs_unique_key ON jobs (unique_key) WHERE state IN ('queued', 'running');
CREATE INDEX jobs_by_state ON jobs (state, priority, id);

CREATE TABLE job_events (
    job_id TEXT NOT NULL REFERENCES jobs (id),
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (job_id, seq)
) STRICT;

CREATE TABLE metrics (
    job_id TEXT NOT NULL REFERENCES jobs (id),
    name TEXT NOT NULL,
    step INTEGER NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (job_id, name, step)
) STRICT;
