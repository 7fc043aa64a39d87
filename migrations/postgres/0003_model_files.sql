-- The files of a model version, so that any server can bring them from the artifact store and check them.
CREATE TABLE model_files (
    model_version_id TEXT COLLATE "C" NOT NULL REFERENCES model_versions (id),
    path TEXT COLLATE "C" NOT NULL,
    bytes BIGINT NOT NULL CHECK (bytes >= 0),
    sha256 TEXT NOT NULL,
    PRIMARY KEY (model_version_id, path)
);
