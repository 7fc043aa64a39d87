-- What a labeler's turn and judgment read in few statements. Keep in step with migrations/sqlite.

-- A labeler's counts of today and in all, without reading the judgments themselves.
CREATE INDEX judgments_counted ON judgments (labeler_id, revision, outcome, created);
-- Rankings by API, which take places without an assignment: few, and looked for at every set of the queue.
CREATE INDEX judgments_without_assignment ON judgments (set_id, labeler_id, supersedes_id)
    WHERE assignment_id IS NULL AND knowledge = 'blind';
-- The unique key begins with the set; a second index cost a write for every judgment.
DROP INDEX judgments_by_set;
-- Places taken on a set, without reading the assignments themselves.
CREATE INDEX assignments_places ON assignments (set_id, labeler_id, state, expires_at);
