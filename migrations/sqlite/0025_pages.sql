-- Large tables are read in pages: feedback by prompt, demonstrations
-- and prompts of requests by time. Keep in step with migrations/postgres.

-- The prompt of the completion, which never changes.
ALTER TABLE feedback_events ADD COLUMN prompt_id TEXT;
UPDATE feedback_events SET prompt_id = (SELECT c.prompt_id FROM completions c WHERE c.id = feedback_events.completion_id);
CREATE INDEX feedback_events_by_prompt ON feedback_events (prompt_id, created, id);
CREATE INDEX demonstrations_by_time ON demonstrations (created, completion_id);
-- Its condition is that of `asked!` in src/store/privacy.rs.
CREATE INDEX prompts_asked ON prompts (created) WHERE source IN ('chat', 'completions') AND submitted IS NULL;
