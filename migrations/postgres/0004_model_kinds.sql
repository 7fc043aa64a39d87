-- Model versions may also be classifiers and prompt adapters (soft prompts).

ALTER TABLE model_versions DROP CONSTRAINT model_versions_kind_check;
ALTER TABLE model_versions ADD CONSTRAINT model_versions_kind_check
    CHECK (kind IN ('policy', 'reward', 'encoder', 'classifier', 'prompt_adapter'));
