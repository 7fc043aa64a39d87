-- Feedback: quotas, explanations of known answers, resolutions of disagreements, draws of sets, named
-- dataset versions, erased people. Keep in step with migrations/postgres.

-- NULL = the configured quota; 0 = none.
ALTER TABLE labelers ADD COLUMN daily_quota INTEGER;
-- When the person's data was erased on request.
ALTER TABLE labelers ADD COLUMN erased INTEGER;

-- Shown after the vote on a calibration set.
ALTER TABLE comparison_sets ADD COLUMN explanation TEXT;

-- The reviewer's own latest judgment on the set settles it.
CREATE TABLE resolutions (
    set_id TEXT PRIMARY KEY REFERENCES comparison_sets (id),
    reviewer_id TEXT NOT NULL REFERENCES labelers (id),
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE set_draws (
    id TEXT PRIMARY KEY,
    request TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed', 'cancelled')),
    wanted INTEGER NOT NULL,
    looked_at INTEGER NOT NULL,
    made INTEGER NOT NULL,
    error TEXT,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL
) STRICT;

ALTER TABLE dataset_versions ADD COLUMN name TEXT;
CREATE UNIQUE INDEX dataset_versions_by_name ON dataset_versions (name);

CREATE INDEX judgments_by_set ON judgments (set_id);
CREATE INDEX assignments_by_labeler ON assignments (labeler_id, state);
-- The order in which open sets are given out: the queue reads its first rows only.
CREATE INDEX comparison_sets_queue ON comparison_sets (status, kind, selection_score DESC, id);
CREATE INDEX audit_log_by_actor ON audit_log (actor, id);
CREATE INDEX feedback_events_by_completion ON feedback_events (completion_id);
