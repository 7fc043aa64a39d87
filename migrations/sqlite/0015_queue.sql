-- What a draw of sets found and left out, with counts; lists of sets by kind and policy; the audit trail by action.
-- Keep in step with migrations/postgres.
ALTER TABLE set_draws ADD COLUMN report TEXT NOT NULL DEFAULT '{}';

CREATE INDEX comparison_sets_by_kind ON comparison_sets (kind, id);
CREATE INDEX comparison_sets_by_policy ON comparison_sets (selection_policy, id);
CREATE INDEX audit_log_by_action ON audit_log (action, id);
