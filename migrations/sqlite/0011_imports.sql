-- The right answer of a prompt, for rewards that compare with one. What an imported line is known by: the texts of a
-- set, and the text of a demonstration, as hashes. Keep in step with migrations/postgres.
ALTER TABLE prompts ADD COLUMN answer TEXT;

-- SHA-256 (hex) of the set's sorted texts; NULL for sets of earlier versions until a file is imported beside them.
ALTER TABLE comparison_sets ADD COLUMN content_key TEXT;
CREATE INDEX comparison_sets_by_content ON comparison_sets (prompt_id, content_key);

-- SHA-256 (hex) of the demonstration's text; NULL likewise.
ALTER TABLE demonstrations ADD COLUMN text_key TEXT;
CREATE INDEX demonstrations_by_text ON demonstrations (prompt_id, text_key);
