-- Personal sign-in links; the generated admin key is known by a column; invites say for whom they are and why they
-- ended; the audit trail names what the actor proved itself with.
CREATE TABLE sign_in_links (
    id TEXT COLLATE "C" PRIMARY KEY,
    labeler_id TEXT COLLATE "C" NOT NULL REFERENCES labelers (id),
    token_hash TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('active', 'replaced', 'revoked')),
    -- NULL = never.
    expires BIGINT,
    used BIGINT,
    created BIGINT NOT NULL
);
CREATE UNIQUE INDEX sign_in_links_active ON sign_in_links (labeler_id) WHERE state = 'active';

ALTER TABLE api_keys ADD COLUMN origin TEXT NOT NULL DEFAULT 'created' CHECK (origin IN ('created', 'generated'));
-- Until now the generated key was known by its name; a key of that name with other scopes is an ordinary key.
UPDATE api_keys SET origin = 'generated'
    WHERE name = 'generated at the first start' AND labeler_id = 'admin' AND scopes = '["admin"]'::jsonb;

ALTER TABLE invites ADD COLUMN name TEXT;
ALTER TABLE invites ADD COLUMN revoked BOOLEAN NOT NULL DEFAULT FALSE;

ALTER TABLE audit_log ADD COLUMN credential TEXT;
