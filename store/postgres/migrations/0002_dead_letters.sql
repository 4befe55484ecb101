-- Indexes for every filter of a listing of dead letters, in its order. The columns behind the order let the index alone decide on the
-- other filters, so that rows are read only where they match.
CREATE INDEX tidings_dead_letters_page ON tidings_dead_letters (failed_at, letter_key, subscription, type, state, fingerprint);
CREATE INDEX tidings_dead_letters_subscription ON tidings_dead_letters (subscription, failed_at, letter_key, type, state, fingerprint);
CREATE INDEX tidings_dead_letters_type ON tidings_dead_letters (type, failed_at, letter_key, subscription, state, fingerprint);
CREATE INDEX tidings_dead_letters_state ON tidings_dead_letters (state, failed_at, letter_key, subscription, type, fingerprint);
CREATE INDEX tidings_dead_letters_fingerprint ON tidings_dead_letters (fingerprint, failed_at, letter_key, subscription, type, state);

DROP INDEX tidings_dead_letters_failed;
