-- Personal sign-in links; the generated admin key is known by a column; invites say for whom they are and why they
-- ended; the audit trail names what the actor proved itself with.
CREATE TABLE sign_in_links (
    id TEXT PRIMARY KEY,
    labeler_id TEXT NOT NULL REFERENCES labelers (id),
    token_hash TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('active', 'replaced', 'revoked')),
    -- NULL = never.
    expires INTEGER,
    used INTEGER,
    created INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX sign_in_links_active ON sign_in_links (labeler_id) WHERE state = 'active';

ALTER TABLE api_keys ADD COLUMN origin TEXT NOT NULL DEFAULT 'created' CHECK (origin IN ('created', 'generated'));
-- Until now the generated key was known by its name; a key of that name with other scopes is an ordinary key.
UPDATE api_keys SET origin = 'generated'
    WHERE name = 'generated at the first start' AND labeler_id = 'admin' AND scopes = '["admin"]';

ALTER TABLE invites ADD COLUMN name TEXT;
ALTER TABLE invites ADD COLUMN revoked INTEGER NOT NULL DEFAULT 0 CHECK (revoked IN (0, 1));

ALTER TABLE audit_log ADD COLUMN credential TEXT;
