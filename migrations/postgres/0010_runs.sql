-- What people write about a job, and who queued it.
ALTER TABLE jobs ADD COLUMN name TEXT;
ALTER TABLE jobs ADD COLUMN note TEXT;
ALTER TABLE jobs ADD COLUMN tags JSONB NOT NULL DEFAULT '[]';
ALTER TABLE jobs ADD COLUMN created_by TEXT COLLATE "C";
