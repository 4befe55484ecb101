package sqlstore

import (
	"context"

	"github.com/tidings-go/tidings/driver"
)

// Claims returns the engine's claims over this store.
func (b *base) Claims() driver.Claims { return claims{b} }

type claims struct{ *base }

// Durable implements [driver.Claims].
func (c claims) Durable() bool { return true }

// Claim implements [driver.Claims].
func (c claims) Claim(ctx context.Context, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	run := c.pool()
	if err := c.ready(ctx, run); err != nil {
		return driver.ClaimAnswer{}, err
	}
	for {
		answer, decided, err := c.claim(ctx, run, r)
		if err != nil {
			return driver.ClaimAnswer{}, c.fail(err, "claim %s %s", r.Subscription, r.Key)
		}
		if decided {
			return answer, nil
		}
		// Released between the two statements: the key is free.
		if err := ctx.Err(); err != nil {
			return driver.ClaimAnswer{}, c.fail(err, "claim %s %s", r.Subscription, r.Key)
		}
	}
}

// claim takes the key in one statement, whatever others do meanwhile. Where that
// statement cannot return what it did, or did nothing, the row tells.
func (c claims) claim(ctx context.Context, run Statements, r driver.ClaimRequest) (answer driver.ClaimAnswer, decided bool, err error) {
	arguments := []any{r.Subscription, r.Key, r.Owner, microseconds(r.Lease), int64(r.Digest), int64(r.Counting), r.Source, r.Epoch}
	counting := c.integer("$6")
	take := " {claims} (subscription, claim_key, owner, done, until_at, digest, crashes, alone, started, source, epoch, keep_until) VALUES ($1, $2, $3, 0, {now} + " + c.integer("$4") + ", $5, 0, 0, " +
		"CASE WHEN " + counting + " = 0 THEN 1 ELSE " + counting + " END, $7, $8, NULL) "
	if c.dialect.Returning {
		found, err := c.take(ctx, "INSERT INTO"+take+c.dialect.Take+" RETURNING crashes, alone", arguments, &answer)
		if err != nil {
			return answer, false, err
		}
		if found {
			answer.State = driver.ClaimFresh
			return answer, true, nil
		}
	} else {
		for _, statement := range []string{c.dialect.InsertNew + take, c.dialect.Take} {
			if _, err := c.write(ctx, statement, arguments...); err != nil {
				return answer, false, err
			}
		}
	}
	var owner string
	var done int
	var until, digest int64
	found, err := run.One(ctx, "SELECT owner, done, until_at, digest, crashes, alone FROM {claims} WHERE subscription = $1 AND claim_key = $2", arguments[:2], &owner, &done, &until, &digest, &answer.Crashes, &answer.Alone)
	switch {
	case err != nil || !found:
		return answer, false, err
	case done != 0:
		return driver.ClaimAnswer{State: driver.ClaimDone, Digest: uint64(digest)}, true, nil
	case owner != r.Owner:
		return driver.ClaimAnswer{State: driver.ClaimBusy, Until: at(until)}, true, nil
	}
	answer.State = driver.ClaimFresh
	return answer, true, nil
}

// take runs a statement that returns a row when it has taken the key.
func (c claims) take(ctx context.Context, statement string, arguments []any, answer *driver.ClaimAnswer) (found bool, err error) {
	if c.together == nil {
		return c.pool().One(ctx, statement, arguments, &answer.Crashes, &answer.Alone)
	}
	err = c.atomically(ctx, func(ctx context.Context, run Statements) error {
		found, err = run.One(ctx, statement, arguments, &answer.Crashes, &answer.Alone)
		return err
	})
	return found, err
}

// Finish implements [driver.Claims].
func (c claims) Finish(ctx context.Context, r driver.ClaimRequest) error {
	var keep any
	if r.Keep > 0 {
		keep = microseconds(r.Keep)
	}
	arguments := []any{r.Subscription, r.Key, r.Owner, int64(r.Digest), keep}
	changed, err := c.write(ctx, "UPDATE {claims} SET done = 1, digest = $4, keep_until = {now} + "+c.integer("$5")+" WHERE subscription = $1 AND claim_key = $2 AND owner = $3 AND done = 0", arguments...)
	finished := changed > 0
	if err == nil && !finished { // it may have been finished before, by a call whose answer was lost
		finished, err = c.Claimed(ctx, r.Subscription, r.Key, r.Owner)
	}
	if err != nil {
		return c.fail(err, "finish the claim on %s %s", r.Subscription, r.Key)
	}
	if !finished {
		return driver.ErrNotClaimed
	}
	c.forgetSome(ctx)
	return nil
}

// Release implements [driver.Claims].
func (c claims) Release(ctx context.Context, r driver.ClaimRequest) error {
	statement := "DELETE FROM {claims}"
	if r.Unstarted {
		statement = "UPDATE {claims} SET until_at = 0, started = 0, keep_until = {now} + " + forgetStart
	}
	_, err := c.write(ctx, statement+" WHERE subscription = $1 AND claim_key = $2 AND owner = $3 AND done = 0", r.Subscription, r.Key, r.Owner)
	return c.fail(err, "release the claim on %s %s", r.Subscription, r.Key)
}

// AdvanceClaims implements [driver.ClaimEpochs].
func (c claims) AdvanceClaims(ctx context.Context, subscription, source string) (epoch int64, err error) {
	if err := c.ready(ctx, c.pool()); err != nil {
		return 0, err
	}
	epoch, err = c.advance(ctx, "epochs", "claims_epoch", subscription, source)
	return epoch, c.fail(err, "advance the claims of %s %s", subscription, source)
}

// DetachClaim implements [driver.ClaimEpochs].
func (c claims) DetachClaim(ctx context.Context, r driver.ClaimRequest) error {
	_, err := c.write(ctx, "UPDATE {claims} SET source = '', epoch = 0 WHERE subscription = $1 AND claim_key = $2 AND owner = $3 AND done = 0", r.Subscription, r.Key, r.Owner)
	return c.fail(err, "detach the claim on %s %s", r.Subscription, r.Key)
}

const (
	forgetEvery = 256 // claims
	forgetBatch = 1024
	forgetStart = "2592000000000" // 30 days in microseconds
)

// forgetSome deletes keys whose time is over: whoever adds keys takes old ones
// away, faster than they come. Once in a while it costs one more statement.
func (b *base) forgetSome(ctx context.Context) {
	if b.claimed.Add(1)%forgetEvery != 0 {
		return
	}
	_, _ = b.Forget(context.WithoutCancel(ctx), forgetBatch) // the next one tries again
}

// Forget deletes at most limit dedup keys whose time is over, and counts of
// starts that nobody has ended for 30 days. The store does it by itself, a batch
// for every 256 events that are handled.
func (b *base) Forget(ctx context.Context, limit int) (int, error) {
	var deleted int64
	err := b.atomically(ctx, func(ctx context.Context, run Statements) error {
		type key struct{ subscription, key string }
		var keys []key
		err := run.Each(ctx, "SELECT subscription, claim_key FROM {claims} WHERE keep_until < (SELECT {now}) ORDER BY keep_until LIMIT $1"+b.dialect.SkipLocked, []any{limit}, func(rows Rows) error {
			var k key
			err := rows.Scan(&k.subscription, &k.key)
			keys = append(keys, k)
			return err
		})
		if err != nil {
			return err
		}
		deleted = int64(len(keys))
		bySubscription := make(map[string][]string)
		for _, k := range keys {
			bySubscription[k.subscription] = append(bySubscription[k.subscription], k.key)
		}
		for subscription, keys := range bySubscription {
			arguments := []any{subscription}
			if _, err := run.Exec(ctx, "DELETE FROM {claims} WHERE subscription = $1 AND claim_key IN "+in(&arguments, keys), arguments...); err != nil {
				return err
			}
		}
		_, err = run.Exec(ctx, "DELETE FROM {starts} WHERE started_at < (SELECT {now}) - "+forgetStart)
		return err
	})
	return int(deleted), b.fail(err, "forget old keys")
}
