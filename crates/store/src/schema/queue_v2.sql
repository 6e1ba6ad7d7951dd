-- Callbacks are leased owner by owner.
DROP INDEX callbacks_to_make;
CREATE INDEX callbacks_by_owner ON calls (owner, callback_due) WHERE callback_state = 1;
