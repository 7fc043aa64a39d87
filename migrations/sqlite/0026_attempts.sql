-- A job is given up by its crashes alone. Keep in step with migrations/postgres.

ALTER TABLE jobs DROP COLUMN max_attempts;
