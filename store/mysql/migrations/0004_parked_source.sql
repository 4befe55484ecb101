-- Whoever takes a source over asks for its parked lanes, and for no other's.
CREATE INDEX tidings_parked_source ON tidings_parked (subscription, source);
